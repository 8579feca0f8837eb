"""From a statistic under all relabellings to z, p and family-wise p.

Axis 0 is always the relabelling, ``P + 1`` of them with the observed one first.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TIE = 1e-9
"""Relative difference below which two values are one: a relabelling that gives
the observed groups again must count as equal, whatever the order of its sums."""


def standardise(values: Array) -> Array:
    """Centre and scale by mean and SD over all relabellings, the observed included.

    Args:
        values: Shape ``[P + 1, *]``.

    Returns:
        Shape ``[P + 1, *]``; NaN where the SD is zero to rounding (no relabelling
        changes anything) or a value is NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, sd = _moments(values)
        flat = ~(sd > TIE * np.abs(mean))
        return np.where(flat, np.nan, (values - mean) / np.where(flat, 1.0, sd))


def p_value(values: Array) -> Array:
    """``(1 + #{null ≥ observed}) / (1 + P)``, never zero.

    A relabelling whose value is NaN counts as reaching the observed one; an
    observed NaN gives NaN.

    Args:
        values: Shape ``[P + 1, *]``.

    Returns:
        Shape ``[*]``.
    """
    observed, null = values[0], values[1:]
    reaches = ~(null < observed - TIE * np.abs(observed))
    p = (1 + reaches.sum(0)) / len(values)
    return np.where(np.isnan(observed), np.nan, p)


def p_max_t(values: Array) -> Array:
    """Family-wise p over layers by the maximum of the standardised statistic.

    Args:
        values: Shape ``[P + 1, L]``.

    Returns:
        Shape ``[L]``; NaN for layers that have no standardised value, which also
        take no part in the maximum.
    """
    t = standardise(values)
    eligible = np.isfinite(t[0])
    result = np.full(values.shape[1], np.nan)
    if eligible.any():
        null = np.where(np.isnan(t[1:, eligible]), np.inf, t[1:, eligible]).max(1)
        for layer in np.flatnonzero(eligible):
            result[layer] = p_value(np.concatenate([[t[0, layer]], null]))
    return result


def holm(p: Array) -> Array:
    """Family-wise p by Holm's step-down (Scandinavian J. Statistics 6, 1979).

    Valid under any dependence; for tests that share no relabellings, where max-T
    cannot be had. (The false discovery rate is `scipy.stats.false_discovery_control`.)

    Args:
        p: Shape ``[k]``.

    Returns:
        Shape ``[k]``; NaN stays NaN and counts as no test.
    """
    result = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return result


def combined_z(values: Array) -> Array:
    """The one number: mean over layers of the standardised divergence, standardised.

    It says how detectable a difference is, not how large, and is comparable only
    where probe and relabellings are the same.

    Args:
        values: Shape ``[P + 1, L]``.

    Returns:
        Shape ``[P + 1]``, the observed z first; NaN where no layer is eligible.
    """
    t = standardise(values)
    eligible = np.isfinite(t[0])
    if not eligible.any():
        return np.full(len(values), np.nan)
    return standardise(t[:, eligible].mean(1))


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and population SD over relabellings, leaving NaN out."""
    known = ~np.isnan(values)
    count = known.sum(0)
    mean = np.where(known, values, 0.0).sum(0) / count
    deviation = np.where(known, values - mean, 0.0)
    return mean, np.sqrt((deviation**2).sum(0) / count)
