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
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.reduced import EPSILON, Key, Reduced
from spectral_mlops.spectra.stacks import norm_bound, stacked, zero_non_finite

ACCURACY = 1e-6
GRAM_ROUNDING = 16 * EPSILON
"""Of a square, relative to ``‖A‖²‖Δ‖²``. The largest seen was 14ε for values of any
size and 9ε in null directions, for 4 to 512 rows of 600 (noise, rows around a
mean, decaying and rank-deficient)."""
ROUTES = ("gram", "qr", "direct", "randomised")
STATUSES = ("ok", "non-finite", "not converged", "out of memory", "failed")
DIRECT = ROUTES.index("direct")
Array = NDArray[np.float64]
Counts = NDArray[np.int64]


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
        status: One of `STATUSES`.
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
    found: dict[int, list[Solved]] = {}
    for i, problem in enumerate(problems):
        if problem.status != "ok":
            found[i] = marked(problem, problem.status)
            continue
        problem.wait()
        buckets.setdefault(_bucket(problem.gram.shape[-1]), []).append(i)
    for size, chosen in buckets.items():
        # Two Grams last, so that both kinds are runs of one stack.
        chosen.sort(key=lambda i: problems[i].other is not None)
        solved = _solve_stack([problems[i] for i in chosen], size)
        found.update(zip(chosen, solved, strict=True))
    return [spectrum for i in range(len(problems)) for spectrum in found[i]]


def marked(problem: Reduced, status: str) -> list[Solved]:
    """Return the members of a problem that could not be solved, all NaN."""
    nan = float("nan")
    return [
        Solved(
            key, np.full(n * problem.blocks, nan), nan, 0, "gram", status, False, nan
        )
        for key, n in zip(problem.keys, problem.sizes, strict=True)
    ]


