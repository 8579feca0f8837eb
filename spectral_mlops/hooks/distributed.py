"""What the processes of a distributed run tell each other: objects and sums.

Nothing is exchanged while a batch is watched, only when a monitor is collected. Every
process of the group has to take part in each call here, in the same order.
"""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectral_mlops.errors import InputError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Ranks:
    """The processes that train one model together.

    Attributes:
        size: How many there are.
    """

    def __init__(self, group: Any = None) -> None:
        self.size: int = dist.get_world_size(group)
        self._group = group

    def gather(self, own: T) -> list[T]:
        """Return what every rank gave, in the order of ranks; the same on all."""
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, own, self._group)
        return told

    def add(self, own: Mapping[K, Tensor]) -> dict[K, Tensor]:
        """Sum tensors over the ranks, key by key; the same on all of them.

        The ranks first agree on the keys, so that one which is on a single rank keeps
        nobody waiting; a rank that lacks it adds zeros. What is not finite stays so.

        Args:
            own: float64, on the CPU; not written to.

        Returns:
            The sums, on the CPU, keys in the order in which ranks have them.

        Raises:
            InputError: If a key has tensors of different shapes; on every rank.
        """
        shapes: dict[K, torch.Size] = {}
        for found in self.gather({key: x.shape for key, x in own.items()}):
            for key, shape in found.items():
                if shapes.setdefault(key, shape) != shape:
                    raise InputError(
                        f"{key} is of shape {tuple(shapes[key])} on one rank and "
                        f"{tuple(shape)} on another: watch the same model on all."
                    )
        sums = {}
        for key, shape in shapes.items():
            total = torch.zeros(shape, dtype=torch.float64, device=self._device)
            if key in own:
                total.copy_(own[key])
            dist.all_reduce(total, group=self._group)
            sums[key] = total.cpu()
        return sums

    @property
    def _device(self) -> torch.device:
        """Where this group's backend takes tensors from; the CPU if it can."""
        backends = dist.get_backend_config(self._group)  # "cpu:gloo,cuda:nccl"
        kinds = [backend.partition(":")[0] for backend in backends.split(",")]
        return torch.device("cpu" if "cpu" in kinds else kinds[0])


def ranks_of(model: nn.Module) -> Ranks | None:
    """Return the processes a model is trained on, or ``None`` if this one is alone.

    Those of a `DistributedDataParallel`'s own group; of the whole run otherwise.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    parallel = isinstance(model, DistributedDataParallel)
    found = Ranks(model.process_group if parallel else None)
    return found if found.size > 1 else None
