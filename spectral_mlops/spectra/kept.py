"""What is kept of one layer for a null: the parts of people that groups are made of.

A relabelling only changes whose parts belong to a group, so nothing is passed
through the network again. Where rows are few they are kept, compressed to their own
rank, and a group is a sub-block of their Gram matrix; where they are many, each
person's Gram of columns or gradient is kept, and a group is a sum of them. Rows come
weighted so that people weigh the same; `Kept.scaled` gives them other weights. All
groups and relabellings share one scale, which is not always that of backpropagation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.batched import (
    at_once,
    choose,
    cut,
    from_grams,
    gram_floor,
    in_chunks,
    rows_of_group,
    scaled_by_person,
    sub_blocks,
    with_zero_row,
)


class Kept(ABC):
    """The parts of ``n`` people of one quantity at one layer."""

    @abstractmethod
    def spectra(self, member: Tensor) -> Tensor:
        """Singular values of a group under every relabelling.

        Args:
            member: Whether each person is in the group, boolean ``[P, n]``.

        Returns:
            Shape ``[P, R]``, float64, descending.
        """

    @abstractmethod
    def scaled(self, factors: Tensor) -> "Kept":
        """The same with each person's rows, of A and of Δ, times a factor.

        Args:
            factors: One per person, shape ``[n]``, float64.
        """

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""

    @property
    def finite(self) -> bool:
        """Whether every number is."""
        return all(bool(x.sum().isfinite()) for x in self.tensors)


class Spanning(Kept):
    """Parts of people of which groups have leading singular subspaces."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Number of independent maps, ``B``."""

    @abstractmethod
    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices of a group ``[P, k, m]`` in a basis common to all, of one block.

        And below what its singular values are rounding, ``[P]``.
        """

    @abstractmethod
    def _bytes_each(self, member: Tensor) -> int:
        """Bytes that one formed matrix needs while it is made."""

    def leading(self, member: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Leading singular values and left singular vectors, of a single block.

        Returns:
            Values ``[P, c]`` and vectors ``[P, k, c]`` with ``c`` at most
            ``count``; vectors of vanishing values are zero.
        """
        found = []
        for part in member.split(at_once(self._bytes_each(member))):
            x, noise = self._matrix(part)
            wide = x.shape[-2] <= x.shape[-1]
            squares, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
            values = cut(squares.clamp_min(0.0).sqrt().flip(-1), noise)
            values = values[:, :count]
            basis = vectors.flip(-1)[..., :count]
            if not wide:
                basis = x @ basis / values.masked_fill(values == 0, 1)[:, None]
            found.append((values, basis * (values > 0)[:, None]))
        return torch.cat([x for x, _ in found]), torch.cat([x for _, x in found])


@dataclass(frozen=True, eq=False)
class KeptRows(Spanning):
    """Rows of A or Δ.

    Attributes:
        rows: Compressed, shape ``[r, k]``.
        owner: Index of the person behind each row, shape ``[r]``.
    """

    rows: Tensor
    owner: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The rows."""
        return (self.rows,)

    def scaled(self, factors: Tensor) -> "KeptRows":
        """See `Kept`."""
        return KeptRows(self.rows * factors[self.owner].unsqueeze(1), self.owner)

    @cached_property
    def gram(self) -> Tensor:
        """Of all rows, and of one of zeros, ``[r + 1, r + 1]``."""
        x = with_zero_row(self.rows)
        return x @ x.mT

    def spectra(self, member: Tensor) -> Tensor:
        """From sub-blocks of the Gram, or Grams of columns if those are smaller."""
        index = rows_of_group(self.owner, member)
        m, k = index.shape[1], self.rows.shape[1]

        def solve(part: Tensor) -> Tensor:
            if m <= k:
                return from_grams(sub_blocks(self.gram, part))
            x = choose(self.rows, part)
            return from_grams(x.mT @ x)

        return in_chunks(index, 16 * m * m if m <= k else 8 * k * (m + 2 * k), solve)

    @property
    def blocks(self) -> int:
        """One."""
        return 1

    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        x = choose(self.rows, rows_of_group(self.owner, member))
        return x.mT, gram_floor(x)

    def _bytes_each(self, member: Tensor) -> int:
        r, k = self.rows.shape
        return 8 * (2 * r * k + min(r, k) ** 2)


@dataclass(frozen=True, eq=False)
class KeptColumns(Spanning):
    """Grams of each person's columns, shape ``[n, B, d, d]``."""

    grams: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The Grams."""
        return (self.grams,)

    def scaled(self, factors: Tensor) -> "KeptColumns":
        """See `Kept`."""
        return KeptColumns(scaled_by_person(self.grams, factors))

    def spectra(self, member: Tensor) -> Tensor:
        """A group's Gram is the sum of its people's."""

        def solve(part: Tensor) -> Tensor:
            blocks, d = self.grams.shape[1:3]
            grams = part.to(torch.float64) @ self.grams.flatten(1)
            values = from_grams(grams.view(-1, d, d)).view(len(part), blocks * d)
            return values.sort(-1, descending=True).values

        return in_chunks(member, 16 * self.grams[0].numel(), solve)

    @property
    def blocks(self) -> int:
        """``B``."""
        return self.grams.shape[1]

    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        total = member.to(torch.float64) @ self.grams.flatten(1)
        x = drivers.root(total.view(len(member), *self.grams.shape[2:]))
        return x, gram_floor(x)

    def _bytes_each(self, member: Tensor) -> int:
        return 32 * self.grams[0].numel()


@dataclass(frozen=True, eq=False)
class KeptCounts(Kept):
    """Weighted counts of each person's one-hot rows, shape ``[n, entries]``."""

    counts: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The counts."""
        return (self.counts,)

    def scaled(self, factors: Tensor) -> "KeptCounts":
        """See `Kept`."""
        return KeptCounts(scaled_by_person(self.counts, factors))

    def spectra(self, member: Tensor) -> Tensor:
        """One-hot columns are orthogonal: values are roots of their counts."""
        total = member.to(torch.float64) @ self.counts
        return total.sqrt().sort(-1, descending=True).values


@dataclass(frozen=True, eq=False)
class KeptLayer:
    """What is kept of one layer, by quantity, and why something is not.

    Attributes:
        name: Of the layer.
        kept: By quantity.
        reasons: One sentence per quantity that has nothing.
        rows: By quantity, how many rows each person has, shape ``[n]``.
    """

    name: str
    kept: Mapping[str, Kept] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def weighted(self, quantity: str, weighting: str) -> Kept | None:
        """What is kept of a quantity, with people or rows of equal weight.

        Args:
            quantity: Which.
            weighting: ``subjects``, as it is kept, or ``rows``.
        """
        part = self.kept.get(quantity)
        if part is None or weighting == "subjects":
            return part
        return part.scaled(self.rows[quantity].clamp(min=1).to(torch.float64).sqrt())
