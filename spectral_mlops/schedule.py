"""Which training steps are watched, decided by epoch, step and number of steps."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from spectral_mlops.errors import InputError


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


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return ``min(count, total)`` evenly spaced numbers from 0 below ``total``."""
    number = min(count, total)
    return [int(i) for i in np.arange(number) * total // max(number, 1)]