def _bucket(size: int) -> int:
    """Size to pad to: a call costs more than a few rows of a small matrix."""
    return -(-size // 4) * 4 if size <= 64 else size


def _solve_stack(problems: list[Reduced], size: int) -> list[list[Solved]]:
    pairs = [p for p in problems if p.other is not None]
    grams = [p.gram for p in problems if p.other is None]
    stack, finite = zero_non_finite(stacked(grams, size))
    floor = stack.new_zeros(len(stack))
    if pairs:
        gram_a, finite_a = zero_non_finite(stacked([p.gram for p in pairs], size))
        others = [p.other for p in pairs if p.other is not None]
        gram_d, finite_d = zero_non_finite(stacked(others, size))
        lower = drivers.root(gram_a)
        stack = torch.cat([stack, lower.mT @ gram_d @ lower])
        finite = torch.cat([finite, finite_a & finite_d])
        squared = GRAM_ROUNDING * norm_bound(gram_a) * norm_bound(gram_d)
        floor = torch.cat([floor, squared.sqrt()])
    squares, second = drivers.eigenvalues(stack)
    table = _Table(
        values=squares.clamp_min(0.0).sqrt().flip(-1).numpy(),
        floor=floor.numpy(),
        route=second.to(torch.int64).mul(DIRECT).numpy(),
        status=(~finite).to(torch.int64).numpy(),
        size=np.array([n for p in problems for n in p.sizes for _ in range(p.blocks)]),
        under=np.zeros(len(floor), dtype=np.int64),
    )
    starts = np.cumsum([0, *(len(p.gram) for p in problems)]).tolist()
    _cancelling_by_qr(problems, starts, table)
    _judge(problems, table)
    return [
        _members(problem, table.part(start, start + len(problem.gram)))
        for problem, start in zip(problems, starts[:-1], strict=True)
    ]


class _Table(NamedTuple):
    """What is known of each matrix of a stack of ``n``, and written while judging.

    Attributes:
        values: Shape ``[n, m]``, descending, before scaling.
        floor: Shape ``[n]``.
        route: Index into `ROUTES`.
        status: Index into `STATUSES`.
        size: Number of values that are not padding.
        under: Number of values under the floor.
    """

    values: Array
    floor: Array
    route: Counts
    status: Counts
    size: Counts
    under: Counts

    def part(self, start: int, stop: int) -> "_Table":
        """Return some of the matrices."""
        rows = slice(start, stop)
        return _Table(
            self.values[rows],
            self.floor[rows],
            self.route[rows],
            self.status[rows],
            self.size[rows],
            self.under[rows],
        )


def _judge(problems: list[Reduced], table: _Table) -> None:
    """Raise the floors to what each matrix allows, and put zeros under them."""
    values, floor, _, status, size, under = table
    coarse = np.repeat([p.coarse for p in problems], [len(p.gram) for p in problems])
    top = values[:, 0] if values.shape[1] else np.zeros(len(values))
    relative = np.maximum(np.sqrt(size * EPSILON), coarse)
    np.maximum(floor, relative * top, out=floor)
    start = 0
    for problem in problems:
        if problem.noise is not None:
            own = floor[start : start + len(problem.gram)]
            np.maximum(own, problem.noise.cpu().numpy(), out=own)
        start += len(problem.gram)
    status[(status == 0) & np.isnan(top)] = STATUSES.index("not converged")
    small = values < floor[:, None]
    values[small] = 0.0
    small &= np.arange(values.shape[1]) < size[:, None]
    under[:] = small.sum(1)
    bad = status != 0
    if bad.any():
        values[bad], floor[bad], under[bad] = np.nan, np.nan, 0


def _members(problem: Reduced, table: _Table) -> list[Solved]:
    """One spectrum per member: the union of its blocks, at the scale of the rows."""
    values, floor, route, status, _, under = table
    sizes = problem.sizes
    if problem.blocks > 1:
        shape = (len(problem.keys), problem.blocks)
        union = values.reshape(*shape, -1).swapaxes(1, 2).reshape(shape[0], -1)
        values = -np.sort(-union, axis=1)
        sizes = [n * problem.blocks for n in sizes]
        floor, route, status = (x.reshape(shape).max(1) for x in (floor, route, status))
        under = under.reshape(shape).sum(1)
        values[status != 0] = np.nan
    top = values[:, 0] if values.shape[1] else np.zeros(len(values))
    exact = (floor <= ACCURACY * top).tolist()
    if any(problem.exponents):
        values = np.ldexp(values, np.array(problem.exponents)[:, None])
        floor = np.ldexp(floor, problem.exponents)
    rows = zip(
        problem.keys,
        values,
        sizes,
        floor.tolist(),
        under.tolist(),
        route.tolist(),
        status.tolist(),
        exact,
        strict=True,
    )
    solved = [
        Solved(key, own[:n], bound, zeros, ROUTES[r], STATUSES[s], good, bound)
        for key, own, n, bound, zeros, r, s, good in rows
    ]
    return solved if problem.tail is None else _with_tails(solved, problem)


def _with_tails(solved: list[Solved], problem: Reduced) -> list[Solved]:
    """Say what the leading values leave out, and add the summaries that need none."""
    assert problem.tail is not None
    shape = (len(problem.keys), problem.blocks)
    energy, fourth = (
        x.cpu().numpy().reshape(shape).sum(1).tolist() for x in problem.tail
    )
    found = []
    for i, one in enumerate(solved):
        if one.status == "ok":
            exponent = problem.exponents[i]
            squares = np.ldexp(one.values, -exponent) ** 2
            left = max(energy[i] - float(squares.sum()), 0.0)
            zero = energy[i] == 0
            summaries = {
                "frobenius_norm": float(np.ldexp(energy[i] ** 0.5, exponent)),
                "stable_rank": math.nan if zero else energy[i] / float(squares[0]),
                "participation_ratio": math.nan if zero else energy[i] ** 2 / fourth[i],
            }
            bound = float(np.ldexp(left**0.5, exponent))
            one = one._replace(exact=False, bound=bound, summaries=summaries)
        found.append(one._replace(route="randomised"))
    return found


def _cancelling_by_qr(
    problems: list[Reduced], starts: list[int], table: _Table
) -> None:
    """Take the values that a Gram cannot resolve from ``R_a R_dᵀ``.

    With ``Aᵀ = Q_a R_a`` and ``Δᵀ = Q_d R_d``. Left as they are, with the Gram's
    bound as their floor, where the rows are gone.
    """
    if not table.values.size:
        return
    lossy = (table.floor > ACCURACY * table.values[:, 0]) & (table.status == 0)
    for row in lossy.nonzero()[0].tolist():
        which = bisect_right(starts, row) - 1
        problem = problems[which]
        member, block = divmod(row - starts[which], problem.blocks)
        rows = problem.source.rows(member, block) if problem.source else None
        if rows is None:
            continue
        r_a, r_d = (torch.linalg.qr(x.mT, mode="r").R for x in rows)
        found = drivers.singular_values(r_a @ r_d.mT).numpy()
        reach = torch.linalg.matrix_norm(r_a) * torch.linalg.matrix_norm(r_d)
        table.values[row] = 0.0
        table.values[row, : len(found)] = found
        table.floor[row] = len(found) * EPSILON * float(reach)
        table.route[row] = ROUTES.index("qr")
