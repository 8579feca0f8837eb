"""What a study costs beside training, and how long one of 40 trials takes.

The first is our own linkage: what a worker takes for a trial beside training (dead
workers looked for, a ticket taken, the trial asked for, its run opened, begun and
closed, its user attributes and constraints, its pruning, the study told, the ticket
spent; training is a function that returns at once), less what Optuna alone takes for
such a trial in a database that is opened in the same way. The second is the command
itself, as a user types it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from numpy.typing import NDArray

from spectral_mlops.config import RunConfig, validate
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.records import EpochRecord
from spectral_mlops.sweeps import Sweep, work
from spectral_mlops.sweeps import sweep as module
from spectral_mlops.sweeps.objective import WARM_UP_EPOCHS
from spectral_mlops.sweeps.stopping import STARTUP_TRIALS
from spectral_mlops.sweeps.storage import open_storage
from spectral_mlops.tracking import Tracker
from spectral_mlops.training import Plan

Row = dict[str, Any]

TRIALS = 500
EPOCHS = 10
GOAL_MS = 150.0
FLAT_GOAL = 1.5
"""Of the last tenth of trials to the first, at most; a shared machine's noise is in."""
SWEEP_TRIALS = 40
SWEEP_GOAL = 600.0
"""Seconds."""
SMALL = ("--people", "60", "--epochs", "2", "--folds", "2")


def measure_linkage(trials: int = TRIALS) -> Iterator[Row]:
    """Time each trial of a study that trains nothing.

    Both databases are SQLite, in a folder that is thrown away.

    Args:
        trials: How many.

    Yields:
        One row: medians of a linked trial, of one of Optuna alone, and of their
        difference, the linkage, in pairs; of that the 90 % quantile, and the medians of
        the first and the last tenth.
    """
    with TemporaryDirectory(prefix="spectral-") as name:
        folder = Path(name)
        with patch.object(module, "run", _train_nothing):
            sweep = Sweep(
                _settings(folder),
                study="linkage",
                storage=f"sqlite:///{folder / 'optuna.db'}",
                runs=folder / "runs",
            )
            sweep.want(trials + 1)
            alone = _Alone(sweep, f"sqlite:///{folder / 'alone.db'}")

            def one() -> None:
                work(sweep, most=1)

            for once in (one, alone.run_trial):
                once()  # opens connections
            linked, plain = [], []
            for _ in range(trials):
                linked.append(_milliseconds(one))
                plain.append(_milliseconds(alone.run_trial))
    added = [a - b for a, b in zip(linked, plain, strict=True)]
    yield {
        "case": "linkage",
        "threads": 1,
        "linked_ms": median(linked),
        "alone_ms": median(plain),
        **flatness(added),
    }


class _Alone:
    """The same trials by Optuna alone: no MLflow, no attributes, no constraints."""

    def __init__(self, sweep: Sweep, storage: str) -> None:
        self.space = sweep.space
        self.study = optuna.create_study(
            storage=open_storage(storage),
            direction="maximize",
            sampler=sweep.judgement.sampler(0, sweep.space.grouped),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARM_UP_EPOCHS
            ),
        )

    def run_trial(self) -> None:
        """Draw settings, report every epoch, ask whether to go on, tell."""
        trial = self.study.ask()
        self.space.suggest(trial)
        for epoch in range(EPOCHS):
            trial.report(0.7 + 0.01 * epoch, epoch)
            trial.should_prune()
        self.study.tell(trial, 0.8)


def _milliseconds(once: Callable[[], object]) -> float:
    began = time.perf_counter()
    once()
    return 1e3 * (time.perf_counter() - began)


def flatness(ms: list[float]) -> Row:
    """Summarise milliseconds that linkage adds to a trial, in the order of trials."""
    tenth = max(1, len(ms) // 10)
    first, last = median(ms[:tenth]), median(ms[-tenth:])
    middle = median(ms)
    return {
        "trials": len(ms),
        "ms": middle,
        "ms_p90": float(np.quantile(ms, 0.9)),
        "ms_goal": GOAL_MS,
        "ms_met": max(middle, last) < GOAL_MS,
        "ms_first": first,
        "ms_last": last,
        "growth": last / first,
        "growth_goal": FLAT_GOAL,
        "growth_met": last / first <= FLAT_GOAL,
    }


def measure_sweep_command(
    trials: int = SWEEP_TRIALS, more: tuple[str, ...] = (), quick: bool = False
) -> Iterator[Row]:
    """Time ``spectral-mlops sweep`` from its start to its page.

    The built-in space, the default perceptron and the default simulated cohort, which
    is made first and counted in.

    Args:
        trials: How many.
        more: Further words of the command.
        quick: Few people, epochs and folds.
    """
    words = ["sweep", "--trials", str(trials), *(SMALL if quick else ()), *more]
    with TemporaryDirectory(prefix="spectral-") as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "spectral_mlops.cli", *words],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - began
    yield {
        "case": "sweep",
        "threads": 1,
        "command": " ".join(["spectral-mlops", *words]),
        "trials": trials,
        "seconds": seconds,
        "seconds_goal": SWEEP_GOAL,
        "seconds_met": seconds <= SWEEP_GOAL,
    }


def _settings(folder: Path) -> RunConfig:
    """Return settings of few people, simulated below a folder."""
    cohort = {"preset": "easy", "people": 56, "components": 12, "volumes": False}
    return validate(
        RunConfig,
        {
            "cohort": {"settings": {**cohort, "folder": str(folder / "cohort")}},
            "training": {"epochs": EPOCHS, "folds": 2},
            "comparison": {"probe_fraction": 0.45},
            "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        },
        "the benchmark",
    )


def _train_nothing(
    plan: Plan, tracker: Tracker, folder: Path, **how: Any
) -> SimpleNamespace:
    """Stand for `training.run`: what it asks of a tracker and a study, no network."""
    folder.mkdir(parents=True)
    tracker.start(
        how["name"],
        plan.config.flat(),
        how["tags"],
        plan.cohort.summary(),
        profile=plan.config.tracking.profile,
        epochs=EPOCHS,
    )
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        shown = SimpleNamespace(
            to_records=lambda e=epoch: [EpochRecord(e, "train", ())]
        )
        metrics = {"val/auc": 0.7 + 0.01 * epoch}
        metrics |= {f"divergence/{q}": float(rng.normal()) for q in plan.quantities}
        tracker.log(shown, metrics)
        how["on_epoch"](epoch, metrics)
    final = {f"final/divergence_{q}": 1.0 for q in plan.quantities}
    final |= {"final/auc": 0.8, "final/primary_p": 0.2, "baseline/confounds_auc": 0.5}
    tracker.log_metrics(final, step=EPOCHS - 1)
    null = _comparison(plan, rng.normal(size=plan.config.comparison.permutations + 1))
    return SimpleNamespace(result=SimpleNamespace(metrics=final, null=[null]))


def _comparison(plan: Plan, values: NDArray[np.float64]) -> Comparison:
    """Return one layer's statistics, made up."""
    return Comparison(
        layer="layers.0",
        quantity=plan.primary_quantity,
        grouping=plan.primary,
        group_a="a",
        group_b="b",
        divergence="js",
        values=values,
        n_a=13,
        n_b=13,
        subjects_a=13,
        subjects_b=13,
        source="probe",
        null="made up",
        strata="none",
        valid_for="nothing",
        testable=True,
        reason="",
    )
