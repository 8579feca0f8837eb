"""Does a test at 0.05 find a difference in 5 % of cohorts that have none?

Run from the project's root:

    python -m experiments.calibration.run
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

from experiments.benchmarks.results import describe, fill, markdown, read, write
from experiments.calibration import joint, retrained, trained
from experiments.calibration.cells import CELLS, QUANTITIES, Cell, Cohort
from experiments.calibration.joint import PACKAGE
from experiments.calibration.picture import draw
from spectral_mlops.inference.significance import holm, p_value

HERE = Path(__file__).parent
ALPHA, PERMUTATIONS = 0.05, 39
"""``ALPHA · (P + 1)`` is whole, so that p ≤ ALPHA has exactly this probability."""

LEVEL = 0.99
"""Of the binomial intervals; 1 - LEVEL is what Holm's p is compared with."""

CHUNK = 25
"""Data sets whose networks are trained as one."""
PARTS = ("rows", "trained", "joint", "retrained")
Row = dict[str, Any]


def rate_rows(
    name: str, title: str, method: str, wrong: Counter[str], data_sets: int
) -> Iterator[Row]:
    """One row per quantity: how often p ≤ ALPHA where nothing differs."""
    for quantity in wrong:
        yield {
            "cell": name,
            "title": title,
            "method": method,
            "quantity": quantity,
            "wrong": wrong[quantity],
            "data_sets": data_sets,
            "rate": wrong[quantity] / data_sets,
        }


def measure_cell(
    name: str,
    cell: Cell,
    data_sets: int,
    permutations: int = PERMUTATIONS,
    quantities: Sequence[str] = QUANTITIES,
) -> Iterator[Row]:
    """Rates of the valid method and of the others, on the same cohorts."""
    methods = {PACKAGE: cell.valid} | cell.others
    wrong = {method: Counter(dict.fromkeys(quantities, 0)) for method in methods}
    for seed in range(data_sets):
        cohort = draw_cohort(name, cell, seed)
        for label, method in methods.items():
            for quantity in quantities:
                values = method(cohort, quantity, permutations, seed)
                wrong[label][quantity] += bool(p_value(values) <= ALPHA)
    for label in methods:
        yield from rate_rows(name, cell.title, label, wrong[label], data_sets)


def draw_cohort(name: str, cell: Cell, seed: int) -> Cohort:
    """The cohort of a seed; cells share no random numbers."""
    return cell.draw(np.random.default_rng([list(CELLS).index(name), seed]))


def measure_trained(
    data_sets: int, minutes: float, permutations: int = PERMUTATIONS
) -> list[Row]:
    """Rates over trained networks, as many as the time allows."""
    wrong: dict[tuple[str, str], Counter[str]] = {}
    end = time.monotonic() + 60 * minutes
    done = 0
    while done < data_sets and time.monotonic() < end:
        found = trained.p_of_one_network(done, permutations)
        for (source, grouping, quantity), p in found.items():
            counter = wrong.setdefault((source, grouping), Counter())
            counter[quantity] += bool(p <= ALPHA)
        done += 1
    titles = [(PACKAGE, trained.VALID), ("no p by the package", trained.OTHERS)]
    return [
        row
        for method, cases in titles
        for (source, grouping), title in cases.items()
        for row in rate_rows(
            f"{source}-{grouping}", title, method, wrong[source, grouping], done
        )
    ]


def measure_joint(
    name: str, data_sets: int, minutes: float, permutations: int = PERMUTATIONS
) -> list[Row]:
    """Rates of one cell of `joint`, over as many data sets as the time allows."""
    cell, found = joint.CELLS[name], []
    end = time.monotonic() + 60 * minutes
    while len(found) < data_sets and time.monotonic() < end:
        seeds = range(len(found), min(len(found) + CHUNK, data_sets))
        found += joint.measure(cell, seeds, permutations)
    return list(rates_of(name, cell.title, found))


def measure_retrained(
    data_sets: int, minutes: float, permutations: int = PERMUTATIONS
) -> list[Row]:
    """Rates of the test by retraining, over as many runs as the time allows."""
    found: dict[str, list[joint.Found]] = {source: [] for source in retrained.VALID}
    end, done = time.monotonic() + 60 * minutes, 0
    while done < data_sets and time.monotonic() < end:
        for source, p in retrained.p_of_one_run(done, permutations).items():
            found[source].append(p)
        done += 1
    return [
        row
        for source, title in retrained.VALID.items()
        for row in rates_of(f"retrained-{source}", title, found[source])
    ]


def rates_of(name: str, title: str, found: Sequence[joint.Found]) -> Iterator[Row]:
    """Count p ≤ ALPHA by method and quantity."""
    for method in dict.fromkeys(method for method, _ in found[0]):
        wrong = Counter(
            {
                quantity: sum(bool(p[method, quantity] <= ALPHA) for p in found)
                for known, quantity in found[0]
                if known == method
            }
        )
        yield from rate_rows(name, title, method, wrong, len(found))


