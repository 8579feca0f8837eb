"""Who belongs to which group, prepared once per batch for all layers.

Groups may overlap (several labellings, and the pooled group beside them). Products
of few rows are made per group; products of many rows are made once per *cell* (the
samples that share all their labels) and added up, so that a row is read once
however many groups it is in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

SIMILAR = 0.75
"""Groups are padded to one stack down to this share of the largest one's size."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Groups of similar size, padded to the size of the largest.

    Attributes:
        groups: Their positions.
        samples: Shape ``[G, n]``; where a group has fewer, index 0 stands.
        sizes: Number of samples of each.
    """

    groups: tuple[int, ...]
    samples: Tensor
    sizes: tuple[int, ...]

    @cached_property
    def even(self) -> bool:
        """Whether nothing is padded."""
        return min(self.sizes) == max(self.sizes)

    @cached_property
    def padding(self) -> Tensor:
        """Where a sample only fills up, boolean ``[G, n]``."""
        n = self.samples.shape[1]
        return torch.arange(n) >= torch.tensor(self.sizes)[:, None]

    def rows(self, positions: int, device: torch.device) -> Tensor:
        """Rows of the samples, ``positions`` each, shape ``[G, n·positions]``."""
        key = (positions, device)
        if key not in self._rows:
            offsets = torch.arange(positions)
            rows = (self.samples[:, :, None] * positions + offsets).flatten(1)
            self._rows[key] = rows.to(device)
        return self._rows[key]

    def piece(self, start: int, stop: int, device: torch.device) -> "Piece":
        """Return columns ``start`` to ``stop`` of `samples`, flat, on a device."""
        key = (start, stop, device)
        if key not in self._pieces:
            samples = self.samples[:, start:stop].flatten().to(device)
            padding = None
            if not self.even:
                padding = self.padding[:, start:stop].flatten().nonzero()[:, 0]
                padding = padding.to(device) if len(padding) else None
            self._pieces[key] = Piece(samples, padding)
        return self._pieces[key]

    @cached_property
    def _rows(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    @cached_property
    def _pieces(self) -> dict[tuple[int, int, torch.device], "Piece"]:
        return {}


@dataclass(frozen=True, eq=False)
class Piece:
    """Samples to gather, shape ``[G·n]``, and which of them are padding."""

    samples: Tensor
    padding: Tensor | None


class Groups:
    """The groups of one batch.

    Args:
        size: Number of samples in the batch, ``N``.
        members: Per group its samples, integers ``[n_g]`` in any order, each at
            most once; None for all samples. A group may be empty.

    Attributes:
        batches: Number of samples of each batch, where several stand side by side.
    """

    def __init__(self, size: int, members: Sequence[Tensor | None]) -> None:
        everyone = torch.arange(size)
        self.size = size
        self.members = tuple(
            everyone if m is None else m.detach().to("cpu", torch.int64)
            for m in members
        )
        self.counts = tuple(len(m) for m in self.members)
        self.batches = [size]
        self._stacks: dict[tuple[int, ...], list[Stack]] = {}
        self._disjoint: dict[tuple[int, ...], bool] = {}
        self._cells: dict[tuple[int, ...], Cells] = {}

    @classmethod
    def joined(cls, several: Sequence["Groups"]) -> "Groups":
        """Put batches side by side, groups in the order of the batches."""
        sizes = [one.size for one in several]
        starts = [0, *accumulate(sizes)]
        members = [
            group + start
            for one, start in zip(several, starts, strict=False)
            for group in one.members
        ]
        both = cls(starts[-1], members)
        both.batches = sizes
        return both

    def stacks(self, chosen: tuple[int, ...]) -> list[Stack]:
        """Return the chosen groups, none of them empty, in stacks of similar size."""
        if chosen not in self._stacks:
            self._stacks[chosen] = list(self._stack(chosen))
        return self._stacks[chosen]

    def _stack(self, chosen: tuple[int, ...]) -> list[Stack]:
        ordered = sorted(chosen, key=lambda g: -self.counts[g])
        runs: list[list[int]] = []
        for g in ordered:
            if runs and self.counts[g] >= SIMILAR * self.counts[runs[-1][0]]:
                runs[-1].append(g)
            else:
                runs.append([g])
        return [self._padded(sorted(run)) for run in runs]

    def _padded(self, run: list[int]) -> Stack:
        members = [self.members[g] for g in run]
        samples = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
        return Stack(tuple(run), samples, tuple(self.counts[g] for g in run))

    def disjoint(self, chosen: tuple[int, ...]) -> bool:
        """Whether no sample is in two of the chosen groups."""
        if chosen not in self._disjoint:
            together = torch.cat([self.members[g] for g in chosen])
            fit = len(chosen) == 1 or len(together) <= self.size
            self._disjoint[chosen] = fit and int(together.bincount().max()) <= 1
        return self._disjoint[chosen]

    def cells(self, chosen: tuple[int, ...]) -> "Cells":
        """Return disjoint groups that the chosen groups are sums of."""
        if chosen not in self._cells:
            self._cells[chosen] = self._refine(chosen)
        return self._cells[chosen]

    def _refine(self, chosen: tuple[int, ...]) -> "Cells":
        belongs = torch.zeros(self.size, len(chosen), dtype=torch.bool)
        for column, g in enumerate(chosen):
            belongs[self.members[g], column] = True
        used = belongs.any(1).nonzero()[:, 0]
        patterns, cell = belongs[used].unique(dim=0, return_inverse=True)
        members = [used[cell == c] for c in range(len(patterns))]
        parts = [patterns[:, column].nonzero()[:, 0] for column in range(len(chosen))]
        return Cells(Groups(self.size, members), parts)


@dataclass(frozen=True, eq=False)
class Cells:
    """Disjoint groups, and the cells that each of the chosen groups is made of.

    Attributes:
        groups: The cells, all of them together.
        parts: Per chosen group, the positions of its cells.
    """

    groups: Groups
    parts: list[Tensor]
