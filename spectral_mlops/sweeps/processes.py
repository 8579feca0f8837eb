"""A worker of several processes, as ``torchrun`` starts them: they share each trial.

The first one alone takes tickets, draws, judges, stops and tells: it alone knows Optuna
and MLflow. The others hear each trial's settings from it, and pass their shares of its
batches (`training.distributed`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spectral_mlops.config import RunConfig, validate
from spectral_mlops.errors import ProcessError
from spectral_mlops.sweeps.draw import plan_with
from spectral_mlops.training import Plan, assist, make_plan
from spectral_mlops.training.distributed import Processes, Team
from spectral_mlops.training.loop import OnEpoch

if TYPE_CHECKING:
    from spectral_mlops.sweeps.sweep import Sweep

T = TypeVar("T")


class TrialProcesses(Processes):
    """The processes of a worker, as the first of them has them.

    Attributes:
        waiting: Whether the others wait for a trial's settings: as long as they do
            not, no trial can begin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waiting = True
        self._stop: Exception | None = None

    def begin_trial(self, plan: Plan, on_epoch: OnEpoch) -> OnEpoch:
        """Tell the others a trial's settings.

        Args:
            plan: Of the trial.
            on_epoch: Called after each epoch; what it raises stops the trial.

        Returns:
            What is to be called in its place: the others, which are at the next epoch
            by then, hear at that epoch's end that the trial is over.
        """

        def each_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            try:
                on_epoch(epoch, metrics)
            except Exception as error:
                if self.waiting:  # it was the last
                    raise
                self._stop = error

        self._stop, self.waiting = None, False
        super().tell(_settings(plan))
        return each_epoch

    def tell(self, word: T) -> T:
        """See `Team`; whether an epoch is the last is all that `train` tells by it."""
        if self._stop is not None:
            super().tell(True)
            self.waiting = True
            raise self._stop
        told = super().tell(word)
        self.waiting = told is True
        return told

    def check_waiting(self, error: Exception) -> None:
        """End the worker if a trial failed where the others cannot follow.

        Raises:
            ProcessError: With the trial's error.
        """
        if not self.waiting:
            raise ProcessError(
                f"A trial failed ({type(error).__name__}: {error}) in the midst of its "
                f"batches, and the {self.size} processes of its worker end with it: "
                "start them again."
            ) from error

    def end(self) -> None:
        """Tell the others that there are no more trials."""
        super().tell(None)


def first_of(team: Team, join: Callable[[], "Sweep"]) -> "Sweep":
    """Join a study as the first of a worker's processes; the others `assist_trials`.

    Args:
        team: The processes; one is enough.
        join: Opens the study.

    Raises:
        InputError: If another process sees other people; what ``join`` raises.
        ProcessError: If another process failed.
    """
    with team.together():
        sweep = join()
    team.tell(_settings(sweep.plan))
    with team.together():  # the others make their plans
        pass
    team.check_plan(sweep.plan)
    if team.size > 1:
        sweep.processes = TrialProcesses()
    return sweep


def assist_trials(team: Team, device: str) -> None:
    """Pass this process's shares of the batches of trials, until there are no more.

    Args:
        team: The processes; this is not the first.
        device: Where tensors of this process live.

    Raises:
        InputError: If this process sees other people than the first.
        ProcessError: If another process failed.
    """
    with team.together():  # the first joins the study
        pass
    settings = _hear(team)
    with team.together():
        plan = make_plan(_config(settings or {}), Path.cwd())
    team.check_plan(plan)
    while (settings := _hear(team)) is not None:
        assist(plan_with(plan, _config(settings)), device, team)


def was_left(error: Exception) -> bool:
    """Tell whether another process ended without a word: its trial did not fail."""
    # One that says why it failed has a sentence, and no cause here.
    return isinstance(error, ProcessError) and error.__cause__ is not None


def _hear(team: Team) -> Mapping[str, Any] | None:
    nothing: Mapping[str, Any] | None = None
    return team.tell(nothing)


def _settings(plan: Plan) -> dict[str, Any]:
    return plan.config.model_dump(mode="json")


def _config(settings: Mapping[str, Any]) -> RunConfig:
    return validate(RunConfig, settings, "the first process's settings")
