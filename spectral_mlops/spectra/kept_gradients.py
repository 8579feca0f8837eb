"""Gradients as they are kept for a null: pairs of rows, or formed by person.

See `spectra.kept` for what a null needs of them.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.batched import (
    choose,
    cut,
    from_grams,
    in_chunks,
    rows_of_group,
    scaled_by_person,
    sub_blocks,
    svdvals,
    with_zero_row,
)
from spectral_mlops.spectra.kept import Spanning
from spectral_mlops.spectra.reduced import EPSILON
from spectral_mlops.spectra.solve import ACCURACY, GRAM_ROUNDING
from spectral_mlops.spectra.stacks import norm_bound


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
            values = from_grams((x @ x.mT if wide else x.mT @ x).flatten(0, 1))
            values = values.unflatten(0, x.shape[:2]).flatten(1)
            values = values.sort(-1, descending=True).values
            return cut(values, self.noise(part))

        return in_chunks(member, self._bytes_each(member), solve)

    def _matrix(self, member: Tensor) -> tuple[Tensor, Tensor]:
        return self.formed(member)[:, 0], self.noise(member)


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
        a, d = (with_zero_row(x) for x in (self.activation, self.adjoint))
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
        return in_chunks(index, 32 * max(1, m) ** 2, self._from_rows)

    def _from_rows(self, index: Tensor) -> Tensor:
        """See `spectra.solve`, whose routes these are.

        Args:
            index: Rows of the group, ``[P, m]``, padded by -1.
        """
        gram_a, gram_d = (sub_blocks(gram, index) for gram in self.grams)
        if not index.shape[1]:
            return gram_a.new_zeros(len(index), 0)
        lower = drivers.root(gram_a)
        values = from_grams(lower.mT @ gram_d @ lower)
        noise = (GRAM_ROUNDING * norm_bound(gram_a) * norm_bound(gram_d)).sqrt()
        lossy = noise > ACCURACY * values[:, 0]
        if lossy.any():
            a, d = (choose(x, index[lossy]) for x in (self.activation, self.adjoint))
            r_a, r_d = (torch.linalg.qr(x.mT, mode="r").R for x in (a, d))
            values[lossy] = svdvals(r_a @ r_d.mT)
            reach = torch.linalg.matrix_norm(r_a) * torch.linalg.matrix_norm(r_d)
            noise[lossy] = index.shape[1] * EPSILON * reach
        return cut(values, noise)

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
        return FormedGradients(scaled_by_person(self.parts, factors))

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
