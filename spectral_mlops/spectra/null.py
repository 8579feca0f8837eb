"""Spectra of relabelled groups, from the factors captured once.

A relabelling only changes which rows belong to a group, so nothing is passed
through the network again: rows are compressed once to their own rank (same Gram
matrix, hence the same singular values for every choice of rows), and the chosen
rows of all relabellings are solved in batched calls. Rows that are not there
(``-1``) are zero rows, which change no singular value; relabellings may so have
groups of unequal size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.spectra.singular import (
    factor_singular_values,
    gradient_singular_values,
)

MAX_ROWS = 2048
"""Rows above which the Gram of all rows is too dear; the value stands alone."""
CHUNK_BYTES = 64 * 2**20


def compress(rows: Tensor) -> Tensor:
    """Return rows of as few columns as there are rows, with the same Gram matrix.

    With ``rowsᵀ = Q R`` these are ``Rᵀ``, accurate to rounding also where rows
    nearly cancel (a Gram's own root would lose half of the digits).

    Args:
        rows: Shape ``[r, d]``, finite.

    Returns:
        Shape ``[r, min(r, d)]``, float64, on the CPU.
    """
    x = rows.detach().to(torch.float64)
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
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded[index]


def relabelled_spectra(
    quantity: str, activation: Tensor, adjoint: Tensor, index: Tensor
) -> Tensor:
    """Singular values of one group under every relabelling.

    Args:
        quantity: ``gradient``, ``activation`` or ``adjoint``.
        activation: Compressed rows of A, shape ``[r, k_in]``.
        adjoint: Compressed rows of Δ, shape ``[r, k_out]``.
        index: Rows of the group per relabelling, shape ``[P, m]``, padded by -1.

    Returns:
        Shape ``[P, R]``, descending, at the scale of the rows.
    """
    width = activation.shape[1] + adjoint.shape[1]
    per_labelling = 8 * max(1, index.shape[1]) * max(1, width)
    solved = []
    for part in index.split(max(1, CHUNK_BYTES // per_labelling)):
        if quantity == "gradient":
            a, d = choose(activation, part), choose(adjoint, part)
            solved.append(gradient_singular_values(a, d).values)
        else:
            rows = activation if quantity == "activation" else adjoint
            solved.append(factor_singular_values(choose(rows, part)).values)
    return torch.cat(solved)


@dataclass(frozen=True)
class RelabelFactors:
    """What a null needs of one layer: compressed rows and whose they are.

    Attributes:
        activation: Shape ``[r, k_in]``.
        adjoint: Shape ``[r, k_out]``.
        owner: Index of the person behind each row, shape ``[r]``.
    """

    activation: Tensor
    adjoint: Tensor
    owner: Tensor


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


def relabelled_divergence(
    quantity: str,
    factors: RelabelFactors,
    codes: Tensor,
    pair: tuple[int, int],
    divergence: str,
) -> Tensor:
    """Divergence of two groups' spectra under every relabelling.

    Args:
        quantity: ``gradient``, ``activation`` or ``adjoint``.
        factors: Of one layer.
        codes: Group of each person under each relabelling, shape ``[P + 1, n]``,
            -1 for people who take no part; the observed labels first.
        pair: Codes of the two groups.
        divergence: Name in `divergences.DIVERGENCES`.

    Returns:
        Shape ``[P + 1]``, float64, NaN where a group has an all-zero spectrum.
    """
    a, b = (
        relabelled_spectra(
            quantity,
            factors.activation,
            factors.adjoint,
            rows_of_group(factors.owner, codes == code),
        )
        for code in pair
    )
    return DIVERGENCES.get(divergence)(a, b)
