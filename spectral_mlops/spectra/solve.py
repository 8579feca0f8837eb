"""Phase two: singular values of reduced problems, equal shapes in one call.

For one Gram the squares are its eigenvalues. For two, with ``K_A = L Lᵀ``, the
squares of ``AᵀΔ`` are the eigenvalues of ``Lᵀ K_Δ L``: Cholesky is backward stable
wherever it succeeds, so a badly conditioned ``K_A`` does no harm; where it fails
(``K_A`` singular to working precision) the root is taken from ``K_A``'s
eigenvectors. Either way rounding disturbs a square by at most
`GRAM_ROUNDING`·``‖A‖²‖Δ‖²``. Where the root of that exceeds `ACCURACY` of the
leading value, the values are taken from the rows by QR.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.reduced import EPSILON, Key, Reduced

ACCURACY = 1e-6
GRAM_ROUNDING = 16 * EPSILON
"""Of a square, relative to ``‖A‖²‖Δ‖²``. The largest seen was 14ε for values of any
size and 9ε in null directions, for 4 to 512 rows of 600 (noise, rows around a
mean, decaying and rank-deficient)."""
ROUTES = ("gram", "qr", "direct", "randomised")
Array = NDArray[np.float64]


class Solved(NamedTuple):
    """One spectrum.

    Attributes:
        key: Whose.
        values: Float64 ``[R]``, descending, at the scale of the rows, zero under
            `floor`; NaN where `status` is not ``ok``.
        floor: What is smaller cannot be told from zero; also the largest error of
            a value.
        below_floor: How many values were stored as zero for that reason.
        route: ``gram``, ``qr``, ``direct`` or ``randomised``.
        status: ``ok``, ``non-finite``, ``not converged`` or ``out of memory``.
        exact: Whether every value is there and within `ACCURACY` of the largest.
        bound: Largest error of a value; for ``randomised`` what the values left
            out may weigh together, ``√(‖X‖² − Σσ²)``.
        summaries: For ``randomised``, those that need no decomposition.
    """

    key: Key
    values: Array
    floor: float
    below_floor: int
    route: str
    status: str
    exact: bool
    bound: float
    summaries: dict[str, float] | None = None


def solve(problems: Sequence[Reduced]) -> list[Solved]:
    """Solve reduced problems, of any layers, groups, quantities and steps.

    Args:
        problems: From `reduce_layers`, of one or more calls.

    Returns:
        One spectrum per member, in the order of the problems and their keys.
    """
    buckets: dict[int, list[int]] = {}
    for i, problem in enumerate(problems):
        buckets.setdefault(_bucket(problem.gram.shape[-1]), []).append(i)
    found: dict[int, list[Solved]] = {}
    for size, chosen in buckets.items():
        # Two Grams last, so that both kinds are runs of one stack.
        chosen.sort(key=lambda i: problems[i].other is not None)
        solved = _solve_stack([problems[i] for i in chosen], size)
        found.update(zip(chosen, solved, strict=True))
    return [spectrum for i in range(len(problems)) for spectrum in found[i]]


def _bucket(size: int) -> int:
    """Size to pad to: a call costs more than a few rows of a small matrix."""
    return -(-size // 4) * 4 if size <= 64 else size


def _solve_stack(problems: list[Reduced], size: int) -> list[list[Solved]]:
    pairs = [p for p in problems if p.other is not None]
    grams = [p.gram for p in problems if p.other is None]
    stack, finite = _finite(_stack(grams, size))
    reach = torch.zeros(0, dtype=torch.float64)
    if pairs:
        gram_a, finite_a = _finite(_stack([p.gram for p in pairs], size))
        others = [p.other for p in pairs if p.other is not None]
        gram_d, finite_d = _finite(_stack(others, size))
        lower = drivers.root(gram_a)
        stack = torch.cat([stack, lower.mT @ gram_d @ lower])
        finite = torch.cat([finite, finite_a & finite_d])
        reach = (_norm_bound(gram_a) * _norm_bound(gram_d)).sqrt()
    squares, second = drivers.eigenvalues(stack)
    values = squares.clamp_min(0.0).sqrt().flip(-1)
    floor = torch.cat([reach.new_zeros(len(values) - len(reach)), reach])
    table = _Table(
        values.numpy(),
        (GRAM_ROUNDING**0.5 * floor).numpy(),
        np.where(second.numpy(), "direct", "gram").astype(object),
        finite.numpy(),
    )
    solved, start = [], 0
    for problem in problems:
        stop = start + len(problem.gram)
        solved.append(_finish(problem, table.part(start, stop)))
        start = stop
    return solved


class _Table(NamedTuple):
    """Rows of a solved stack: values ``[n, m]``, floors, routes, finiteness ``[n]``."""

    values: Array
    floor: Array
    route: NDArray[np.object_]
    finite: NDArray[np.bool_]

    def part(self, start: int, stop: int) -> "_Table":
        rows = slice(start, stop)
        return _Table(
            self.values[rows], self.floor[rows], self.route[rows], self.finite[rows]
        )


def _finish(problem: Reduced, table: _Table) -> list[Solved]:
    """Judge the values of one problem's blocks and put its members together."""
    values, floor, route, finite = table
    if not values.shape[1]:
        values = np.zeros((len(values), 1))
    if problem.other is not None:
        lossy = (floor > ACCURACY * values[:, 0]) & finite
        for row in lossy.nonzero()[0].tolist():
            _by_qr(problem, row, table)
    size = np.repeat(np.array(problem.sizes), problem.blocks)
    relative = np.maximum(np.sqrt(np.maximum(size, 1) * EPSILON), problem.coarse)
    floor = np.maximum(floor, relative * values[:, 0])
    if problem.noise is not None:
        floor = np.maximum(floor, problem.noise.cpu().numpy())
    return _members(problem, values, floor, route, finite, size)


