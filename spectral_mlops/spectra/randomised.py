"""Leading values of matrices too large to decompose (Halko, Martinsson & Tropp, 2011).

A random range finder with power iterations gives ``Q`` of ``k + OVERSAMPLING``
orthonormal columns; the values of ``Qᵀ X`` never exceed those of ``X``. How far they
may fall short is known afterwards and exactly: with ``‖X‖_F`` counted, what is
missing altogether weighs ``√(‖X‖_F² − Σσ²)``. The norms that the summaries need
without a decomposition are exact.
"""

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.jobs import Factor
from spectral_mlops.spectra.products import COPY_BYTES, column_products, self_product
from spectral_mlops.spectra.reduced import (
    Key,
    Reduced,
    Tail,
    divide,
    rounding,
    safe_exponent,
)

TOP_VALUES = 64
OVERSAMPLING = 10
POWER_ITERATIONS = 2
SEED = 20240611


def sketch(
    keys: list[Key], blocks: list[list[Tensor]], coarse: float, exponent: int
) -> Reduced:
    """Reduce large matrices to a Gram of their leading part.

    Args:
        keys: Of the members.
        blocks: Per member its blocks' matrices, each ``[r, d]`` of equal shape and
            any floating type.
        coarse: Rounding of the entries, relative.
        exponent: Power of two they were divided by.

    Returns:
        A problem whose values are the `TOP_VALUES` leading ones of each block.
    """
    matrices = [matrix for member in blocks for matrix in member]
    found = [_leading(matrix) for matrix in matrices]
    return Reduced(
        keys=keys,
        sizes=[min(TOP_VALUES, *matrices[0].shape)] * len(keys),
        gram=torch.stack([gram for gram, _, _ in found]),
        other=None,
        blocks=len(blocks[0]),
        coarse=coarse,
        exponents=[exponent] * len(keys),
        tail=Tail(
            torch.stack([energy for _, energy, _ in found]),
            torch.stack([fourth for _, _, fourth in found]),
        ),
    )


def sketched_rows(factor: Factor, groups: Groups, g: int) -> Reduced:
    """Sketch one group's rows of one factor."""
    samples = groups.members[g].to(factor.scaled.device)
    blocks = [x.index_select(0, samples).flatten(0, 1) for x in factor.scaled]
    key = Key(factor.name, g, factor.quantity)
    return sketch([key], [blocks], rounding(factor.rows), factor.exponent)


def sketched_product(a: Factor, d: Factor, groups: Groups, g: int) -> Reduced:
    """Form one group's gradient, then sketch it."""
    stack = groups.stacks((g,))[0]
    formed = column_products(a.scaled, d.scaled, stack, (False, False)).gradient
    assert formed is not None
    coarse = max(rounding(a.rows), rounding(d.rows))
    blocks = list(formed[:, 0])
    exponent = a.exponent + d.exponent
    return sketch([Key(a.name, g, "gradient")], [blocks], coarse, exponent)


def sketched_formed(name: Hashable, matrices: Tensor) -> Reduced:
    """Sketch gradients that are formed already, shape ``[G, B, d_in, d_out]``."""
    exponent = safe_exponent(matrices)
    scaled = divide(matrices, exponent) if exponent else matrices
    keys = [Key(name, g, "gradient") for g in range(len(matrices))]
    return sketch(keys, [list(x) for x in scaled], rounding(matrices), exponent)


def _leading(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gram of ``Qᵀ X``, ``‖X‖_F²`` and ``‖X Xᵀ‖_F²``, all float64."""
    if x.shape[0] > x.shape[1]:
        x = x.mT
    # A generator of its own: the training's random state is not touched.
    generator = torch.Generator().manual_seed(SEED)
    width = min(TOP_VALUES + OVERSAMPLING, len(x))
    start = torch.randn(len(x), width, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(start.to(x.device)).Q  # [r, k + p]
    for _ in range(POWER_ITERATIONS + 1):
        back = torch.linalg.qr(_transposed_times(x, q)).Q  # [d, k + p]
        q = torch.linalg.qr(torch.cat([part @ back for part in _parts(x)])).Q
    energy = torch.stack([part.square().sum() for part in _parts(x)]).sum()
    return self_product(_transposed_times(x, q).mT), energy, _fourth(x)


def _transposed_times(x: Tensor, q: Tensor) -> Tensor:
    """``xᵀ q``, shape ``[d, k]``."""
    total = q.new_zeros(x.shape[1], q.shape[1])
    start = 0
    for part in _parts(x):
        total.addmm_(part.mT, q[start : start + len(part)])
        start += len(part)
    return total


def _fourth(x: Tensor) -> Tensor:
    """``‖x xᵀ‖_F²`` in blocks: a product, but no matrix of that size is kept."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    length = _part_length(x)
    for start in range(0, len(x), length):
        left = x[start : start + length].to(torch.float64)
        total += self_product(left).square().sum()
        for right in _parts(x[start + length :]):
            total += 2.0 * (left @ right.mT).square().sum()
    return total


def _part_length(x: Tensor) -> int:
    """Rows of which two runs in float64 are at most `COPY_BYTES`."""
    return max(1, COPY_BYTES // (16 * max(1, x.shape[1])))


def _parts(x: Tensor) -> Iterator[Tensor]:
    for part in x.split(_part_length(x)):
        yield part.to(torch.float64)
