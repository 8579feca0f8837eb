"""What watching costs, how that grows, and how exact it is.

From the project's root:

    python -m experiments.benchmarks.run              everything
    python -m experiments.benchmarks.run --quick      under a minute, small sizes
    python -m experiments.benchmarks.run --only mlp-taper lstm --parts cases
    python -m experiments.benchmarks.run --readme     README's tables from results/

Tables are printed as markdown; numbers go to ``results/*.json`` and plots beside
them. See README.md.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from experiments.benchmarks.accuracy import TARGET, measure_accuracy
from experiments.benchmarks.cases import CASES, Case
from experiments.benchmarks.gpu import gpu_cases, measure_gpu
from experiments.benchmarks.memory import peak_memory
from experiments.benchmarks.null import GOALS, PERMUTATIONS, measure_null
from experiments.benchmarks.peers import measure_peers
from experiments.benchmarks.plots import plot_accuracy, plot_sweep
from experiments.benchmarks.results import describe, fill, joined, read, write
from experiments.benchmarks.scaling import SWEEPS, fit_sweep, measure_sweep
from experiments.benchmarks.sweeps import (
    SWEEP_TRIALS,
    TRIALS,
    measure_linkage,
    measure_sweep_command,
)
from experiments.benchmarks.table import Effort, measure_cases
from experiments.benchmarks.tracking import measure_tracking
from experiments.benchmarks.views import tables

HERE = Path(__file__).parent
PARTS = (
    *("cases", "memory", "scaling", "accuracy", "null", "peers"),
    *("tracking", "linkage", "sweep", "gpu"),
)
QUICK_CASES = ("mlp-taper", "mlp-narrow-2", "mlp-narrow-16")
QUICK_PARTS = ("cases", "scaling", "accuracy", "null")
CONSOLE = Console(stderr=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for, store it, and print the tables."""
    chosen = _read(arguments)
    if chosen.readme:
        text = HERE / "README.md"
        text.write_text(fill(text.read_text(), tables(chosen.out)))
        return
    for part in chosen.parts:
        MEASURE[part](chosen)
    for name, table in tables(chosen.out).items():
        print(f"\n## {name}\n\n{table}")


