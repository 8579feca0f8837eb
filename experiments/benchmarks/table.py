"""The table of the goals: every case, every number of threads."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from experiments.benchmarks.cases import Case
from experiments.benchmarks.measure import BASE, alternate, paired_ratio
from experiments.benchmarks.variants import (
    EPOCH,
    Reference,
    Scheduled,
    Unwatched,
    Watched,
    identical,
)
from spectral_mlops import capture

TIMES_OURS = 20
"""How many times our overhead the reference method's is to be, at least."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much time is taken.

    Attributes:
        rounds: Of windows, and of epochs at the default schedule.
        chunks: Turns that a window is cut into.
        shorten: Divides the steps of windows and epochs.
        budget: Seconds per measurement after which no further round begins.
    """

    rounds: int = 5
    chunks: int = 4
    shorten: int = 1
    budget: float = 60.0


def measure_cases(
    cases: Iterable[Case], threads: Iterable[int], effort: Effort
) -> Iterator[Row]:
    """Measure each case at each number of threads, one row at a time."""
    before = torch.get_num_threads()
    for case in cases:
        for number in threads:
            torch.set_num_threads(number)
            try:
                row = measure_case(case, effort)
            finally:
                torch.set_num_threads(before)
            name = {"case": case.name, "title": case.title, "threads": number}
            yield name | row


def measure_case(
    case: Case,
    effort: Effort,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
) -> Row:
    """Every step watched, the default schedule, and the reference method."""
    setting = (case, device, autocast)
    variants = {BASE: Unwatched(*setting), "watched": Watched(*setting)}
    if case.reference:
        variants["reference"] = Reference(*setting)
    window = max(effort.chunks, case.window // effort.shorten)
    seconds = alternate(
        variants,
        rounds=effort.rounds,
        window=window,
        chunk=max(1, window // effort.chunks),
        budget=effort.budget,
    )
    every = paired_ratio(seconds["watched"], seconds[BASE])
    row: Row = {
        "unwatched_ms": 1e3 * median(seconds[BASE]),
        "rounds": len(seconds[BASE]),
        "window": window,
        **every.as_dict("every"),
        "every_goal": case.goal,
        "every_met": every.median <= case.goal,
        "same_weights": identical(variants[BASE], variants["watched"]),
    }
    if case.reference:
        slow = paired_ratio(seconds["reference"], seconds[BASE])
        row |= slow.as_dict("reference") | compare_overheads(slow.median, every.median)
    return row | _at_the_default_schedule(setting, effort) | what_is_watched(case)


def compare_overheads(reference: float, ours: float) -> Row:
    """How many times our overhead (ratio - 1) the reference method's is.

    Where ours drowns in noise the number is infinite, stored as ``None``.
    """
    times = (reference - 1) / (ours - 1) if ours > 1 else None
    return {
        "times_ours": times,
        "times_ours_goal": TIMES_OURS,
        "times_ours_met": times is None or times >= TIMES_OURS,
    }


def _at_the_default_schedule(
    setting: tuple[Case, str, torch.dtype | None], effort: Effort
) -> Row:
    """Whole epochs, in turns of a few steps: a fifth of them has a watched one."""
    variants = {BASE: Unwatched(*setting), "scheduled": Scheduled(*setting)}
    epoch = EPOCH // 8 * max(1, 8 // effort.shorten)  # as dense when shortened
    seconds = alternate(
        variants,
        rounds=effort.rounds,
        window=epoch,
        chunk=5,
        budget=effort.budget,
    )
    ratio = paired_ratio(seconds["scheduled"], seconds[BASE])
    goal = setting[0].scheduled_goal
    return {
        "epochs": len(seconds[BASE]),
        **ratio.as_dict("scheduled"),
        "scheduled_goal": goal,
        "scheduled_met": ratio.median <= goal,
    }


def what_is_watched(case: Case) -> Row:
    """How the case's parameters are watched, and which spectra that gives.

    A ratio below its goal says little where layers give no factors yet.
    """
    model, (inputs, targets) = case.model(), case.data()[0]
    with capture(model, case.labels()) as captured:
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    methods = Counter(row.method for row in captured.coverage())
    spectra = Counter(item.quantity for item in captured.spectra(pooled=False))
    return {"parameters": dict(methods), "spectra": dict(spectra)}
