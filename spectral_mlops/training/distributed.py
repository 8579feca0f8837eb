"""One run on several processes, as ``torchrun`` starts them.

Every process makes the same plan, networks and batches from the same seeds. Of each
batch a process passes its own share; gradients are added up once per step of the
optimizer, so that every process takes the step of the whole batch and all keep the
same weights. Losses are divided by the mass of the whole step
(`Optimisation.masses`), hence shares may be of any size, none included, and a sum is
all that is needed. `DistributedDataParallel` averages instead, and wants a backward
pass through the same parameters everywhere. What the shares of a watched batch showed
is put together on the first process (`capture.take_in`).

The first process alone validates, passes the probe, compares, tracks and writes; the
others wait for its word after each epoch. Evaluation is a small part of the work, and
done by one it needs no rule for putting parts together.
"""

import gc
import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

# Its functions have the default group as the default of an argument. Imported while
# there is a group, by whatever needs it, it keeps that group's threads to the end of
# the interpreter, where one that lets go of a tensor aborts the process.
import torch.distributed.nn.functional  # noqa: F401
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from spectral_mlops.errors import InputError, ProcessError, SpectralError
from spectral_mlops.hooks import capture
from spectral_mlops.hooks.shares import Share

if TYPE_CHECKING:
    from spectral_mlops.training.fold import FoldRun
    from spectral_mlops.training.plan import Plan

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: the first one may compute nulls for hours.

One that has died is noticed at once.
"""


class Team:
    """The processes of a run; this class is a run of one.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process tracks, writes and speaks."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch, ``[n]``: shares differ by one at most.

        The first processes have the larger ones; an empty one is possible.
        """
        return batch.tensor_split(self.size)[self.rank]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what no process may fail at alone: an error on one ends all.

        Raises:
            ProcessError: If another process failed.
        """
        yield

    def join(self, seen: capture) -> None:
        """Put what all saw of a watched batch together, on the first process."""

    def add_gradients(self, model: nn.Module) -> None:
        """Add up what the processes have in ``.grad``; none stays none."""

    def total(self, own: float) -> float:
        """Add up a number."""
        return own

    def tell(self, word: T) -> T:
        """Return what the first process says."""
        return word

    def in_turn(self, make: Callable[[], T]) -> T:
        """Let all make the same, the first process before the others.

        It may write files that the others then find.

        Raises:
            ProcessError: If another process failed.
        """
        made: list[T] = []
        for mine in (self.first, not self.first):
            with self.together():
                if mine:
                    made.append(make())
        return made[0]

    def begin(self, networks: Sequence["FoldRun"], epoch: int) -> int:
        """Bring all to where the first process stands.

        Args:
            networks: The run's; of an epoch above 0, weights and optimizers are
                those of the first process.
            epoch: To begin with, on the first process.

        Returns:
            That epoch.
        """
        return epoch

    def check_plan(self, plan: "Plan") -> None:
        """Refuse a run whose processes see different people or settings.

        Raises:
            InputError: On all of them.
        """


