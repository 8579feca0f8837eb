"""What is kept of one layer for a null: the parts of people that groups are made of.

A relabelling only changes whose parts belong to a group, so nothing is passed
through the network again. Where rows are few they are kept, compressed to their own
rank, and a group is a sub-block of their Gram matrix; where they are many, each
person's Gram of columns or gradient is kept, and a group is a sum of them. Rows come
weighted so that people weigh the same; `Kept.scaled` gives them other weights. All
groups and relabellings share one scale, which is not always that of backpropagation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.reduced import EPSILON, divide, safe_exponent
from spectral_mlops.spectra.solve import ACCURACY, GRAM_ROUNDING
from spectral_mlops.spectra.stacks import norm_bound

CHUNK_BYTES = 64 * 2**20


def compress(rows: Tensor) -> Tensor:
    """Return rows of as few columns as there are rows, with the same Gram matrix.

    With ``rowsᵀ = Q R`` these are ``Rᵀ``, accurate to rounding also where rows
    nearly cancel (a Gram's own root would lose half of the digits). Float64 rows of
    extreme size come divided by a power of two.

    Args:
        rows: Shape ``[r, d]``, finite.

    Returns:
        Shape ``[r, min(r, d)]``, float64, on the CPU.
    """
    x = divide(rows.detach(), safe_exponent(rows))
    if x.shape[1] <= x.shape[0]:
        return x.cpu()
    return torch.linalg.qr(x.mT, mode="r").R.mT.cpu()


def choose(rows: Tensor, index: Tensor) -> Tensor:
    """Gather rows; ``-1`` gathers a zero row.

    Args:
        rows: Shape ``[r, k]``.
        index: Integers, shape ``[P, m]``.

    Returns:
        Shape ``[P, m, k]``.
    """
    return _with_zero_row(rows)[index]


def rows_of_group(owner: Tensor, member: Tensor) -> Tensor:
    """Rows of the chosen people under each relabelling.

    Args:
        owner: Index of the person behind each row, shape ``[r]``.
        member: Whether each person is in the group, boolean ``[P, n]``.

    Returns:
        Row indices ``[P, m]``, padded by -1 to the largest group.
    """
    chosen = member[:, owner]  # [P, r]
    longest = int(chosen.sum(1).max()) if chosen.numel() else 0
    order = torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)[:, :longest]
    return order.masked_fill(~chosen.gather(1, order), -1)


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
        for part in member.split(_at_once(self._bytes_each(member))):
            x, noise = self._matrix(part)
            wide = x.shape[-2] <= x.shape[-1]
            squares, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
            values = _cut(squares.clamp_min(0.0).sqrt().flip(-1), noise)
            values = values[:, :count]
            basis = vectors.flip(-1)[..., :count]
            if not wide:
                basis = x @ basis / values.masked_fill(values == 0, 1)[:, None]
            found.append((values, basis * (values > 0)[:, None]))
        return torch.cat([x for x, _ in found]), torch.cat([x for _, x in found])


class KeptGradient(Spanning):
    """The people's gradients, as rows or formed."""

    @abstractmethod
    def formed(self, member: Tensor) -> Tensor:
        """Group gradients, ``[P, B, k_in, k_out]``, in a basis common to all."""

    @property
    @abstractmethod
    def inner(self) -> Tensor:
        """Inner products of people's gradients as vectors, ``[n, n]``."""

    @abstractmethod
    def noise(self, member: Tensor) -> Tensor:
        """Rounding of the entries of the formed group gradients, ``[P]``."""

    def formed_spectra(self, member: Tensor) -> Tensor:
        """Values of the formed matrices, from the Gram of their smaller side."""

        def solve(part: Tensor) -> Tensor:
            x = self.formed(part)
            wide = x.shape[-2] <= x.shape[-1]
            values = _from_grams((x @ x.mT if wide else x.mT @ x).flatten(0, 1))
            values = values.unflatten(0, x.shape[:2]).flatten(1)
            values = values.sort(-1, descending=True).values
            return _cut(values, self.noise(part))

        return _in_chunks(member, self._bytes_each(member), solve)

    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        return self.formed(member)[:, 0], self.noise(member)


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
        x = _with_zero_row(self.rows)
        return x @ x.mT

    def spectra(self, member: Tensor) -> Tensor:
        """From sub-blocks of the Gram, or Grams of columns if those are smaller."""
        index = rows_of_group(self.owner, member)
        m, k = index.shape[1], self.rows.shape[1]

        def solve(part: Tensor) -> Tensor:
            if m <= k:
                return _from_grams(_sub_blocks(self.gram, part))
            x = choose(self.rows, part)
            return _from_grams(x.mT @ x)

        return _in_chunks(index, 16 * m * m if m <= k else 8 * k * (m + 2 * k), solve)

    @property
    def blocks(self) -> int:
        """One."""
        return 1

    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        x = choose(self.rows, rows_of_group(self.owner, member))
        return x.mT, _gram_floor(x)

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
        return KeptColumns(_by_person(self.grams, factors))

    def spectra(self, member: Tensor) -> Tensor:
        """A group's Gram is the sum of its people's."""

        def solve(part: Tensor) -> Tensor:
            blocks, d = self.grams.shape[1:3]
            grams = part.to(torch.float64) @ self.grams.flatten(1)
            values = _from_grams(grams.view(-1, d, d)).view(len(part), blocks * d)
            return values.sort(-1, descending=True).values

        return _in_chunks(member, 16 * self.grams[0].numel(), solve)

    @property
    def blocks(self) -> int:
        """``B``."""
        return self.grams.shape[1]

    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        total = member.to(torch.float64) @ self.grams.flatten(1)
        x = drivers.root(total.view(len(member), *self.grams.shape[2:]))
        return x, _gram_floor(x)

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
        return KeptCounts(_by_person(self.counts, factors))

    def spectra(self, member: Tensor) -> Tensor:
        """One-hot columns are orthogonal: values are roots of their counts."""
        total = member.to(torch.float64) @ self.counts
        return total.sqrt().sort(-1, descending=True).values


@dataclass(frozen=True, eq=False)
class GradientRows(KeptGradient):
    """Rows of A and Δ that belong together.

    Attributes:
        activation: Compressed, shape ``[r, k_in]``.
        adjoint: Compressed, shape ``[r, k_out]``.
        owner: Index of the person behind each row, shape ``[r]``.
        people: Their number, ``n``.
    """

    activation: Tensor
    adjoint: Tensor
    owner: Tensor
    people: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Both factors."""
        return self.activation, self.adjoint

    def scaled(self, factors: Tensor) -> "GradientRows":
        """See `Kept`."""
        each = factors[self.owner].unsqueeze(1)
        a, d = self.activation * each, self.adjoint * each
        return GradientRows(a, d, self.owner, self.people)

    @property
    def blocks(self) -> int:
        """One."""
        return 1

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """``A Aᵀ`` and ``Δ Δᵀ`` of all rows, and of one of zeros."""
        a, d = (_with_zero_row(x) for x in (self.activation, self.adjoint))
        return a @ a.mT, d @ d.mT

    @cached_property
    def inner(self) -> Tensor:
        """From the entries' products of both Grams, added up by person."""
        a, d = (x[:-1, :-1] for x in self.grams)
        by_person = a.new_zeros(self.people, len(a)).index_add(0, self.owner, a * d)
        blank = a.new_zeros(self.people, self.people)
        return blank.index_add(1, self.owner, by_person)

    def spectra(self, member: Tensor) -> Tensor:
        """From two row Grams; from the formed matrix where that is smaller."""
        index = rows_of_group(self.owner, member)
        m = index.shape[1]
        if m > min(self.activation.shape[1], self.adjoint.shape[1]):
            return self.formed_spectra(member)
        return _in_chunks(index, 32 * max(1, m) ** 2, self._from_rows)

    def _from_rows(self, index: Tensor) -> Tensor:
        """See `spectra.solve`, whose routes these are.

        Args:
            index: Rows of the group, ``[P, m]``, padded by -1.
        """
        gram_a, gram_d = (_sub_blocks(gram, index) for gram in self.grams)
        if not index.shape[1]:
            return gram_a.new_zeros(len(index), 0)
        lower = drivers.root(gram_a)
        values = _from_grams(lower.mT @ gram_d @ lower)
        noise = (GRAM_ROUNDING * norm_bound(gram_a) * norm_bound(gram_d)).sqrt()
        lossy = noise > ACCURACY * values[:, 0]
        if lossy.any():
            a, d = (choose(x, index[lossy]) for x in (self.activation, self.adjoint))
            r_a, r_d = (torch.linalg.qr(x.mT, mode="r").R for x in (a, d))
            values[lossy] = _svdvals(r_a @ r_d.mT)
            reach = torch.linalg.matrix_norm(r_a) * torch.linalg.matrix_norm(r_d)
            noise[lossy] = index.shape[1] * EPSILON * reach
        return _cut(values, noise)

    def formed(self, member: Tensor) -> Tensor:
        """``A_gᵀ Δ_g`` in the basis of the compressed rows, ``[P, 1, k_in, k_out]``."""
        index = rows_of_group(self.owner, member)
        a, d = (choose(x, index) for x in (self.activation, self.adjoint))
        return (a.mT @ d).unsqueeze(1)

    def noise(self, member: Tensor) -> Tensor:
        """``r ε ‖A_g‖ ‖Δ_g‖``."""
        energy = [x.diagonal()[:-1] for x in self.grams]
        chosen = member[:, self.owner].to(torch.float64)
        reach = (chosen @ energy[0]).sqrt() * (chosen @ energy[1]).sqrt()
        return chosen.sum(1) * EPSILON * reach

    def _bytes_each(self, member: Tensor) -> int:
        k_in, k_out = self.activation.shape[1], self.adjoint.shape[1]
        small = min(k_in, k_out)
        return 8 * (len(self.owner) * (k_in + k_out) + k_in * k_out + small**2)


@dataclass(frozen=True, eq=False)
class FormedGradients(KeptGradient):
    """Each person's gradient, shape ``[n, B, d_in, d_out]``."""

    parts: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The gradients."""
        return (self.parts,)

    def scaled(self, factors: Tensor) -> "FormedGradients":
        """See `Kept`."""
        return FormedGradients(_by_person(self.parts, factors))

    @property
    def blocks(self) -> int:
        """``B``."""
        return self.parts.shape[1]

    @cached_property
    def inner(self) -> Tensor:
        """See `KeptGradient`."""
        flat = self.parts.flatten(1).to(torch.float64)
        return flat @ flat.mT

    def spectra(self, member: Tensor) -> Tensor:
        """A group's gradient is the sum of its people's."""
        return self.formed_spectra(member)

    def formed(self, member: Tensor) -> Tensor:
        """Sums of people's gradients, ``[P, B, d_in, d_out]``."""
        total = member.to(torch.float64) @ self.parts.flatten(1).to(torch.float64)
        return total.unflatten(1, self.parts.shape[1:])

    def noise(self, member: Tensor) -> Tensor:
        """``n ε Σ_i ‖G_i‖``."""
        chosen = member.to(torch.float64)
        return chosen.sum(1) * EPSILON * (chosen @ self.inner.diagonal().sqrt())

    def _bytes_each(self, member: Tensor) -> int:
        blocks, d_in, d_out = self.parts.shape[1:]
        return 8 * blocks * (d_in * d_out + min(d_in, d_out) ** 2)


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


def _by_person(parts: Tensor, factors: Tensor) -> Tensor:
    """Sums of products of two rows, ``[n, *]``, where each row has a factor."""
    shape = (-1,) + (1,) * (parts.ndim - 1)
    return parts * factors.square().view(shape).to(parts.dtype)


def _with_zero_row(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _sub_blocks(gram: Tensor, index: Tensor) -> Tensor:
    """Sub-blocks of a Gram whose last row is zero, ``[P, m, m]``."""
    return gram[index.unsqueeze(2), index.unsqueeze(1)]


def _from_grams(grams: Tensor) -> Tensor:
    """Descending roots of eigenvalues ``[b, m]``; under the Gram's floor, zero."""
    if not grams.numel():
        return grams.new_zeros(grams.shape[:-1])
    squares, _ = drivers.eigenvalues(grams)
    values = squares.clamp_min(0.0).sqrt().flip(-1)
    return _cut(values, (values.shape[1] * EPSILON) ** 0.5 * values[:, 0])


def _gram_floor(matrices: Tensor) -> Tensor:
    """Below what singular values from a Gram are rounding, ``[P]``."""
    reach = torch.linalg.matrix_norm(matrices)
    return (min(matrices.shape[-2:]) * EPSILON) ** 0.5 * reach


def _cut(values: Tensor, floor: Tensor) -> Tensor:
    """Store values under the floor as zero."""
    return values.masked_fill(values < floor.unsqueeze(-1), 0.0)


def _svdvals(matrices: Tensor) -> Tensor:
    try:
        return torch.linalg.svdvals(matrices)
    except drivers.FAILURES:
        return torch.stack([drivers.singular_values(x) for x in matrices])


def _at_once(bytes_each: int) -> int:
    return max(1, CHUNK_BYTES // max(1, bytes_each))


def _in_chunks(x: Tensor, bytes_each: int, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Solve some relabellings at a time."""
    return torch.cat([solve(part) for part in x.split(_at_once(bytes_each))])