def _read(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small, coarse, under a minute")
    add("--parts", nargs="+", choices=PARTS, help="default: all that can be run here")
    add("--only", nargs="+", choices=CASES, help="cases to measure; default: all")
    add("--threads", nargs="+", type=int, help="of torch; default: 1 2")
    add("--rounds", type=int, help="of each measurement; default: 5")
    add("--budget", type=float, default=60, help="seconds a measurement may take")
    add("--sweep-words", default="", help="more words of the command of part sweep")
    add("--out", type=Path, help="folder of the results; default: results/")
    add("--readme", action="store_true", help="fill README.md from --out; no measuring")
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(given)
    chosen.command = shlex.join(["python", "-m", "experiments.benchmarks.run", *given])
    chosen.sweep_words = shlex.split(chosen.sweep_words)
    quick = chosen.quick
    parts = QUICK_PARTS if quick else [p for p in PARTS if p != "gpu" or _has_gpu()]
    chosen.parts = chosen.parts or parts
    chosen.only = chosen.only or (QUICK_CASES if quick else list(CASES))
    chosen.threads = chosen.threads or ([1] if quick else [1, 2])
    chosen.rounds = chosen.rounds or (2 if quick else 5)
    # A coarse result never takes the place of a real one.
    chosen.out = chosen.out or HERE / ("results-quick" if quick else "results")
    chosen.effort = Effort(
        rounds=chosen.rounds,
        shorten=8 if quick else 1,
        budget=2 if quick else chosen.budget,
    )
    return chosen


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _cases(chosen: argparse.Namespace) -> list[Case]:
    return [CASES[name] for name in chosen.only]


def _store(
    chosen: argparse.Namespace,
    part: str,
    threads: Sequence[int],
    rows: Iterable[dict[str, Any]],
    total: int,
) -> None:
    """Go through rows with a progress bar; what is done is never lost.

    Rows that are not measured again stand, where machine and versions are the same.
    """
    stored = read(chosen.out, part)
    fresh: list[dict[str, Any]] = []
    for row in track(rows, part, total=total, console=CONSOLE):
        fresh.append(row)
        about = describe(threads, chosen.command)
        told, together = joined(stored, about, fresh)
        write(chosen.out, part, told, sorted(together, key=_place))


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row stands in its table."""
    names = list(CASES)
    name = row.get("case")
    place = names.index(name) if name in names else len(names)
    return place, row.get("threads") or 0


def _measure_cases(chosen: argparse.Namespace) -> None:
    cases = _cases(chosen)
    rows = measure_cases(cases, chosen.threads, chosen.effort)
    total = len(cases) * len(chosen.threads)
    _store(chosen, "cases", chosen.threads, rows, total)


def _measure_memory(chosen: argparse.Namespace) -> None:
    cases = _cases(chosen)
    rows = (
        {"case": case.name, "title": case.title, **peak_memory(case, case.window)}
        for case in cases
    )
    _store(chosen, "memory", [1], rows, len(cases))


def _measure_scaling(chosen: argparse.Namespace) -> None:
    threads = chosen.threads[0]
    torch.set_num_threads(threads)
    everything, fits = [], []
    for name in track(SWEEPS, "scaling", console=CONSOLE):
        settings = (1, 2, 256) if chosen.quick else (min(chosen.rounds, 3), 10, None)
        rows = list(measure_sweep(name, *settings))
        everything += rows
        fits.append(fit_sweep(name, rows))
    write(
        chosen.out,
        "scaling",
        describe([threads], chosen.command),
        rows=everything,
        fits=fits,
    )
    for fit in fits:
        mine = [row for row in everything if row["sweep"] == fit["sweep"]]
        plot_sweep(mine, fit, chosen.out)


def _measure_accuracy(chosen: argparse.Namespace) -> None:
    threads = chosen.threads[0]
    torch.set_num_threads(threads)
    rows = list(measure_accuracy(1 if chosen.quick else 5))
    write(chosen.out, "accuracy", describe([threads], chosen.command), rows=rows)
    plot_accuracy(rows, chosen.out, TARGET)


def _measure_null(chosen: argparse.Namespace) -> None:
    permutations = 19 if chosen.quick else PERMUTATIONS
    rows = (
        row
        for threads in chosen.threads
        for row in measure_null(threads, chosen.rounds, permutations)
    )
    _store(chosen, "null", chosen.threads, rows, len(GOALS) * len(chosen.threads))


def _measure_peers(chosen: argparse.Namespace) -> None:
    threads, cases = chosen.threads[0], _cases(chosen)
    torch.set_num_threads(threads)
    rows = measure_peers(cases, min(chosen.rounds, 3), 8, chosen.budget / 4)
    _store(chosen, "peers", [threads], rows, len(cases))


def _measure_linkage(chosen: argparse.Namespace) -> None:
    rows = measure_linkage(10 if chosen.quick else TRIALS)
    _store(chosen, "linkage", [1], rows, 1)


def _measure_sweep(chosen: argparse.Namespace) -> None:
    trials = 2 if chosen.quick else SWEEP_TRIALS
    rows = measure_sweep_command(trials, tuple(chosen.sweep_words), chosen.quick)
    _store(chosen, "sweep", [1], rows, 1)


def _measure_tracking(chosen: argparse.Namespace) -> None:
    threads = chosen.threads[0]
    rows = list(measure_tracking(threads, chosen.rounds))
    write(chosen.out, "tracking", describe([threads], chosen.command), rows=rows)


def _measure_gpu(chosen: argparse.Namespace) -> None:
    cases = gpu_cases()
    rows = measure_gpu(cases, chosen.effort)
    _store(chosen, "gpu", [torch.get_num_threads()], rows, 2 * len(cases))


MEASURE = {
    "cases": _measure_cases,
    "memory": _measure_memory,
    "scaling": _measure_scaling,
    "accuracy": _measure_accuracy,
    "null": _measure_null,
    "peers": _measure_peers,
    "linkage": _measure_linkage,
    "sweep": _measure_sweep,
    "tracking": _measure_tracking,
    "gpu": _measure_gpu,
}

if __name__ == "__main__":
    main()
