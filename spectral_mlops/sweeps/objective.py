"""How trials are judged: accuracy, both numbers, or accuracy under a constraint."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import optuna
from optuna.exceptions import ExperimentalWarning

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.space_file import Objective
from spectral_mlops.tracking.measures import CLASSIFICATION, Measures

WARM_UP_EPOCHS = 5
UNKNOWN = 1.0
"""How far a trial is from being allowed if its divergence could not be formed."""


@contextmanager
def experimental() -> Iterator[None]:
    """Use what Optuna calls experimental without a warning at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@dataclass(frozen=True)
class Judgement:
    """One study's objective.

    Attributes:
        objective: ``auc`` (divergence is tracked beside it), ``auc,divergence`` (two
            objectives: AUC up, what of z is above 0 down), or ``constrained`` (AUC of
            trials whose divergence is at most ``tau``); of a number ``r2`` for ``auc``.
        tau: Largest divergence, units of z.
        quantity: Whose divergence counts.
        measures: Of the task; its headline is what accuracy means.
    """

    objective: Objective
    tau: float
    quantity: str
    measures: Measures = CLASSIFICATION

    @classmethod
    def of(
        cls, objective: Objective | None, tau: float, quantity: str, measures: Measures
    ) -> "Judgement":
        """Return a study's objective; the task's headline if none is named.

        Raises:
            InputError: If the objective is of another task.
        """
        mine = measures.headline
        wanted = objective or cast("Objective", mine)
        if wanted not in (mine, f"{mine},divergence", "constrained"):
            raise InputError(
                f"--objective {wanted}: training.task='{measures.task}' is judged by "
                f"{measures.words}: choose {mine}, '{mine},divergence' or constrained."
            )
        return cls(wanted, tau, quantity, measures)

    @property
    def accuracy(self) -> str:
        """Name of what accuracy is measured by: ``auc`` or ``r2``."""
        return self.measures.headline

    @property
    def both(self) -> bool:
        """Whether there are two objectives."""
        return self.objective.endswith(",divergence")

    @property
    def needs_divergence(self) -> bool:
        """Whether a trial without a divergence cannot be judged."""
        return self.objective != self.accuracy

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Which way is better."""
        return ["maximize", "minimize"] if self.both else ["maximize"]

    @property
    def names(self) -> list[str]:
        """What the values of a trial are."""
        return [self.accuracy, "divergence"] if self.both else [self.accuracy]

    def sampler(self, seed: int, grouped: bool) -> optuna.samplers.TPESampler:
        """Return Optuna's TPE; grouped where settings are drawn in some trials only.

        Args:
            seed: Of what it draws.
            grouped: Draw the settings of a branch together, from trials that have it.
        """
        if not (grouped or self.both):
            return optuna.samplers.TPESampler(seed=seed)
        with experimental():
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)

    def values(self, accuracy: float, divergence: float) -> list[float]:
        """Return a finished trial's values.

        Args:
            accuracy: Of validation people.
            divergence: z on the probe, NaN if it could not be formed.

        Raises:
            ValueError: If a value is needed and missing; such a trial failed.
        """
        if not self.both:
            return [accuracy]
        if not math.isfinite(divergence):
            raise ValueError(
                f"the divergence of {self.quantity} could not be formed (layers.tsv of "
                "the run says why), and it is an objective"
            )
        return [accuracy, max(0.0, divergence)]

    def constraints(
        self, accuracy: float, divergence: float, confounds: float
    ) -> dict[str, float]:
        """Return how far a trial is from being allowed, 0 or less if it is.

        Low divergence can be bought by a network that learned nothing, so no trial
        may predict less than age, sex, site and motion alone do.

        Args:
            accuracy: Of validation people.
            divergence: z, NaN if unknown.
            confounds: Accuracy of the confounds alone, NaN if there is none.
        """
        found = {}
        if math.isfinite(confounds):
            found["confounds"] = confounds - accuracy
        if self.objective == "constrained":
            known = math.isfinite(divergence)
            found["divergence"] = divergence - self.tau if known else UNKNOWN
        return {name: x if math.isfinite(x) else UNKNOWN for name, x in found.items()}

    def why_not(self, accuracy: float, divergence: float, confounds: float) -> str:
        """Say why a trial is not allowed; nothing if it is."""
        found = self.constraints(accuracy, divergence, confounds)
        said = {
            "confounds": f"{self.measures.words} {accuracy:.3f} is below the "
            f"{confounds:.3f} of confounds alone",
            "divergence": f"divergence {divergence:.2f} is above {self.tau:g}"
            if math.isfinite(divergence)
            else "its divergence is not known",
        }
        return "; ".join(said[name] for name, far in found.items() if far > 0)
