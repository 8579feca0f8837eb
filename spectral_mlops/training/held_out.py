"""Held-out people as they pass the networks: some at a time where volumes are large.

Nothing but a part is in memory: parts are made when they are asked for, and what is
taken over all people (mixtures of them, their Gram matrix) is summed over blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
import torch
from torch import Tensor

from spectral_mlops.models.padding import valid_steps
from spectral_mlops.probe import ProbeBatch
from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.batched import compress
from spectral_mlops.training.inputs import Inputs, ScaledPeople

BLOCK_BYTES = 128 * 2**20
"""Float64 inputs of people that may exist at once."""


class MixedPeople:
    """Mixtures of people, formed when they are asked for.

    Args:
        people: Whose inputs are mixed.
        mixing: Multiplied from the left, shape ``[n, n]``, float64.
    """

    def __init__(self, people: ScaledPeople, mixing: Tensor) -> None:
        self._people, self._mixing = people, mixing
        self._block, self._formed = -1, torch.empty(0)

    def __len__(self) -> int:
        return len(self._mixing)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return some mixtures, shape ``[len(index), *]``."""
        size = self._size
        parts = {block: self._of(block) for block in (index // size).unique().tolist()}
        return torch.stack([parts[i // size][i % size] for i in index.tolist()])

    @cached_property
    def _size(self) -> int:
        """People whose mixtures are formed together; all others are read for each."""
        return block_size(self._people)

    def _of(self, block: int) -> Tensor:
        """Mixtures of one block of people; the last block is kept."""
        if block != self._block:
            weights = self._mixing.split(self._size)[block]
            total: Tensor | None = None
            for index in torch.arange(len(self)).split(self._size):
                share = weights[:, index]
                if not share.any():
                    continue
                inputs = self._people[index]
                part = share.to(inputs.device) @ inputs.double().flatten(1)
                total = part if total is None else total.add_(part)
                shape, kind = inputs.shape[1:], inputs.dtype
            assert total is not None
            self._formed = total.view(len(weights), *shape).to(kind)
            self._block = block
        return self._formed


@dataclass(frozen=True, eq=False)
class HeldOut(Sequence[ProbeBatch]):
    """Batches of held-out people.

    Attributes:
        inputs: Of everybody, ``n`` of them.
        targets: Of everybody, shape ``[n]``.
        groups: Labels of everybody, by grouping.
        subjects: Ids.
        size: People a batch; all in one if None.
        at: Which people pass, positions.
    """

    inputs: Inputs | MixedPeople
    targets: Tensor
    groups: Mapping[str, Sequence[str]]
    subjects: Sequence[str]
    size: int | None
    at: Tensor

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> ProbeBatch: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[ProbeBatch]: ...

    def __getitem__(self, number: int | slice) -> ProbeBatch | Sequence[ProbeBatch]:
        """Make a batch, or several."""
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        at = self._parts[number]
        rows = at.tolist()
        return ProbeBatch(
            self.inputs[at],
            self.targets[at],
            {name: [labels[i] for i in rows] for name, labels in self.groups.items()},
            [self.subjects[i] for i in rows],
        )

    def chosen(
        self, rows: Sequence[int], groups: Mapping[str, Sequence[str]]
    ) -> "HeldOut":
        """Return some of the people, with other groups.

        Args:
            rows: Positions among everybody.
            groups: Labels of everybody, by grouping.
        """
        return replace(self, groups=groups, at=torch.tensor(rows, dtype=torch.int64))

    def mixed(self, mixing: Tensor) -> "HeldOut":
        """Return mixtures of people in their place.

        Args:
            mixing: Shape ``[n, n]``, float64; see `controls_people.surrogate_mixing`.
        """
        people = self.inputs
        if isinstance(people, Tensor):
            return replace(self, inputs=mix(mixing, people))
        assert isinstance(people, ScaledPeople)
        return replace(self, inputs=MixedPeople(people, mixing))

    def compressed(self) -> Tensor:
        """Return rows of everybody whose Gram is that of their inputs.

        Returns:
            Shape ``[n, k]``, float64, on the CPU: accurate to rounding where inputs are
            in memory; of those read in blocks, roots of the Gram itself.
        """
        people = self.inputs
        if isinstance(people, Tensor):
            return compress(people.detach().flatten(1).cpu())
        return drivers.root(gram_of(people).unsqueeze(0))[0]

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.at.split(self.size or max(1, len(self.at)))


def mix(mixing: Tensor, inputs: Tensor) -> Tensor:
    """Multiply people's rows from the left, in float64.

    Time courses keep their own lengths: a mixture is cut where the person's ends.

    Args:
        mixing: Shape ``[n, n]``.
        inputs: Shape ``[n, *]``.
    """
    rows = inputs.double().flatten(1)
    mixed = mixing.to(rows.device) @ rows
    mixed = mixed.reshape(inputs.shape).to(inputs.dtype)
    if inputs.ndim == 3:
        mixed = mixed * valid_steps(inputs).unsqueeze(-1)
    return mixed


def block_size(people: ScaledPeople | MixedPeople) -> int:
    """Return how many people's inputs in float64 make a block, at least one."""
    one = people[torch.tensor([0])].numel()
    return int(np.clip(BLOCK_BYTES // max(1, 8 * one), 1, len(people)))


def gram_of(people: ScaledPeople | MixedPeople) -> Tensor:
    """Sum up the Gram matrix of people's inputs over pairs of blocks.

    Returns:
        Shape ``[n, n]``, float64, on the CPU.
    """
    gram = torch.empty(len(people), len(people), dtype=torch.float64)
    blocks = torch.arange(len(people)).split(block_size(people))
    for number, one in enumerate(blocks):
        left = people[one].double().flatten(1)
        for other in blocks[number:]:
            right = left if other is one else people[other].double().flatten(1)
            part = (left @ right.mT).cpu()
            gram[one[:, None], other] = part
            gram[other[:, None], one] = part.mT
    return gram
