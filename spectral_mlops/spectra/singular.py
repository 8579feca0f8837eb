"""Exact singular values of factors and gradients by the smallest equivalent.

Factor rows are ``A`` of shape ``[*, r, d_in]`` and ``Δ`` of shape
``[*, r, d_out]``; leading axes are independent problems, solved in one call. With
``r`` rows the nonzero singular values of ``G = AᵀΔ`` live in the smallest of
``r``, ``d_in`` and ``d_out``, and no larger matrix is ever decomposed:

* ``gram``: eigenvalues of a float64 Gram matrix. Squaring loses half of the
  digits, so values under ``√(kε)·σ_max(A)·σ_max(Δ)`` cannot be told from zero.
* ``qr``: singular values of ``R_a R_dᵀ`` from the factors' own QR. Taken where
  that bound exceeds ``ACCURACY·σ_max(G)``.
* ``direct``: an SVD of the formed matrix, where a solver did not converge.

Every value is within ``ACCURACY·σ_max`` of a float64 SVD of the formed matrix,
for float32 rows. Values under the bound of their route, or under the rounding of
the rows themselves, are stored as zero and counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ACCURACY = 1e-6
ROUTES = ("gram", "qr", "direct")
GRAM, QR, DIRECT = range(3)
EPSILON = torch.finfo(torch.float64).eps
LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Solution:
    """Singular values of a stack of matrices, and how they were found.

    Attributes:
        values: Shape ``[*, R]``, float64, descending; NaN where rows were not
            finite or no solver converged.
        floor: Shape ``[*]``; values under it are stored as zero.
        below_floor: Shape ``[*]``, how many were.
        route: Shape ``[*]``, index into `ROUTES`.
        finite: Shape ``[*]``, whether the rows were finite.
    """

    values: Tensor
    floor: Tensor
    below_floor: Tensor
    route: Tensor
    finite: Tensor


def factor_singular_values(rows: Tensor) -> Solution:
    """Singular values of ``A_g`` or ``Δ_g``, ``R = min(r, d)`` of them.

    Args:
        rows: Shape ``[*, r, d]``, any floating type; scale as given.

    Returns:
        The solution, at the scale of the rows.
    """
    x, scale, finite = _prepare(rows)
    r, d = x.shape[-2:]
    if min(r, d) == 0:
        return _nothing(x, finite)
    values, route = _from_gram(_gram(x, on_rows=r <= d), lambda: x)
    floor = _relative_floor(min(r, d), rows) * values[..., 0]
    return _finish(values, floor, route, scale, finite)


def gradient_singular_values(activation: Tensor, adjoint: Tensor) -> Solution:
    """Singular values of ``A_gᵀ Δ_g``, ``R = min(r, d_in, d_out)`` of them.

    Args:
        activation: Shape ``[*, r, d_in]``.
        adjoint: Shape ``[*, r, d_out]``; its scale is the scale of the result.

    Returns:
        The solution.
    """
    a, scale_a, finite_a = _prepare(activation)
    d, scale_d, finite_d = _prepare(adjoint)
    finite = finite_a & finite_d
    r, d_in, d_out = *a.shape[-2:], d.shape[-1]
    smallest = min(r, d_in, d_out)
    if smallest == 0:
        empty = a.new_zeros(*a.shape[:-1], 0)
        return _nothing(empty, finite)
    relative = _relative_floor(smallest, activation, adjoint)
    if r > smallest:
        gradient = a.mT @ d
        gram = _gram(gradient, on_rows=d_in <= d_out)
        values, route = _from_gram(gram, lambda: gradient)
        reach = torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(d)
        floor = torch.maximum(r * EPSILON * reach, relative * values[..., 0])
        return _finish(values, floor, route, scale_a * scale_d, finite)
    values, reach, route = _row_route(a, d)
    bound = (r * EPSILON) ** 0.5 * reach
    lossy = (bound > ACCURACY * values[..., 0]) & (reach > 0)
    if lossy.any():
        values[lossy], reach[lossy] = _qr_route(a[lossy], d[lossy])
        bound[lossy] = r * EPSILON * reach[lossy]
        route[lossy] = QR
    floor = torch.maximum(bound, relative * values[..., 0])
    return _finish(values, floor, route, scale_a * scale_d, finite)


def _finish(
    values: Tensor, floor: Tensor, route: Tensor, scale: Tensor, finite: Tensor
) -> Solution:
    """Store values under the floor as zero, count them, undo the scaling."""
    under = values < floor.unsqueeze(-1)
    values = values.masked_fill(under, 0.0) * scale.unsqueeze(-1)
    values = values.masked_fill(~finite.unsqueeze(-1), torch.nan)
    return Solution(values, floor * scale, under.sum(-1), route, finite)


def _nothing(x: Tensor, finite: Tensor) -> Solution:
    """Return the empty solution of matrices without rows or columns."""
    zero = x.new_zeros(x.shape[:-2])
    count = zero.to(torch.int64)
    values = x.new_zeros(*x.shape[:-2], 0)
    return Solution(values, zero, count, count.to(torch.int8), finite)


def _relative_floor(size: int, *rows: Tensor) -> float:
    """Return the larger of the Gram route's bound and the rows' own rounding.

    Half-precision rows are judged as float32 ones: they are widened before any
    product, so nothing but their storage is coarse.
    """
    exact = all(x.dtype == torch.float64 for x in rows)
    own = EPSILON if exact else torch.finfo(torch.float32).eps
    return float(max((size * EPSILON) ** 0.5, own))


def _prepare(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen to float64 and divide by a power of two, so that squares stay finite.

    Returns:
        The rows ``[*, r, d]`` with non-finite matrices zeroed, the exact scale
        ``[*]`` and whether each matrix was finite ``[*]``.
    """
    x = rows.detach().to(torch.float64)
    largest = x.abs().amax((-2, -1)) if x.numel() else x.new_zeros(x.shape[:-2])
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite, largest, 0.0)).exponent
    scale = torch.ldexp(torch.ones_like(largest), exponent - 1)  # 2^1024 is inf
    x = x / scale[..., None, None]
    if not finite.all():
        x = torch.where(finite[..., None, None], x, 0.0)
    return x, scale, finite


