"""Which training steps are watched, and which epochs have a null."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil, inf
from typing import Any

import numpy as np

from spectral_mlops.errors import InputError

NEGLIGIBLE = 0.25
"""Seconds per epoch that a null may always take: small networks would else show
hardly more of it than a beginning and an end."""


class Schedule(ABC):
    """Decides which steps are watched."""

    @abstractmethod
    def watches(self, epoch: int, step: int, steps: int | None) -> bool:
        """Return whether a step is watched.

        Args:
            epoch: Counted from 0.
            step: Within the epoch, counted from 0.
            steps: Number of steps of the epoch, if it was announced.
        """


class EveryNth(Schedule):
    """Steps 0, n, 2n, … of each epoch."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise InputError(f"every={n}: must be at least 1 (watch each n-th step).")
        self.n = n

    def watches(self, epoch: int, step: int, steps: int | None) -> bool:
        """Return whether the step is a multiple of ``n``."""
        return step % self.n == 0


class EvenlySpaced(Schedule):
    """``count`` evenly spaced steps of each epoch, all where it has fewer."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise InputError(f"EvenlySpaced({count}): must be at least 1 step.")
        self.count = count

    def watches(self, epoch: int, step: int, steps: int | None) -> bool:
        """Return whether the step is one of the chosen.

        Raises:
            InputError: If the number of steps was not announced.
        """
        if steps is None:
            raise InputError(
                "An evenly spaced schedule must know the number of steps: call "
                "monitor.begin_epoch(epoch, steps=len(loader)) before the epoch."
            )
        return step in evenly_spaced(self.count, steps)


class Decided(Schedule):
    """Whatever a user's function of ``(epoch, step)`` says."""

    def __init__(self, decision: Callable[[int, int], bool]) -> None:
        self.decision = decision

    def watches(self, epoch: int, step: int, steps: int | None) -> bool:
        """Ask the function."""
        return bool(self.decision(epoch, step))


class TimeBudget(Schedule):
    """Watch as long as that takes less than a share of all time.

    Args:
        share: Time spent watching over the time since the first step.
    """

    def __init__(self, share: float = 0.05) -> None:
        self.share = share
        self.spent = 0.0
        self._start: float | None = None

    def watches(self, epoch: int, step: int, steps: int | None) -> bool:
        """Return whether the time spent so far leaves room; the first step does."""
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        return self.spent <= self.share * (now - self._start)


class NullEpochs:
    """Which epochs have a null: the first, the last, and as many as time allows.

    The first epoch is measured, and every k-th has a null from then on: the smallest k
    whose nulls take no more than their budget. k is decided once; with `state_dict` a
    resumed run has the epochs that it would have had.

    Args:
        epochs: Number of epochs of the run.
        budget: Share of the epochs' time that nulls may take, but `NEGLIGIBLE` at
            least; 0 leaves the first and the last epoch.
        fixed: The epochs themselves, whatever they cost, instead of a budget.

    Attributes:
        every: k, at most ``epochs``; ``None`` before it is decided, and where the
            epochs are fixed.
    """

    def __init__(
        self, epochs: int, budget: float, fixed: Iterable[int] | None = None
    ) -> None:
        self.epochs, self.budget = epochs, budget
        self.fixed = None if fixed is None else frozenset(fixed)
        self.every: int | None = None

    def __contains__(self, epoch: int) -> bool:
        if self.fixed is not None:
            return epoch in self.fixed
        due = self.every is not None and epoch % self.every == 0
        return due or epoch in (0, self.epochs - 1)

    def decide(self, null_seconds: float, epoch_seconds: float) -> None:
        """Decide k, unless it is decided or the epochs are fixed.

        Args:
            null_seconds: What the null of an epoch took.
            epoch_seconds: What the epoch took without it.
        """
        if self.every is not None or self.fixed is not None:
            return
        room = max(self.budget * epoch_seconds, NEGLIGIBLE) if self.budget else 0.0
        every = null_seconds / room if room else inf
        self.every = max(1, ceil(min(every, self.epochs)))

    def state_dict(self) -> dict[str, int | None]:
        """What resuming needs."""
        return {"every": self.every}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Go on where `state_dict` was taken."""
        self.every = state["every"]


class Steps:
    """Where a training run stands, and which of its steps are watched.

    Args:
        schedule: Decides within the epochs.
        epochs: The only ones with watched steps; all if ``None``.

    Attributes:
        epoch: Counted from 0.
        step: Number of steps of the epoch so far.
    """

    def __init__(self, schedule: Schedule, epochs: Iterable[int] | None) -> None:
        self.schedule = schedule
        self.epoch, self.step = 0, 0
        self._steps: int | None = None
        self._epochs = None if epochs is None else frozenset(epochs)

    def begin_epoch(self, epoch: int, steps: int | None = None) -> None:
        """Count from here on; ``steps`` is the number to come, if it is known."""
        self.epoch, self.step, self._steps = epoch, 0, steps

    def next(self) -> bool:
        """Count one more step, and return whether it is watched."""
        step, self.step = self.step, self.step + 1
        if self._epochs is not None and self.epoch not in self._epochs:
            return False
        return self.schedule.watches(self.epoch, step, self._steps)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is done inside as time spent watching, unless it fails."""
        began = time.perf_counter()
        yield
        if isinstance(self.schedule, TimeBudget):
            self.schedule.spent += time.perf_counter() - began

    def state_dict(self) -> dict[str, int | None]:
        """What resuming needs."""
        return {"epoch": self.epoch, "step": self.step, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch, self.step = state["epoch"], state["step"]
        self._steps = state["steps"]


def read_schedule(
    every: int | str, schedule: Schedule | Callable[[int, int], bool] | None
) -> Schedule:
    """Return the schedule that a user's settings stand for.

    Args:
        every: Watch each n-th step, or ``"auto"``.
        schedule: Instead of it, if given.

    Raises:
        InputError: If they stand for none.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule is not None:
        if not callable(schedule):
            raise InputError(f"{schedule=}: a Schedule or a function (epoch, step).")
        return Decided(schedule)
    if every == "auto":
        return TimeBudget()
    if not isinstance(every, int):
        raise InputError(f"{every=}: a number of steps, or 'auto'.")
    return EveryNth(every)


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return ``min(count, total)`` evenly spaced numbers from 0 below ``total``."""
    number = min(count, total)
    return [int(i) for i in np.arange(number) * total // max(number, 1)]