def _members(
    problem: Reduced,
    values: Array,
    floor: Array,
    route: NDArray[np.object_],
    finite: NDArray[np.bool_],
    size: NDArray[np.int64],
) -> list[Solved]:
    """One spectrum per member: the union of its blocks, at the scale of the rows."""
    there = np.arange(values.shape[1]) < size[:, None]
    under = (values < floor[:, None]) & there
    values = np.where(under, 0.0, values)
    solved = []
    for i, key in enumerate(problem.keys):
        rows = slice(i * problem.blocks, (i + 1) * problem.blocks)
        own = values[rows, : problem.sizes[i]].ravel()
        if problem.blocks > 1:
            own = np.sort(own)[::-1]
        exponent = problem.exponents[i]
        bound = float(floor[rows].max())
        status = "ok"
        if not finite[rows].all():
            status, own = "non-finite", np.full(len(own), np.nan)
        elif np.isnan(own).any():
            status, own = "not converged", np.full(len(own), np.nan)
        top = float(own[0]) if len(own) and status == "ok" else 0.0
        bound_out = float(np.ldexp(bound, exponent)) if status == "ok" else math.nan
        solved.append(
            Solved(
                key=key,
                values=np.ldexp(own, exponent) if exponent else own,
                floor=bound_out,
                below_floor=int(under[rows].sum()) if status == "ok" else 0,
                route=max(route[rows].tolist(), key=ROUTES.index),
                status=status,
                exact=status == "ok" and bound <= ACCURACY * top,
                bound=bound_out,
            )
        )
    return solved


def _by_qr(problem: Reduced, row: int, table: _Table) -> None:
    """Replace one block's values by those of ``R_a R_dᵀ`` (``Aᵀ = Q_a R_a``).

    Left as it is, with the Gram's bound as its floor, if the rows are gone.
    """
    member, block = divmod(row, problem.blocks)
    rows = problem.source.rows(member, block) if problem.source else None
    if rows is None:
        return
    r_a, r_d = (torch.linalg.qr(x.mT, mode="r").R for x in rows)
    found = drivers.singular_values(r_a @ r_d.mT).numpy()
    table.values[row] = 0.0
    table.values[row, : len(found)] = found
    reach = torch.linalg.matrix_norm(r_a) * torch.linalg.matrix_norm(r_d)
    table.floor[row] = len(found) * EPSILON * float(reach)
    table.route[row] = "qr"


def _norm_bound(gram: Tensor) -> Tensor:
    """Upper bound of the largest eigenvalue, at most ``m^(1/8)`` times too large."""
    size = torch.linalg.matrix_norm(gram, keepdim=True)
    unit = gram / size.masked_fill(size == 0, 1.0)
    square = unit @ unit
    fourth = torch.linalg.matrix_norm(square @ square)  # √(Σ λ⁸)
    return fourth.pow(0.25) * size[..., 0, 0]


def _stack(grams: list[Tensor], size: int) -> Tensor:
    """Stack Grams of up to ``size`` rows on the CPU, padded with zeros."""
    if not grams:
        return torch.zeros(0, size, size, dtype=torch.float64)
    return torch.cat(
        [
            pad(g.cpu(), (0, size - g.shape[-1]) * 2) if g.shape[-1] < size else g.cpu()
            for g in grams
        ]
    )


def _finite(grams: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the Grams that hold a non-finite row; a bad row shows on the diagonal."""
    finite = grams.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    if not finite.all():
        grams = torch.where(finite[:, None, None], grams, 0.0)
    return grams, finite