def judge(rows: Sequence[Row]) -> list[Row]:
    """Compare each rate with ALPHA; Holm over all rows that are the package's."""
    judged = []
    for row in rows:
        exact = scipy.stats.binomtest(row["wrong"], row["data_sets"], ALPHA)
        accepted = scipy.stats.binom.interval(LEVEL, row["data_sets"], ALPHA)
        judged.append(
            {
                **row,
                "p": float(exact.pvalue),
                "accepted": [float(x) / row["data_sets"] for x in accepted],
            }
        )
    own = [row for row in judged if row["method"].startswith(PACKAGE)]
    adjusted = holm(np.array([row["p"] for row in own]))
    for row, p in zip(own, adjusted, strict=True):
        row["p_holm"] = float(p)
        row["as_promised"] = bool(p >= 1 - LEVEL)
    return judged


def table(rows: Sequence[Row]) -> str:
    """One line per cell and method, a column per quantity."""
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row["title"], row["method"]), {})[row["quantity"]] = row

    def any_of(line: dict[str, Row]) -> Row:
        return next(iter(line.values()))

    def verdict(line: dict[str, Row]) -> str:
        if "p_holm" not in any_of(line):
            return "–"
        least = min(row["p_holm"] for row in line.values())
        kept = all(row["as_promised"] for row in line.values())
        return f"{least:.2g} {'kept' if kept else '**broken**'}"

    def rates(quantity: str) -> Any:
        return lambda line: f"{line[quantity]['rate']:.3f}" if quantity in line else ""

    def interval(line: dict[str, Row]) -> str:
        low, high = any_of(line)["accepted"]
        return f"{low:.3f}–{high:.3f}"

    columns = {
        "cohorts without a difference": lambda line: any_of(line)["title"],
        "method": lambda line: any_of(line)["method"],
        **{quantity: rates(quantity) for quantity in QUANTITIES},
        "data sets": lambda line: str(any_of(line)["data_sets"]),
        "99 % of rates": interval,
        "least p (Holm)": verdict,
    }
    return markdown(list(lines.values()), columns)


def heading(about: Row) -> str:
    """When, where and by which command."""
    machine, versions = about["machine"], about["versions"]
    return (
        f"{about['date'][:10]}; {machine['cpu']}, {machine['cores']} cores; "
        f"torch {versions['torch']}; threads {about['threads'][0]}; "
        f"`{about['command']}`"
    )


def show(folder: Path) -> dict[str, str]:
    """The stored tables by name."""
    found = {name: read(folder, name) for name in PARTS}
    return {
        name: f"{heading(stored['about'])}\n\n{table(stored['rows'])}"
        for name, stored in found.items()
        if stored is not None
    }


def main() -> None:
    """Measure every cell, write results, and fill the README's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=1000, help="per cell")
    parser.add_argument("--trained", type=int, default=1000, help="networks at most")
    parser.add_argument("--joint", type=int, default=500, help="data sets per cell")
    parser.add_argument("--retrained", type=int, default=200, help="runs at most")
    parser.add_argument(
        "--minutes", type=float, default=8, help="at most, for each kind of network"
    )
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="a few of everything")
    parser.add_argument("--out", type=Path, help="default: results/, results-quick/")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.data_sets, arguments.trained = 40, 10
        arguments.joint, arguments.retrained = 5, 2
    folder = arguments.out or HERE / ("results-quick" if arguments.quick else "results")
    torch.set_num_threads(1)
    words = " ".join(sys.argv[1:])
    about = describe([1], f"python -m experiments.calibration.run {words}".strip())
    about |= {"permutations": PERMUTATIONS, "alpha": ALPHA}
    if "rows" in arguments.parts:
        rows: list[Row] = []
        for name, cell in CELLS.items():
            rows += measure_cell(name, cell, arguments.data_sets)
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        write(folder, "rows", about, judge(rows))
    if "trained" in arguments.parts:
        rows = measure_trained(arguments.trained, arguments.minutes)
        write(folder, "trained", about, judge(rows))
    if "joint" in arguments.parts:
        rows = []
        for name in joint.CELLS:
            rows += measure_joint(name, arguments.joint, arguments.minutes)
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        write(folder, "joint", about, judge(rows))
    if "retrained" in arguments.parts:
        rows = measure_retrained(arguments.retrained, arguments.minutes)
        write(folder, "retrained", about, judge(rows))
    draw({name: read(folder, name) for name in PARTS}, folder / "rates.png")
    tables = show(folder)
    print("\n\n".join(tables.values()))
    if folder == HERE / "results":
        readme = HERE / "README.md"
        readme.write_text(fill(readme.read_text(), tables))


if __name__ == "__main__":
    main()
