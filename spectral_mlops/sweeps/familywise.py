"""Trials together: p over all of them, from the relabellings that they share."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from spectral_mlops.inference.significance import Array, p_max_t, p_value
from spectral_mlops.inference.upper_bound import upper_bound
from spectral_mlops.training.outcome import outcome_of
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.result import RunResult

ATTRIBUTE = "null"
DIGITS = 5
"""Kept of each z: a user attribute is a text in a database."""


@dataclass(frozen=True, eq=False)
class TrialNull:
    """A finished run's primary z under the observed labels and every relabelling.

    The run's artifact ``null.parquet`` has the statistics of each layer that it was
    formed from.

    Attributes:
        values: Shape ``[P + 1]``, the observed z first.
        relabellings: Digest of which relabellings of whom; equal ones are the same.
    """

    values: Array
    relabellings: str

    @classmethod
    def of(cls, plan: Plan, result: RunResult) -> "TrialNull | None":
        """Return that of a run, ``None`` if it has no z."""
        outcome = outcome_of(result.null, plan.primary_quantity, plan.primary)
        if not np.isfinite(outcome.z):
            return None
        whom = [outcome.null, outcome.strata, *(plan.probe.ids if plan.probe else ())]
        digest = hashlib.sha256("\n".join(whom).encode()).hexdigest()
        return cls(outcome.values, digest[:16])

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> "TrialNull | None":
        """Read that of a trial's user attributes, ``None`` if there is none."""
        kept = attributes.get(ATTRIBUTE)
        if kept is None:
            return None
        return cls(np.array(kept["z"], dtype=float), str(kept["relabellings"]))

    def attributes(self) -> dict[str, Any]:
        """Return it as user attributes hold it; JSON has no NaN."""
        z = [round(x, DIGITS) if np.isfinite(x) else None for x in self.values.tolist()]
        return {ATTRIBUTE: {"z": z, "relabellings": self.relabellings}}

    @property
    def p(self) -> float:
        """Share of relabellings that reach the observed z; of this run by itself."""
        return float(p_value(self.values))

    @property
    def upper(self) -> float:
        """Upper bound of the divergence (`inference.upper_bound`)."""
        return upper_bound(self.values)


def finished_null(trial: FrozenTrial) -> TrialNull | None:
    """Return what a trial that finished adds to the maximum over trials."""
    done = trial.state == TrialState.COMPLETE
    return TrialNull.read(trial.user_attrs) if done else None


def p_over_trials(nulls: Iterable[TrialNull | None]) -> tuple[list[float], str]:
    """Adjust each trial's p for all trials, by the maximum over trials.

        ``p_t = (1 + #{b: max_s z_sb ≥ z_t}) / (1 + P)``

    Every relabelling is applied to all trials at once, so that trials that resemble
    each other cost little (Westfall & Young 1993). The chance that any trial has
    ``p ≤ α`` where no network's groups differ is at most α, if the choice of networks
    owes nothing to the probe.

    Args:
        nulls: Of each trial; ``None`` takes no part.

    Returns:
        p of each trial, NaN where it takes no part; and whom that was for. Trials
        under other relabellings than most take no part.
    """
    listed = list(nulls)
    p = [float("nan")] * len(listed)
    kinds = [(x.relabellings, len(x.values)) for x in listed if x is not None]
    if not kinds:
        return p, ""
    most = max(kinds, key=kinds.count)
    taking = [
        (place, one)
        for place, one in enumerate(listed)
        if one is not None and (one.relabellings, len(one.values)) == most
    ]
    found = p_max_t(np.stack([one.values for _, one in taking], axis=1))
    for (place, _), value in zip(taking, found.tolist(), strict=True):
        p[place] = value
    others = len(kinds) - len(taking)
    if not others:
        return p, ""
    return p, f"{others} trials with other relabellings have no p over trials."
