"""Watched batches on their way to spectra."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.distributed import Ranks
from spectral_mlops.hooks.measure import ReducedBatch, reduce_batches, spectra_of
from spectral_mlops.hooks.window import Window
from spectral_mlops.observe import observe
from spectral_mlops.records import Spectrum
from spectral_mlops.spectra.reduced import Reduced
from spectral_mlops.spectra.solver import Solver
from spectral_mlops.validity import Observed

TOGETHER_BYTES = 8 * 2**20
"""Rows of several batches that are reduced in one go; they are copied once for it."""


class WatchedBatch:
    """A watched batch on its way to spectra.

    Attributes:
        batch: What is left once its rows are reduced.
        nbytes: What is kept alive until then.
        may_wait: Whether another thread may reduce it while training goes on.
        number: Which of the batches it is that a null is formed of, if it is one.
        seen: What was kept for that null.
        measurable: Its rows; gone after `let_go`.
    """

    number: int | None = None
    seen: Observed | None = None

    def __init__(self, captured: capture, pooled: bool, step: int) -> None:
        self.measurable = captured.measurable(pooled, step)
        self.batch = ReducedBatch()
        self.nbytes = sum(
            rows.nbytes for layer in self.measurable.layers for _, rows in layer.calls
        )
        on_cpu = all(not p.is_cuda for p in captured.model.parameters())
        self.may_wait = captured.lasts and on_cpu
        self._captured = captured

    def unchanged(self) -> bool:
        """Whether its rows are as they were; somebody may have kept a tensor."""
        return self._captured.unchanged()

    def let_go(self) -> None:
        """Keep no row alive."""
        del self.measurable, self._captured

    def observe(self) -> None:
        """Keep what a null needs, if it is formed of this batch."""
        if self.number is not None:
            self.seen = observe(self.measurable, trained_on=True, number=self.number)


def reduce(batches: Sequence[WatchedBatch]) -> list[Reduced]:
    """Reduce the rows of batches together, and let go of them.

    Returns:
        What is to be solved; marked where a batch was written to.
    """
    with torch.no_grad():
        problems, reduced = reduce_batches([one.measurable for one in batches])
    for one in batches:
        one.observe()
    whole = all(one.unchanged() for one in batches)
    if not whole and len(batches) > 1:  # whose problems are whose?
        return [problem for one in batches for problem in reduce([one])]
    for one, own in zip(batches, reduced, strict=True):
        one.batch = own
        one.let_go()
    if whole:
        return problems
    batches[0].seen = None
    return [replace(one, status="failed") for one in problems]


class Waiting:
    """Batches that wait to be reduced together, by whichever thread comes first."""

    def __init__(self) -> None:
        self._batches: deque[WatchedBatch] = deque()

    def add(self, batch: WatchedBatch) -> None:
        """Append one."""
        self._batches.append(batch)

    def reduce(self) -> list[Reduced]:
        """Reduce all that waits; another thread may have taken it already."""
        problems: list[Reduced] = []
        while some := self._take():
            problems += reduce(some)
        return problems

    def _take(self) -> list[WatchedBatch]:
        """Take as many as may be reduced in one go."""
        taken: list[WatchedBatch] = []
        with suppress(IndexError):
            while sum(one.nbytes for one in taken) < TOGETHER_BYTES:
                taken.append(self._batches.popleft())
        return taken


class Backlog:
    """Watched batches between two calls of `collect`.

    Args:
        pooled: Whether to measure all samples together, too.
        null_batches: Number of batches that a null is formed of.
        window: Adds batches up, where one spectrum is wanted of all of them.
    """

    def __init__(self, pooled: bool, null_batches: int, window: Window | None) -> None:
        self.window = window
        self.solver = Solver()
        self.observed: list[WatchedBatch] = []
        self._pooled, self._null_batches = pooled, null_batches
        self._pending: list[WatchedBatch] = []
        self._waiting = Waiting()
        self._batches = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy has seen nothing yet."""
        return self.__dict__ | {
            "observed": [],
            "_pending": [],
            "_waiting": Waiting(),
            "_batches": 0,
        }

    def add(self, captured: capture, step: int) -> None:
        """Take in what a step showed; it is solved beside training where that can be.

        Raises:
            CaptureError: If no backward pass happened in it.
        """
        batch = WatchedBatch(captured, self._pooled, step)
        number = len(self.observed)
        if number < self._null_batches:
            batch.number = number
            self.observed.append(batch)
        if self.window is not None:
            batch.observe()
            self.window.add(batch.measurable)
            batch.let_go()
        else:
            self._pending.append(batch)
            if batch.may_wait and self.solver.beside(batch.nbytes):
                self._waiting.add(batch)
                self.solver.submit(self._waiting.reduce, batch.nbytes)
            else:
                self.solver.submit(reduce([batch]))
        self._batches += 1

    def join(self, ranks: Ranks) -> None:
        """Count what all ranks watched, and share their windows; collective."""
        self._batches = sum(ranks.gather(self._batches))
        if self.window is not None:
            self.window.join(ranks)

    def take(self) -> tuple[list[Spectrum], list[Observed], int]:
        """Return spectra, what nulls are formed of, and the number of batches.

        Nothing of them stays. Waits for what is still to be solved.
        """
        pending, self._pending = self._pending, []
        kept, self.observed = self.observed, []
        batches, self._batches = self._batches, 0
        solved = self.solver.drain()
        seen = [one.seen for one in kept if one.seen is not None]
        if self.window is not None:
            return self.window.spectra(), seen, batches
        return spectra_of([one.batch for one in pending], solved), seen, batches