class Processes(Team):
    """Several, of the default process group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `Team`."""
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        count = torch.tensor(int(failed is not None))
        self._add(count)
        if not count:
            return
        told = self._gather(None if failed is None else self._sentence(failed))
        self._end_in_order()
        if failed is not None:
            raise failed
        raise ProcessError(next(said for said in told if said is not None))

    def join(self, seen: capture) -> None:
        """See `Team`."""
        mine = None
        if not self.first and seen.labelling.size:
            mine = seen.share().to_bytes()
        told = self._gather(mine)
        if self.first:
            device = next(seen.model.parameters()).device
            for written in told:
                if written is not None:
                    seen.take_in(Share.from_bytes(written, device))

    def add_gradients(self, model: nn.Module) -> None:
        """See `Team`."""
        learning = [p for p in model.parameters() if p.requires_grad]
        has = torch.tensor([p.grad is not None for p in learning], dtype=torch.int32)
        self._add(has)
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter, number in zip(learning, has.tolist(), strict=True):
            if number:
                kind = parameter.dtype, parameter.device
                kinds.setdefault(kind, []).append(parameter)
        for parameters in kinds.values():
            flat = torch.cat([_gradient(p).flatten() for p in parameters])
            self._add(flat)
            pieces = flat.split([p.numel() for p in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def total(self, own: float) -> float:
        """See `Team`."""
        sum_ = torch.tensor(own, dtype=torch.float64)
        self._add(sum_)
        return float(sum_)

    def tell(self, word: T) -> T:
        """See `Team`."""
        told: list[Any] = [word]
        with self._alive():
            dist.broadcast_object_list(told, src=0)
        said: T = told[0]
        return said

    def begin(self, networks: Sequence["FoldRun"], epoch: int) -> int:
        """See `Team`."""
        written = io.BytesIO()
        if self.first and epoch:
            states = [
                (one.model.state_dict(), one.optimisation.state_dict())
                for one in networks
            ]
            torch.save(states, written)
        epoch, read = self.tell((epoch, written.getvalue()))
        if epoch and not self.first:
            states = torch.load(io.BytesIO(read), "cpu", weights_only=True)
            for one, (weights, optimisation) in zip(networks, states, strict=True):
                one.model.load_state_dict(weights)
                one.optimisation.load_state_dict(optimisation)
        return epoch

    def check_plan(self, plan: "Plan") -> None:
        """See `Team`."""
        settings = plan.config.model_dump_json(exclude={"tracking"})
        if len({*self._gather((plan.cohort.digest, settings))}) > 1:
            raise InputError(
                f"The {self.size} processes of this run see different people or "
                "settings: give all of them the same files and options."
            )

    def _sentence(self, error: Exception) -> str:
        said = str(error).strip() or type(error).__name__
        if not isinstance(error, SpectralError):
            said = f"{type(error).__name__}: {said} (its own output says where)"
        return f"Process {self.rank} of {self.size} (from 0) failed: {said}"

    def _add(self, x: Tensor) -> None:
        with self._alive():
            dist.all_reduce(x)

    def _gather(self, own: T) -> list[T]:
        told: list[Any] = [None] * self.size
        with self._alive():
            dist.all_gather_object(told, own)
        return told

    def _end_in_order(self) -> None:
        """Let the first process close its run before the others end.

        ``torchrun`` ends all processes as soon as one of them has.
        """
        if self.first:
            _ignore_signals()
            return
        with suppress(RuntimeError):  # which says that it has gone
            dist.barrier()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn the end of another process into a sentence."""
        try:
            yield
        except RuntimeError as error:
            if self.first:
                _ignore_signals()
            raise ProcessError(
                f"Another of the {self.size} processes of this run has ended, and "
                "with it the run."
            ) from error


@contextmanager
def joined(device: str) -> Iterator[tuple[Team, str]]:
    """Join the run that ``torchrun`` started this process for, if it did.

    Args:
        device: ``cpu`` or ``cuda``.

    Yields:
        The processes, and the device of this one: ``cuda:1``.

    Raises:
        InputError: If there are fewer GPUs here than processes.
    """
    if not started_by_torchrun():
        yield Team(), device
        return
    if device == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise InputError(
                f"--device cuda: process {local} of this machine has no GPU of its "
                f"own, there are {here}: start {here} processes."
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield Processes(), device
    dist.destroy_process_group()
    gc.collect()  # what holds it is let go of, and its threads end here


def started_by_torchrun() -> bool:
    """Whether ``torchrun`` started this process beside others."""
    known = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return known <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def check_separable(model: nn.Module) -> None:
    """Refuse a model that a batch in shares would change.

    Raises:
        InputError: If it has batch statistics, or keeps running ones.
    """
    for name, module in model.named_modules():
        running = isinstance(module, _NormBase) and module.track_running_stats
        if isinstance(module, _BatchNorm) or running:
            raise InputError(
                f"'{name}' ({type(module).__name__}) takes statistics over the batch, "
                "and each process has a share of it: choose model norm='layer' or "
                "'group', or start one process."
            )


def _gradient(parameter: nn.Parameter) -> Tensor:
    own = parameter.grad
    return torch.zeros_like(parameter) if own is None else own


def _ignore_signals() -> None:
    """Close a run in peace; what lasts longer than ``torchrun`` waits is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt_once(number: int, frame: object) -> None:
    """End as an interrupt does; ``torchrun`` passes on the one that all have had."""
    _ignore_signals()
    raise KeyboardInterrupt
