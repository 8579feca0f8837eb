"""Groups compared on one number per subject, with age, motion and the like held.

Spectra of a group cannot be adjusted for a subject's age, but a subject's own
numbers can: the log norm of its gradient, the cosine of its gradient with that of
everyone. The permutation is Freedman & Lane's (1983, J. Business & Economic
Statistics 1, 292-298): residuals of the reduced model (nuisance alone) move over
subjects, are put back on its fit, and the full model is fitted again. It is exact
without nuisance columns, and asymptotically exact with them (Winkler et al. 2014,
NeuroImage 92, 381-397).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.inference.relabel import draw_orders
from spectral_mlops.inference.significance import Array, p_max_t, p_value

RANK_TOLERANCE = 1e-10
"""Relative size below which a direction of a design, or what is left of a column
after the nuisance fit, is rounding."""

LEAST_RESIDUAL = 1e-12
"""Share of the variance that a perfect fit is taken to leave, so that the statistic
stays finite and equally perfect relabellings tie."""


@dataclass(frozen=True, eq=False)
class NuisanceTest:
    """Groups compared on ``k`` numbers per subject.

    Attributes:
        statistic: ``|t|`` where one contrast is tested, else ``F``.
        dof: Degrees of freedom of the effect and of the residuals.
        values: Statistic under every relabelling, ``[P + 1, k]``, observed first.
        p: One p per column, ``[k]``.
        p_max: Family-wise p over columns by max-T, ``[k]``.
        reasons: Why a column has no p; empty where it has one.
    """

    statistic: str
    dof: tuple[int, int]
    values: Array
    p: Array
    p_max: Array
    reasons: tuple[str, ...]


def freedman_lane(
    y: ArrayLike,
    groups: Sequence[Any],
    nuisance: Mapping[str, ArrayLike] | None = None,
    *,
    strata: Sequence[str] | None = None,
    permutations: int = 199,
    seed: int = 0,
    families: Sequence[str] | None = None,
) -> NuisanceTest:
    """Test whether groups differ beyond what the nuisance columns explain.

    All columns of ``y`` move together, by the moves of `relabel.draw_orders`; without
    nuisance these are the relabellings of `relabel.draw_relabellings` of the same
    strata, number and seed.

    Args:
        y: One number per subject, shape ``[n]``, or several, ``[n, k]``, in any unit.
        groups: One label per subject, length ``n``.
        nuisance: Columns by name, each of length ``n`` (`design_matrix`).
        strata: One stratum per subject; residuals never leave it. Strata are no
            nuisance column: give the site as both where its mean may differ.
        permutations: Number ``P`` of relabellings beside the observed one.
        seed: Of the draw.
        families: One family per subject; residuals of relatives move as blocks
            (`inference.exchange`).

    Returns:
        Statistic, p and family-wise p per column.

    Raises:
        InputError: If lengths differ or there is one group only.
    """
    columns = np.asarray(y, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    within = ["all"] * len(columns) if strata is None else list(strata)
    if not len(columns) == len(groups) == len(within):
        raise InputError(
            f"{len(columns)} values, {len(groups)} groups, {len(within)} strata: give "
            "one of each per subject."
        )
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    if len(codes) == 0 or codes.max() == 0:
        raise InputError("groups: all subjects are in one group; give at least two.")
    design = design_matrix(nuisance or {}, len(columns))
    orders = draw_orders(within, permutations, seed, families)
    return freedman_lane_of_orders(columns, codes, design, orders)


def freedman_lane_of_orders(
    y: Array, codes: NDArray[np.int64], design: Array, orders: NDArray[np.int64]
) -> NuisanceTest:
    """`freedman_lane` with the moves given.

    Args:
        y: Shape ``[n, k]``.
        codes: Group of each subject, shape ``[n]``.
        design: Reduced model with its intercept, shape ``[n, c]``.
        orders: Whose label each subject gets, ``[P + 1, n]``, the identity first.
    """
    reduced = _basis(design)
    indicator = (codes[:, None] == np.unique(codes)).astype(np.float64)
    effect = _basis(indicator - reduced @ (reduced.T @ indicator), scale=len(codes))
    dof = (effect.shape[1], len(codes) - reduced.shape[1] - effect.shape[1])
    statistic = "|t|" if dof[0] == 1 else "F"
    values = np.full((len(orders), y.shape[1]), np.nan)
    residual, reasons = _residuals(y, reduced, dof)
    tested = np.array([not reason for reason in reasons], dtype=bool)
    if tested.any():
        # A label that moves from i to j leaves the residual of j to the group of i.
        moves = np.argsort(orders, axis=1)
        moved = [
            _f_statistic(residual[:, tested][move], reduced, effect, dof)
            for move in moves
        ]
        values[:, tested] = np.sqrt(moved) if dof[0] == 1 else np.stack(moved)
    return NuisanceTest(
        statistic, dof, values, p_value(values), p_max_t(values), tuple(reasons)
    )


def design_matrix(nuisance: Mapping[str, ArrayLike], subjects: int) -> Array:
    """Put nuisance columns together: numbers standardised, categories one-hot.

    Integers and floats are numbers, all else (also booleans) are categories, whose
    first one is the baseline.

    Args:
        nuisance: Columns by name, each of length ``n``.
        subjects: Their number ``n``.

    Returns:
        Shape ``[n, c]``, the intercept first.

    Raises:
        InputError: If a column has another length or lacks somebody's value.
    """
    columns = [np.ones((subjects, 1))]
    for name, given in nuisance.items():
        column = np.asarray(given)
        if column.shape != (subjects,):
            raise InputError(
                f"nuisance '{name}' has shape {list(column.shape)}: give one value "
                f"for each of the {subjects} subjects."
            )
        numbers = _as_numbers(column)
        lost = (
            ~np.isfinite(numbers)
            if numbers is not None
            else np.array([x is None or x != x for x in column.tolist()])
        )
        if lost.any():
            raise InputError(
                f"nuisance '{name}' lacks {int(lost.sum())} of {subjects} values, the "
                f"first at place {int(np.flatnonzero(lost)[0])}: leave these subjects "
                "out, or fill the values in before."
            )
        if numbers is None:
            text = column.astype(str)
            columns.append((text[:, None] == np.unique(text)[1:]).astype(np.float64))
        else:
            sd = numbers.std() if np.ptp(numbers) > 0 else 1.0
            columns.append(((numbers - numbers.mean()) / sd)[:, None])
    return np.concatenate(columns, axis=1)


def _as_numbers(column: NDArray[Any]) -> Array | None:
    """Return a column of numbers as floats, or ``None`` if it holds categories."""
    if column.dtype.kind == "O":
        kinds = {type(x) for x in column.tolist() if x is not None}
        if not kinds or not kinds <= {int, float}:
            return None
    elif column.dtype.kind not in "iuf":
        return None
    return column.astype(np.float64)


def _basis(columns: Array, scale: float | None = None) -> Array:
    """Orthonormal basis of the columns' span, shape ``[n, rank]``.

    ``scale`` is the squared size that rounding is judged by; the columns' own if
    not given.
    """
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    largest = s.max(initial=0.0) if scale is None else np.sqrt(scale)
    return np.asarray(u[:, s > RANK_TOLERANCE * largest])


def _residuals(
    y: Array, reduced: Array, dof: tuple[int, int]
) -> tuple[Array, list[str]]:
    """Residuals of the reduced model at unit length, and why a column has none."""
    if dof[0] == 0:
        return y, ["the nuisance columns determine the groups"] * y.shape[1]
    if dof[1] < 1:
        return y, ["no degrees of freedom are left for residuals"] * y.shape[1]
    finite = np.isfinite(y).all(axis=0)
    x = np.where(finite, y, 0.0)
    x = x / np.where((size := np.abs(x).max(0)) > 0, size, 1.0)
    residual = x - reduced @ (reduced.T @ x)
    length = np.linalg.norm(residual, axis=0)
    flat = length <= RANK_TOLERANCE * np.sqrt(len(y))
    unfit = np.where(flat, "nothing is left beyond the nuisance fit", "")
    reasons = np.where(finite, unfit, "values are not finite").tolist()
    return residual / np.where(flat, 1.0, length), reasons


def _f_statistic(
    residual: Array, reduced: Array, effect: Array, dof: tuple[int, int]
) -> Array:
    """F of the group effect in the full model, shape ``[k]``.

    The reduced fit that Freedman and Lane put back lies in the full model's span and
    changes neither sum of squares, so it is left away.
    """
    explained = np.square(effect.T @ residual).sum(0)
    left = residual - reduced @ (reduced.T @ residual)
    total = np.square(left).sum(0)
    unexplained = np.maximum(total - explained, LEAST_RESIDUAL * total)
    return np.asarray((explained / dof[0]) / (unexplained / dof[1]))
