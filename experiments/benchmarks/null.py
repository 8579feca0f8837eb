"""Seconds that a null of relabelled people takes, for one watched batch."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from experiments.benchmarks.cases import CASES, Case
from spectral_mlops import SpectralMonitor
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.records import QUANTITIES

NULL_CASE = "mlp-taper"
PERMUTATIONS = 199
GOALS: dict[tuple[str, ...], float] = {("gradient",): 0.7, QUANTITIES: 2.0}
"""Seconds, by the quantities that are compared."""


def watch_once(case: Case, quantities: tuple[str, ...]) -> EpochSpectra:
    """One watched batch, each sample a person of its own."""
    model = case.model()
    monitor = SpectralMonitor(model, quantities=quantities)
    x, y = case.data()[0]
    people = [str(i) for i in range(case.batch)]
    with monitor.watch({"group": case.labels()}, people, y):
        cross_entropy(model(x), y).backward()
    return monitor.collect()


def measure_null(
    threads: int, rounds: int = 5, permutations: int = PERMUTATIONS
) -> Iterator[dict[str, Any]]:
    """One row per choice of quantities: median and range over rounds.

    Every round compares a batch watched anew, so that nothing is left of the round
    before; the first one is not counted.

    Args:
        threads: Of torch; written into the rows.
        rounds: That are counted.
        permutations: Relabellings beside the observed labels.
    """
    torch.set_num_threads(threads)
    case = CASES[NULL_CASE]
    for quantities, goal in GOALS.items():
        seconds, rows = [], 0
        for _ in range(rounds + 1):
            seen = watch_once(case, quantities)
            began = time.perf_counter()
            table = seen.divergences(permutations, strata=None)
            seconds.append(time.perf_counter() - began)
            rows = int(table["p"].notna().sum())
        counted = seconds[1:]
        yield {
            "case": f"{NULL_CASE}: {', '.join(quantities)}",
            "title": case.title,
            "quantities": ", ".join(quantities),
            "threads": threads,
            "permutations": permutations,
            "tested": rows,
            "seconds": median(counted),
            "seconds_low": min(counted),
            "seconds_high": max(counted),
            "seconds_goal": goal,
            "seconds_met": median(counted) < goal,
            "rounds": rounds,
        }
