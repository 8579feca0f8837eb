"""How a trial ended, as Optuna and MLflow are told."""

import json
from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from spectral_mlops.sweeps.stale import INTERRUPTED, why_failed

Status = Literal["FINISHED", "KILLED", "FAILED"]
RUN_STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}
"""How the state of a trial reads in MLflow, unless it was interrupted: KILLED."""
ERROR = "spectral.error"
TAKEN_OVER = "taken over: its worker was thought dead, and another tries it again"
SAID = 1000
"""Characters that are kept of an error."""


class TakenOver(Exception):
    """Another worker has this trial's ticket: going on would be of no use."""


@dataclass
class Ended:
    """How a trial ended; FAIL as long as nothing else is known.

    Attributes:
        state: Optuna's word.
        values: What a complete trial is worth.
        error: Why it failed; empty if it did not.
    """

    state: TrialState = TrialState.FAIL
    values: list[float] | None = None
    error: str = ""

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Ended":
        """Read how a trial of a study ended."""
        values = trial.values if trial.state == TrialState.COMPLETE else None
        return cls(trial.state, values, why_failed(trial) or "")

    @property
    def status(self) -> Status:
        """MLflow's word."""
        return "KILLED" if self.error == INTERRUPTED else RUN_STATUS[self.state]

    def tags(self) -> dict[str, str]:
        """Return what MLflow's page could not tell otherwise."""
        tags = {"optuna.state": self.state.name}
        if self.values is not None:
            tags["optuna.values"] = json.dumps(self.values)
        return tags | ({ERROR: self.error} if self.error else {})


def said(error: Exception) -> str:
    """Return an error as it is kept."""
    return f"{type(error).__name__}: {error}"[:SAID]
