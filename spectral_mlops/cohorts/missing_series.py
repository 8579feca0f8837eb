"""Dead components and gaps in time courses: refused, left out, or filled, never silent.

A component is dead if it is constant (no brain under the region) or has no value at
all; a correlation with it does not exist.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from spectral_mlops.cohorts.series_files import Array
from spectral_mlops.errors import InputError

Dead = Literal["raise", "drop_subject", "impute_mean", "zero"]
FLAT = 1e-6
"""Below this share of a person's widest range a component counts as constant."""


def dead_components(values: Array) -> np.ndarray:
    """Tell which components are constant or have no value, shape ``[C]``, bool.

    Args:
        values: Shape ``[T, C]``; what is not finite is missing.
    """
    known = np.isfinite(values)
    high = np.where(known, values, -np.inf).max(axis=0)
    low = np.where(known, values, np.inf).min(axis=0)
    spread = np.where(known.any(axis=0), high - low, 0.0)
    return np.asarray(spread <= FLAT * spread.max())


def repair(
    series: Mapping[str, Array], policy: Dead, names: tuple[str, ...], where: object
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Deal with dead components and missing values.

    ``impute_mean`` gives a missing value its component's own mean over time, and a
    dead component the person's mean over living ones, time point by time point; both
    are of this person alone, so nothing leaks between people. ``zero`` writes 0.

    Args:
        series: Shape ``[T_i, C]`` by id.
        policy: What to do.
        names: Of the components, for messages.
        where: The files, for messages.

    Returns:
        Finite time courses of those who stay, and notes.

    Raises:
        InputError: Under ``raise`` if anything is dead or missing, and if nobody is
            left or somebody has no living component to take a mean of.
    """
    dead = {who: dead_components(values) for who, values in series.items()}
    gaps = {
        who: int((~np.isfinite(values[:, ~dead[who]])).sum())
        for who, values in series.items()
    }
    bad = [who for who in series if dead[who].any() or gaps[who]]
    if not bad:
        return dict(series), ()
    first = bad[0]
    columns = dead[first] | ~np.isfinite(series[first]).all(axis=0)
    column = int(np.flatnonzero(columns)[0])
    told = (
        f"{sum(int(one.sum()) for one in dead.values())} dead (constant or empty) "
        f"components and {sum(gaps.values())} missing values of {len(bad)} people"
    )
    if policy == "raise":
        name = f"'{names[column]}'" if names else str(column)
        raise InputError(
            f"{where}: {told}, the first that of {first}, component {name}; repair "
            "them, or set dead='drop_subject', 'impute_mean' or 'zero'."
        )
    if policy == "drop_subject":
        kept = {who: one for who, one in series.items() if who not in set(bad)}
        if not kept:
            raise InputError(
                f"{where}: {told}, which is everyone, so dead='drop_subject' leaves "
                "nobody; leave out the component instead."
            )
        return kept, (f"dead='drop_subject' left out {len(bad)}: {', '.join(bad)}",)
    filled = {
        who: _fill(one, dead[who], policy, f"{where}: {who}")
        if who in set(bad)
        else one
        for who, one in series.items()
    }
    return filled, (f"{told}: filled as dead='{policy}' asks",)


def _fill(values: Array, dead: np.ndarray, policy: Dead, who: str) -> Array:
    """Fill one person's gaps and dead components."""
    filled = np.where(np.isfinite(values), values, 0.0)
    if policy == "zero":
        filled[:, dead] = 0.0
        return filled
    if dead.all():
        raise InputError(
            f"{who} has no living component to take a mean of; leave the person out."
        )
    known = np.isfinite(values)
    mean = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)  # [C]
    filled = np.where(known, values, mean)
    filled[:, dead] = filled[:, ~dead].mean(axis=1, keepdims=True)
    return filled
