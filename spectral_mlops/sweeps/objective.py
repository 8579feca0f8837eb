"""How trials are judged: accuracy, both numbers, or accuracy under a constraint."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning

from spectral_mlops.sweeps.space_file import Objective

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
            trials whose divergence is at most ``tau``).
        tau: Largest divergence, units of z.
        quantity: Whose divergence counts.
    """

    objective: Objective
    tau: float
    quantity: str

    @property
    def both(self) -> bool:
        """Whether there are two objectives."""
        return self.objective == "auc,divergence"

    @property
    def needs_divergence(self) -> bool:
        """Whether a trial without a divergence cannot be judged."""
        return self.objective != "auc"

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Which way is better."""
        return ["maximize", "minimize"] if self.both else ["maximize"]

    @property
    def names(self) -> list[str]:
        """What the values of a trial are."""
        return ["auc", "divergence"] if self.both else ["auc"]

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

    def values(self, auc: float, divergence: float) -> list[float]:
        """Return a finished trial's values.

        Args:
            auc: Of validation people.
            divergence: z on the probe, NaN if it could not be formed.

        Raises:
            ValueError: If a value is needed and missing; such a trial failed.
        """
        if not self.both:
            return [auc]
        if not math.isfinite(divergence):
            raise ValueError(
                f"the divergence of {self.quantity} could not be formed (layers.tsv of "
                "the run says why), and it is an objective"
            )
        return [auc, max(0.0, divergence)]

    def constraints(
        self, auc: float, divergence: float, confounds_auc: float
    ) -> dict[str, float]:
        """Return how far a trial is from being allowed, 0 or less if it is.

        Low divergence can be bought by a network that learned nothing, so no trial
        may predict less than age, sex, site and motion alone do.

        Args:
            auc: Of validation people.
            divergence: z, NaN if unknown.
            confounds_auc: Of the confounds alone, NaN if there is none.
        """
        found = {}
        if math.isfinite(confounds_auc):
            found["confounds"] = confounds_auc - auc
        if self.objective == "constrained":
            known = math.isfinite(divergence)
            found["divergence"] = divergence - self.tau if known else UNKNOWN
        return {name: x if math.isfinite(x) else UNKNOWN for name, x in found.items()}

    def why_not(self, auc: float, divergence: float, confounds_auc: float) -> str:
        """Say why a trial is not allowed; nothing if it is."""
        found = self.constraints(auc, divergence, confounds_auc)
        said = {
            "confounds": f"AUC {auc:.3f} is below the {confounds_auc:.3f} of confounds "
            "alone",
            "divergence": f"divergence {divergence:.2f} is above {self.tau:g}"
            if math.isfinite(divergence)
            else "its divergence is not known",
        }
        return "; ".join(said[name] for name, far in found.items() if far > 0)
