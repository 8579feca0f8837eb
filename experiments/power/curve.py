"""From p of many data sets to rates, and to the smallest effect that is found."""

from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

ALPHA, POWER, LEVEL = 0.05, 0.8, 0.95
DRAWS = 2000
"""Of data sets, for the interval of an effect."""

Array = NDArray[np.float64]
Row = dict[str, Any]


def rates(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """How often p ≤ ALPHA, by people, share held out and effect.

    Args:
        table: One row per data set.
        quantity: Whose ``p_<quantity>``.

    Returns:
        Columns ``people, share, effect, found, data_sets, rate, low, high``; the last
        two are the exact binomial interval (Clopper & Pearson 1934).
    """
    column = f"p_{quantity}"
    known = table.dropna(subset=[column])
    rows = []
    keys = ["people", "share", "effect"]
    for key, part in known.groupby(keys, dropna=False):
        found, n = int((part[column] <= ALPHA).sum()), len(part)
        interval = scipy.stats.binomtest(found, n).proportion_ci(LEVEL, "exact")
        rows.append((*key, found, n, found / n, interval.low, interval.high))
    names = [*keys, "found", "data_sets", "rate", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def crossing(effects: Array, rate: Array, power: float = POWER) -> float:
    """Effect at which rates, joined by straight lines, first reach the power.

    Args:
        effects: Ascending, shape ``[k]``.
        rate: At each, shape ``[k]``.
        power: Wanted.

    Returns:
        The effect; infinity if none of them reaches it.
    """
    reached = np.flatnonzero(rate >= power)
    if not len(reached):
        return float("inf")
    at = int(reached[0])
    if at == 0:
        return float(effects[0])
    share = (power - rate[at - 1]) / (rate[at] - rate[at - 1])
    return float(effects[at - 1] + share * (effects[at] - effects[at - 1]))


def smallest_found(table: pd.DataFrame, quantity: str, seed: int = 0) -> Row:
    """Smallest effect found with the power wanted, and its interval.

    Data sets of one seed have the same people, so the interval draws seeds (with
    replacement), each with all of its effects.

    Args:
        table: Data sets of one cell, every seed with every effect.
        quantity: Whose ``p_<quantity>``.
        seed: Of the draws.

    Returns:
        ``effect``, ``low`` and ``high`` (of LEVEL; infinity where the power is not
        reached), and ``data_sets`` per effect.
    """
    wide = table.pivot_table(index="seed", columns="effect", values=f"p_{quantity}")
    found = (wide.dropna() <= ALPHA).to_numpy().astype(np.float64)  # [seeds, effects]
    effects = wide.columns.to_numpy(dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = [
        crossing(effects, found[rng.integers(len(found), size=len(found))].mean(0))
        for _ in range(DRAWS)
    ]
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(drawn, tails, method="inverted_cdf")
    return {
        "effect": crossing(effects, found.mean(0)),
        "low": float(low),
        "high": float(high),
        "data_sets": len(found),
    }
