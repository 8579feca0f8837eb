"""Float64 products of factor rows, for all groups of a stack at once.

Rows come as ``[c, N, S, d]``: independent factors × samples × positions × columns,
of any floating type and any strides (channel-first volumes as a transposed view,
never as a transposed copy). Only slices of at most `COPY_BYTES` are widened at a
time. Products of float32 in float32, also when summed in float64 over slices, are
no way out: their error of ``ε₃₂·σ_max²`` is an error of ``√ε₃₂·σ_max`` in a small
singular value, 300 times the accuracy aimed at.

All products are torch's own. NumPy would multiply a matrix by its transpose in half
the work (``syrk``: 2.3 for 4.3 ms, two groups of 2240 rows of 128), but brings a
second pool of threads: on a machine with busy cores the same product took 30 ms
instead of 0.05. Blocks of the upper triangle gained 7 % on one thread and lost more
on two.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_mlops.spectra.groups import Stack

COPY_BYTES = 4 * 2**20
"""Float64 copies of rows that may exist at once."""


class ColumnProducts(NamedTuple):
    """Products over the rows of each group; None where not asked for.

    Attributes:
        activation: ``AᵀA``, shape ``[c, G, d_in, d_in]``.
        adjoint: ``ΔᵀΔ``, shape ``[c, G, d_out, d_out]``.
        gradient: ``AᵀΔ``, shape ``[c, G, d_in, d_out]``.
        energy: ``‖A‖²`` and ``‖Δ‖²``, shape ``[c, G, 2]``; only beside `gradient`.
    """

    activation: Tensor | None
    adjoint: Tensor | None
    gradient: Tensor | None
    energy: Tensor | None


def self_product(x: Tensor) -> Tensor:
    """``x xᵀ`` of float64 matrices, shape ``[*, m, k]`` to ``[*, m, m]``."""
    return torch.bmm(x, x.mT) if x.dim() == 3 else x @ x.mT  # bmm: less to decide


def row_grams(x: Tensor, stack: Stack) -> Tensor:
    """``A_g A_gᵀ`` of each group, zero where a row is padding.

    Args:
        x: Shape ``[c, N, S, d]``.
        stack: Groups of up to ``n`` samples.

    Returns:
        Shape ``[c, G, n·S, n·S]``, float64.
    """
    c, _, positions, d = x.shape
    g, n = stack.samples.shape
    width = max(16, COPY_BYTES // max(1, 8 * c * g * n * positions))
    gram: Tensor | None = None
    for start in range(0, d, width):
        columns = x if width >= d else x[..., start : start + width]
        rows = _widen(columns, stack, slice(0, n)).flatten(0, 1).flatten(1, 2)
        part = self_product(rows)
        gram = part if gram is None else gram.add_(part)
    if gram is None:
        gram = x.new_zeros(c * g, n * positions, n * positions, dtype=torch.float64)
    return gram.view(c, g, n * positions, n * positions)


def column_products(
    activation: Tensor | None,
    adjoint: Tensor | None,
    stack: Stack,
    grams: tuple[bool, bool],
) -> ColumnProducts:
    """``AᵀA``, ``ΔᵀΔ`` and ``AᵀΔ`` of each group, in one pass over the rows.

    Args:
        activation: Shape ``[c, N, S, d_in]``, or None.
        adjoint: Shape ``[c, N, S, d_out]``, or None; where both are given their
            product is formed.
        stack: Groups of up to ``n`` samples.
        grams: Whether to form the Gram of the activation, of the adjoint.

    Returns:
        The products, float64.
    """
    sums: list[Tensor | None] = [None, None, None, None]
    given = [x for x in (activation, adjoint) if x is not None]
    for samples, positions in _slices(given, stack):
        a, d = (
            None if x is None else _widen(_cut(x, positions), stack, samples)
            for x in (activation, adjoint)
        )
        gram_a = _column_gram(a) if a is not None and grams[0] else None
        gram_d = _column_gram(d) if d is not None and grams[1] else None
        product = energy = None
        if a is not None and d is not None:
            product = _product(a, d)
            energy = torch.stack([_energy(a, gram_a), _energy(d, gram_d)], -1)
        parts = (gram_a, gram_d, product, energy)
        for i, part in enumerate(parts):
            total = sums[i]
            if part is not None:
                sums[i] = part if total is None else total.add_(part)
    return ColumnProducts(*sums)


def _slices(given: list[Tensor], stack: Stack) -> Iterator[tuple[slice, slice]]:
    """Yield slices of samples and positions whose float64 copies stay small."""
    g, n = stack.samples.shape
    positions = given[0].shape[2]
    per_position = 8 * g * sum(x.shape[0] * x.shape[3] for x in given)
    per_sample = max(1, per_position * positions)
    at_once = max(1, COPY_BYTES // per_sample)
    length = positions
    if per_sample > COPY_BYTES:
        length = max(16, COPY_BYTES // per_position)
    for start in range(0, n, at_once):
        for begin in range(0, positions, length):
            stop = min(start + at_once, n)
            yield slice(start, stop), slice(begin, min(begin + length, positions))


def _cut(x: Tensor, positions: slice) -> Tensor:
    return x if positions == slice(0, x.shape[2]) else x[:, :, positions]


def _widen(x: Tensor, stack: Stack, samples: slice) -> Tensor:
    """Gather rows into float64, padding as zeros, the order of memory kept.

    Returns:
        Shape ``[c, G, n, S, d]``; transposed in memory where ``x`` is.
    """
    piece = stack.piece(samples.start, samples.stop, x.device)
    transposed = x.stride(-1) != 1 and x.stride(-2) == 1
    part = x.mT if transposed else x
    part = part.index_select(1, piece.samples).to(torch.float64)
    if piece.padding is not None:
        part.index_fill_(1, piece.padding, 0.0)
    part = part.unflatten(1, (len(stack.groups), samples.stop - samples.start))
    return part.mT if transposed else part


def _column_gram(x: Tensor) -> Tensor:
    """``xᵀx`` over samples and positions, ``[c, G, n, S, d]`` to ``[c, G, d, d]``."""
    if x.is_contiguous():
        return self_product(x.flatten(2, 3).mT)
    return self_product(x.mT).sum(2)


def _product(a: Tensor, d: Tensor) -> Tensor:
    """``aᵀd`` over samples and positions, shape ``[c, G, d_in, d_out]``."""
    if a.is_contiguous() and d.is_contiguous():
        return a.flatten(2, 3).mT @ d.flatten(2, 3)
    return (a.mT @ d).sum(2)


def _energy(x: Tensor, gram: Tensor | None) -> Tensor:
    """``‖x‖²`` of each group, shape ``[c, G]``, from its Gram where there is one."""
    if gram is not None:
        return gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.linalg.vector_norm(x, dim=(2, 3, 4)).square()