def _gram(x: Tensor, on_rows: bool) -> Tensor:
    return x @ x.mT if on_rows else x.mT @ x


def _from_gram(gram: Tensor, matrices: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Root of the eigenvalues of Gram matrices, and the route that gave them.

    Args:
        gram: Shape ``[*, k, k]``.
        matrices: Forms the matrices themselves, for a solver that fails.

    Returns:
        Values, shape ``[*, k]``, descending, and routes, shape ``[*]``.
    """
    route = torch.full(gram.shape[:-2], GRAM, dtype=torch.int8, device=gram.device)
    try:
        squares = torch.linalg.eigvalsh(gram)
    except LinAlgError:
        return _second_driver(matrices())[..., : gram.shape[-1]], route.fill_(DIRECT)
    return squares.clamp_min(0.0).sqrt().flip(-1), route


def _row_route(a: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values of ``AᵀΔ`` from two ``r × r`` Grams, ``σ_max(A)·σ_max(Δ)``, routes.

    With ``AAᵀ = U S Uᵀ`` the squares are the eigenvalues of
    ``√S Uᵀ (ΔΔᵀ) U √S``. The second factor's norm is bounded from above by the
    root of its Gram's Frobenius norm.
    """
    gram_d = d @ d.mT
    reach_d = torch.linalg.matrix_norm(gram_d).sqrt()
    try:
        s, u = torch.linalg.eigh(a @ a.mT)
    except LinAlgError:
        values = _second_driver(a.mT @ d)[..., : a.shape[-2]]
        route = torch.full(a.shape[:-2], DIRECT, dtype=torch.int8, device=a.device)
        return values, torch.linalg.matrix_norm(a) * reach_d, route
    root = u * s.clamp_min(0.0).sqrt().unsqueeze(-2)  # [*, r, r]
    values, route = _from_gram(root.mT @ gram_d @ root, lambda: a.mT @ d)
    return values, s[..., -1].clamp_min(0.0).sqrt() * reach_d, route


def _qr_route(a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Values of ``AᵀΔ`` from ``Aᵀ = Q_a R_a`` and ``Δᵀ = Q_d R_d``, and the reach."""
    r_a = torch.linalg.qr(a.mT, mode="r").R  # [*, r, r]
    r_d = torch.linalg.qr(d.mT, mode="r").R
    reach = torch.linalg.matrix_norm(r_a) * torch.linalg.matrix_norm(r_d)
    product = r_a @ r_d.mT
    try:
        return torch.linalg.svdvals(product), reach
    except LinAlgError:
        return _second_driver(product), reach


def _second_driver(matrices: Tensor) -> Tensor:
    """Singular values by LAPACK's ``gesvd``; NaN where that fails too."""
    import scipy.linalg

    flat = matrices.reshape(-1, *matrices.shape[-2:]).cpu().numpy()
    values = np.full((len(flat), min(flat.shape[-2:])), np.nan)
    for i, matrix in enumerate(flat):
        try:
            values[i] = scipy.linalg.svd(
                matrix, compute_uv=False, lapack_driver="gesvd"
            )
        except scipy.linalg.LinAlgError:
            continue
    shape = (*matrices.shape[:-2], values.shape[-1])
    return torch.from_numpy(values).to(matrices.device).reshape(shape)
