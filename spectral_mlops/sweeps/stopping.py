"""When a trial is stopped early.

Folds are trained side by side, and an epoch's AUC and divergence are means over all of
a study's folds, which no space may vary: trials are compared at the same epoch over
the same folds, never fold against another fold.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.objective import WARM_UP_EPOCHS, Judgement
from spectral_mlops.sweeps.seen import Seen

Pruner = Literal["median", "hyperband", "none"]
STARTUP_TRIALS = 4
"""Finished trials before any is stopped by a median."""
GLANCE = 10.0
"""Seconds for which a trial takes those that others finished as they were."""
SOUGHT = "prune_divergence"
"""User attribute of a study whose trials were stopped by their divergence."""


class _Finished:
    """The finished trials of a study, which are read once a trial and now and then.

    Reading them costs more than what an epoch of a small network has to be told.
    """

    def __init__(self) -> None:
        self._trials: list[FrozenTrial] = []
        self._for: int | None = None
        self._at = 0.0

    def of(self, study: optuna.Study, number: int) -> list[FrozenTrial]:
        """Return what a running trial of that number is held against."""
        now = time.monotonic()
        if number != self._for or now - self._at >= GLANCE:
            states = (TrialState.COMPLETE,)
            self._trials = study.get_trials(deepcopy=False, states=states)
            self._for, self._at = number, now
        return self._trials


class _Glance:
    """A study as it was when its finished trials were read."""

    def __init__(self, study: optuna.Study, finished: list[FrozenTrial]) -> None:
        self._study, self._finished = study, finished

    def get_trials(self, deepcopy: bool, states: Sequence[TrialState]) -> Any:
        """Return the finished trials, for which alone a pruner asks."""
        assert not deepcopy
        assert tuple(states) == (TrialState.COMPLETE,)
        return self._finished

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


class _Median(optuna.pruners.MedianPruner):
    """Optuna's, which would read the database at every epoch."""

    def __init__(self, finished: _Finished, **settings: int) -> None:
        super().__init__(**settings)
        self._finished = finished

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial should stop."""
        glance = _Glance(study, self._finished.of(study, trial.number))
        return super().prune(cast("optuna.Study", glance), trial)


@dataclass(frozen=True)
class Stopping:
    """A study's rules; none stops before `WARM_UP_EPOCHS` epochs.

    Attributes:
        judgement: How trials are judged.
        pruner: ``median``: an AUC (of a number, R²) below the median of finished
            trials at the same epoch; of two objectives, a trial worse than the median
            in both, since Optuna has no rule for these. ``hyperband``: Optuna's, on
            the same, for one objective. ``none``.
        largest: Stops a trial whose divergence at an epoch is above that z.
    """

    judgement: Judgement
    pruner: Pruner = "median"
    largest: float | None = None
    _finished: _Finished = field(default_factory=_Finished, repr=False, compare=False)

    def check(self, has_probe: bool) -> None:
        """Refuse rules that cannot be followed.

        Raises:
            InputError: Saying what to choose instead.
        """
        if self.pruner not in ("median", "hyperband", "none"):
            raise InputError(
                f"--pruner {self.pruner}: choose median, hyperband or none."
            )
        if self.pruner == "hyperband" and self.judgement.both:
            raise InputError(
                "--pruner hyperband is for one objective: choose median, which stops "
                "trials worse than the median in both, or none."
            )
        if self.largest is not None and not math.isfinite(self.largest):
            raise InputError(f"--prune-divergence {self.largest}: give a finite z.")
        if self.largest is not None and not has_probe:
            raise InputError(
                "--prune-divergence needs a probe, and there is none: use a larger "
                "cohort or comparison.probe_fraction."
            )

    def of_optuna(self) -> optuna.pruners.BasePruner:
        """Return Optuna's part of the rules."""
        if self.judgement.both or self.pruner == "none":
            return optuna.pruners.NopPruner()
        if self.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=WARM_UP_EPOCHS)
        return _Median(
            self._finished,
            n_startup_trials=STARTUP_TRIALS,
            n_warmup_steps=WARM_UP_EPOCHS,
        )

    def why(self, trial: optuna.Trial, epoch: int, seen: Seen) -> str:
        """Report an epoch, and say why the trial should stop; nothing if it should not.

        Args:
            trial: Running.
            epoch: From 0.
            seen: Of it, that epoch included.
        """
        if not self.judgement.both:
            trial.report(seen.accuracy, epoch)
        if epoch < WARM_UP_EPOCHS:  # Optuna would read the database to say the same
            return ""
        if not self.judgement.both and trial.should_prune():
            said = f"{self.judgement.measures.words} {seen.accuracy:.3f}"
            return f"{said} after {epoch + 1} epochs ({self.pruner})"
        z = _value(seen.trajectory.get(self.judgement.quantity, ()), epoch)
        if self.largest is not None and z > self.largest:
            return f"divergence {z:.2f} after {epoch + 1} epochs"
        if self.judgement.both and self.pruner == "median":
            return self._worse_in_both(trial, epoch, seen.accuracy, z)
        return ""

    def _worse_in_both(
        self, trial: optuna.Trial, epoch: int, accuracy: float, z: float
    ) -> str:
        """Compare with the medians of finished trials at the same epoch."""
        names = self.judgement.accuracy, self.judgement.quantity
        finished = self._finished.of(trial.study, trial.number)
        pairs = np.array(
            [[_at(one, name, epoch) for name in names] for one in finished]
        )
        known = pairs[np.isfinite(pairs).all(1)] if len(pairs) else pairs
        if len(known) < STARTUP_TRIALS:
            return ""
        usual, usual_z = np.median(known, axis=0)
        # What of z is below 0 is no advantage in the objective, nor is it here.
        if accuracy < usual and z > max(0.0, usual_z):
            return (
                f"{self.judgement.measures.words} {accuracy:.3f} and divergence "
                f"{z:.2f} after {epoch + 1} epochs, the medians are {usual:.3f} and "
                f"{usual_z:.2f}"
            )
        return ""


def _at(trial: FrozenTrial, name: str, epoch: int) -> float:
    return _value(trial.user_attrs.get(f"trajectory.{name}", ()), epoch)


def _value(points: Sequence[Sequence[float]], epoch: int) -> float:
    """Return the latest value up to an epoch: not every epoch has a divergence."""
    until = [value for at, value in points if at <= epoch]
    return until[-1] if until else math.nan
