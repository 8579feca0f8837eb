"""Rows, Grams and singular values of many groups of people at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.reduced import EPSILON, divide, safe_exponent

CHUNK_BYTES = 64 * 2**20
"""What the relabellings that are solved at once may take."""


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
    return with_zero_row(rows)[index]


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


def scaled_by_person(parts: Tensor, factors: Tensor) -> Tensor:
    """Sums of products of two rows, ``[n, *]``, where each row has a factor."""
    shape = (-1,) + (1,) * (parts.ndim - 1)
    return parts * factors.square().view(shape).to(parts.dtype)


def with_zero_row(rows: Tensor) -> Tensor:
    """Rows ``[r + 1, k]``, the last of which is what index -1 gathers."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def sub_blocks(gram: Tensor, index: Tensor) -> Tensor:
    """Sub-blocks of a Gram whose last row is zero, ``[P, m, m]``."""
    return gram[index.unsqueeze(2), index.unsqueeze(1)]


def from_grams(grams: Tensor) -> Tensor:
    """Descending roots of eigenvalues ``[b, m]``; under the Gram's floor, zero."""
    if not grams.numel():
        return grams.new_zeros(grams.shape[:-1])
    squares, _ = drivers.eigenvalues(grams)
    values = squares.clamp_min(0.0).sqrt().flip(-1)
    return cut(values, (values.shape[1] * EPSILON) ** 0.5 * values[:, 0])


def gram_floor(matrices: Tensor) -> Tensor:
    """Below what singular values from a Gram are rounding, ``[P]``."""
    reach = torch.linalg.matrix_norm(matrices)
    return (min(matrices.shape[-2:]) * EPSILON) ** 0.5 * reach


def cut(values: Tensor, floor: Tensor) -> Tensor:
    """Store values under the floor as zero."""
    return values.masked_fill(values < floor.unsqueeze(-1), 0.0)


def svdvals(matrices: Tensor) -> Tensor:
    """Singular values, one by one by other drivers where the batch fails."""
    try:
        return torch.linalg.svdvals(matrices)
    except drivers.FAILURES:
        return torch.stack([drivers.singular_values(x) for x in matrices])


def at_once(bytes_each: int) -> int:
    """How many relabellings fit into `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // max(1, bytes_each))


def in_chunks(x: Tensor, bytes_each: int, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Solve some relabellings at a time."""
    return torch.cat([solve(part) for part in x.split(at_once(bytes_each))])
