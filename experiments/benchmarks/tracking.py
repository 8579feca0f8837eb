"""What tracking takes of an epoch: of the training thread, and in all.

The main job (``spectral-mlops train`` with no options) is trained for a few epochs
three ways, which take turns: without any tracker, with ``--tracking none`` (records and
metrics are formed, nothing is kept), and with ``--tracking spool``.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, SupportsFloat

import torch

from experiments.benchmarks.measure import paired_ratio
from spectral_mlops.config import RunConfig
from spectral_mlops.tracking import SpoolTracker, Tracker
from spectral_mlops.tracking.base import Recordable, Releasable
from spectral_mlops.tracking.memory import NoTracker
from spectral_mlops.training import Plan, make_plan
from spectral_mlops.training.checkpoint import Checkpoints
from spectral_mlops.training.loop import train

GOAL = 0.02
"""Largest share of an epoch that the training thread spends on tracking."""
EPOCHS = 12


class Untracked(NoTracker):
    """Does not even look at what it is given."""

    def log(
        self, epoch: Recordable, metrics: Mapping[str, SupportsFloat] | None = None
    ) -> None:
        """Free the epoch, as every tracker does."""
        if isinstance(epoch, Releasable):
            epoch.release()


class _Enough(Exception):
    """Ends a run before what follows the last epoch."""


def time_epochs(plan: Plan, tracker: Tracker, folder: Path) -> tuple[float, float]:
    """Train but for the end; return median seconds of an epoch, and tracking's share.

    The first epoch is left out. The share is of the training thread's time in all, with
    its waiting for the writer at checkpoints.
    """
    marks: list[tuple[float, float]] = []

    def each(epoch: int, metrics: Mapping[str, float]) -> None:
        marks.append((time.perf_counter(), tracker.seconds))
        if epoch == plan.config.training.epochs - 2:
            raise _Enough

    try:
        train(plan, tracker, each, checkpoints=Checkpoints(folder, plan))
    except _Enough:
        tracker.close("KILLED")
    (began, before), (ended, after) = marks[0], marks[-1]
    epochs = [b[0] - a[0] for a, b in pairwise(marks)]
    return median(epochs), (after - before) / (ended - began)


def measure_tracking(
    threads: int, rounds: int = 5, settings: RunConfig | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one row: medians and ranges over rounds.

    Args:
        threads: Of torch; written into the row.
        rounds: That are counted; one before them is not.
        settings: Of the job; if not given the main job with `EPOCHS` epochs.
    """
    torch.set_num_threads(threads)
    settings = settings or RunConfig()
    training = settings.training.model_copy(update={"epochs": EPOCHS})
    seconds: dict[str, list[float]] = {"bare": [], "none": [], "spool": []}
    shares: list[float] = []
    with TemporaryDirectory(prefix="spectral-") as place:
        plan = make_plan(
            settings.model_copy(update={"training": training}), Path(place)
        )
        for number in range(rounds + 1):
            for name in sorted(seconds, reverse=bool(number % 2)):
                folder = Path(place, f"{name}-{number}")
                folder.mkdir()
                made: dict[str, Tracker] = {
                    "bare": Untracked(),
                    "none": NoTracker(),
                    "spool": SpoolTracker(folder),
                }
                took, share = time_epochs(plan, made[name], folder)
                if number:
                    seconds[name].append(took)
                    shares += [share] if name == "spool" else []
    yield {
        "case": "main job",
        "threads": threads,
        "epoch": median(seconds["bare"]),
        "share": median(shares),
        "share_low": min(shares),
        "share_high": max(shares),
        "share_goal": GOAL,
        "share_met": median(shares) < GOAL,
        **paired_ratio(seconds["spool"], seconds["none"]).as_dict("none"),
        **paired_ratio(seconds["spool"], seconds["bare"]).as_dict("bare"),
        "rounds": rounds,
    }
