"""Where a run stands after an epoch, so that it can go on as if never interrupted.

One file, ``checkpoints/last.pt``, replaced as a whole: weights, optimizers and the
chosen checkpoints of all networks, and what the loop keeps from epoch to epoch. Random
numbers are drawn from seeds and the epoch alone, so no random state is in it. Reading
executes nothing (``weights_only=True``).
"""

import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.schedule import NullEpochs
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.history import History
from spectral_mlops.training.kept import plain, rebuilt
from spectral_mlops.training.plan import Plan

PLACE = "checkpoints/last.pt"
VERSION = 4
EVERY = 5.0
"""Seconds between checkpoints; writing one takes some hundredths of a second."""

Along = dict[int, list[Comparison]]


class Checkpoints:
    """Writes a run's checkpoint now and then, and reads it when the run goes on.

    Args:
        folder: The run's.
        plan: The run; a checkpoint of other people or settings is refused.
        every: Seconds between two, at least; 0 for every epoch.
        clock: Seconds.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = folder / PLACE
        self._of = {
            "version": VERSION,
            "cohort": plan.cohort.digest,
            "probe": plan.probe.digest if plan.probe else "none",
            "settings": _settings(plan),
        }
        self._every, self._clock = every, clock
        self._written = clock()

    def due(self) -> bool:
        """Return whether it is time for one."""
        return self._clock() - self._written >= self._every

    def save(
        self,
        epoch: int,
        networks: Sequence[FoldRun],
        null_epochs: NullEpochs,
        along: Along,
        history: History,
    ) -> None:
        """Write where the run stands.

        Args:
            epoch: The last one that is done, and logged.
            networks: All of them.
            null_epochs: As decided.
            along: Comparisons on the probe, by epoch, of all statistics.
            history: Curves and mean spectra so far.
        """
        state = self._of | {
            "epoch": epoch,
            "networks": [one.state_dict() for one in networks],
            "null_epochs": null_epochs.state_dict(),
            "history": history.state_dict(),
            "along": {number: plain(items) for number, items in along.items()},
        }
        self.path.parent.mkdir(exist_ok=True)
        new = self.path.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.path)
        self._written = self._clock()

    def load(
        self, networks: Sequence[FoldRun], null_epochs: NullEpochs, history: History
    ) -> tuple[int, Along]:
        """Bring networks to where they were.

        Returns:
            The epoch to go on with, and the comparisons of those before; 0 and none
            where nothing was written.

        Raises:
            InputError: If the file is damaged, or of another run.
        """
        if not self.path.exists():
            return 0, {}
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            said = str(error).strip().splitlines()[0]
            raise InputError(f"{self.path} cannot be read: {said}") from error
        for what, mine in self._of.items():
            if state.get(what) != mine:
                raise InputError(
                    f"{self.path} was written with another {what}: a run goes on with "
                    "the people and settings that it began with."
                )
        for one, stood in zip(networks, state["networks"], strict=True):
            one.load_state_dict(stood)
        null_epochs.load_state_dict(state["null_epochs"])
        history.load_state_dict(state["history"])
        along = {
            number: rebuilt(items, Comparison)
            for number, items in state["along"].items()
        }
        return state["epoch"] + 1, along

    def remove(self) -> None:
        """Remove it, when the run has come to its end."""
        self.path.unlink(missing_ok=True)


def _settings(plan: Plan) -> str:
    """Return what decides every number of a run; where it is tracked does not."""
    return plan.config.model_copy(update={"tracking": None}).model_dump_json(
        exclude={"tracking"}
    )
