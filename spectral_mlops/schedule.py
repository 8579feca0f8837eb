"""Which training steps are watched, and which epochs have a null."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from math import ceil, inf

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


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return ``min(count, total)`` evenly spaced numbers from 0 below ``total``."""
    number = min(count, total)
    return [int(i) for i in np.arange(number) * total // max(number, 1)]
