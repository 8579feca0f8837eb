"""Ways of taking the same training steps: unwatched, watched, by the reference.

All start from the same weights, see the same batches in the same order and take
the same optimizer steps; only what is done around forward and backward differs.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

import torch
from torch import Tensor, nn

from experiments.benchmarks.cases import BATCHES, Case
from spectral_mlops import SpectralMonitor
from tests.reference import ReferenceMethod

EPOCH = 200
"""Steps of an epoch at the default schedule."""

SCHEDULED = frozenset(range(0, EPOCH, EPOCH // 8))
"""The default schedule: 8 evenly spaced steps of an epoch."""

LEARNING_RATE = 1e-6
"""So small that adjoints neither vanish nor blow up however long time is taken."""


class Unwatched:
    """Plain training steps.

    Args:
        case: What is trained.
        device: Where.
        autocast: Lower precision of the forward pass; full precision if ``None``.
    """

    share = 1.0
    """Steps taken, as a share of the unwatched ones: very slow ways take fewer."""

    def __init__(
        self, case: Case, device: str = "cpu", autocast: torch.dtype | None = None
    ) -> None:
        self.case = case
        self.model = case.model(device)
        self.batches = case.data(device)
        self.labels = case.labels()
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.counter = count()
        self.forward: Callable[[], AbstractContextManager[object]] = nullcontext
        if autocast is not None:
            self.forward = lambda: torch.autocast(device, autocast)

    def step(self) -> None:
        """Forward, backward and optimizer step on the next batch."""
        inputs, targets = self.batches[next(self.counter) % BATCHES]
        self.optimizer.zero_grad()
        with self.around():
            self.differentiate(inputs, targets)
        self.optimizer.step()

    def around(self) -> AbstractContextManager[object]:
        """What forward and backward are put into."""
        return nullcontext()

    def differentiate(self, inputs: Tensor, targets: Tensor) -> None:
        """Forward and backward."""
        with self.forward():
            loss = self.loss(self.model(inputs), targets)
        loss.backward()

    def finish(self) -> None:
        """What is due at the end of a window."""


class Watched(Unwatched):
    """Every step watched: all three quantities, all groups, not the pooled one.

    Adjoints and gradients of recurrent and attention layers per gate and head.
    """

    schedule: Callable[[int, int], bool] | None = None

    def __init__(
        self, case: Case, device: str = "cpu", autocast: torch.dtype | None = None
    ) -> None:
        super().__init__(case, device, autocast)
        self.monitor = SpectralMonitor(
            self.model,
            every=1,
            schedule=self.schedule,
            pooled=False,
            gates="apart",
            null_batches=0,
        )

    def around(self) -> AbstractContextManager[object]:
        """Watch, if the step is scheduled."""
        return self.monitor.watch(self.labels)

    def finish(self) -> None:
        """Collect: solves put off until now count as well."""
        self.monitor.collect()


class Scheduled(Watched):
    """`SCHEDULED` steps of each epoch watched."""

    @staticmethod
    def schedule(epoch: int, step: int) -> bool:
        """Return whether a step is one of the chosen."""
        return step in SCHEDULED


class Reference(Unwatched):
    """Every step by the reference method, which knows linear layers only."""

    share = 0.1

    @contextmanager
    def around(self) -> Iterator[None]:
        """Hooks for factors, then masks, products and full decompositions."""
        with ReferenceMethod(self.model, self.labels) as reference:
            yield
        reference.spectra()


def identical(a: Unwatched, b: Unwatched) -> bool:
    """Whether two ways of training arrived at the very same weights and buffers."""
    one, other = a.model.state_dict(), b.model.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )
