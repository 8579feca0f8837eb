"""How often does a run find a group effect of a given size?

Run from the project's root:

    python -m experiments.power.run
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.benchmarks.results import describe, fill, read, write
from experiments.power import report
from experiments.power.measure import data_sets

HERE = Path(__file__).parent
ASKED = (0.0, 0.5, 1.0, 2.0)
WIDE = (*ASKED, 4.0, 8.0)
"""Far enough for power to come near one; no published cohort is there."""


@dataclass(frozen=True)
class Cell:
    """Cohorts of one size.

    Attributes:
        people: Their number.
        share: Held out; ``None`` for a cross-fit.
        effects: Sizes of effect.
        every: One of so many seeds is taken.
    """

    people: int
    share: float | None
    effects: tuple[float, ...] = ASKED
    every: int = 1


CELLS = (
    Cell(40, 0.2),
    Cell(40, 0.3),
    Cell(80, 0.2),
    Cell(80, 0.3),
    Cell(86, 0.2),
    Cell(86, 0.3, WIDE),
    Cell(146, 0.2),
    Cell(146, 0.3, WIDE),
    Cell(40, None, every=2),
    Cell(80, None, every=4),
)

QUICK: dict[str, Any] = {
    "cohort": {"settings": {"components": 12}},
    "training": {"epochs": 4, "folds": 2},
    "comparison": {"permutations": 19},
}
"""Settings of ``--quick``."""


def measure_all(
    seeds: int, minutes: float, path: Path, changes: dict[str, Any] | None = None
) -> None:
    """Measure seed by seed, as many as the time allows; a seed is done or not at all.

    Args:
        seeds: At most.
        minutes: No seed is begun after these.
        path: Of the table, written after every seed; one that stands there goes on.
        changes: Settings laid over the config file.
    """
    rows = []
    if path.exists():
        rows = report.load(path).to_dict("records")
    first = 1 + max((int(row["seed"]) for row in rows), default=-1)
    refused = {
        (row["people"], row["share"]) for row in rows if isinstance(row["refused"], str)
    }
    end = time.monotonic() + 60 * minutes
    for seed in range(first, seeds):
        if time.monotonic() > end:
            break
        for cell in CELLS:
            if seed % cell.every or (cell.people, cell.share) in refused:
                continue
            found = list(
                data_sets(cell.people, cell.share, cell.effects, seed, changes)
            )
            rows += found
            if "refused" in found[0]:
                refused.add((cell.people, cell.share))
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).round(4).to_csv(path, index=False)
        print(f"{time.strftime('%H:%M:%S')} seed {seed}", flush=True)


def command_of(words: list[str]) -> str:
    """The command without where results went and how long one call was given."""
    for option in ("--out", "--minutes"):
        if option in words:
            at = words.index(option)
            words = words[:at] + words[at + 2 :]
    return " ".join(["python -m experiments.power.run", *words])


def main() -> None:
    """Measure, draw, and fill the README's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="people at most")
    parser.add_argument("--minutes", type=float, default=30, help="for all of it")
    parser.add_argument("--quick", action="store_true", help="small runs, two seeds")
    parser.add_argument(
        "--stored", action="store_true", help="tables and picture of what is there"
    )
    parser.add_argument("--out", type=Path, help="default: results/, results-quick/")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = min(arguments.seeds, 2)
    folder = arguments.out or HERE / ("results-quick" if arguments.quick else "results")
    torch.set_num_threads(1)
    path = folder / "data_sets.csv"
    if not arguments.stored:
        changes = QUICK if arguments.quick else None
        about = describe([1], command_of(sys.argv[1:]))
        measure_all(arguments.seeds, arguments.minutes, path, changes)
        write(folder, "about", about, [])
    stored = read(folder, "about")
    assert stored is not None
    tables = report.tables(report.load(path), stored["about"])
    report.draw(report.load(path), folder / "power.png")
    print("\n\n".join(tables.values()))
    if folder == HERE / "results":
        readme = HERE / "README.md"
        readme.write_text(fill(readme.read_text(), tables))


if __name__ == "__main__":
    main()
