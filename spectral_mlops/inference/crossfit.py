"""One p from several that depend on each other: cross-fitting over folds.

Where a cohort is too small for a probe, each fold's held-out people are compared
under the network trained on the others. The folds' p share most training people, so
nothing may be assumed of their dependence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spectral_mlops.errors import InputError


@dataclass(frozen=True)
class CombinedP:
    """The p of all folds together.

    Attributes:
        p: ``min(1, 2 · mean)``, or NaN.
        folds: Their number.
        reason: Why there is no p; empty if there is one.
    """

    p: float
    folds: int
    reason: str


def combine_folds(p: Sequence[float]) -> CombinedP:
    """Twice the mean of p, at most 1: valid under any dependence.

    Twice the arithmetic mean of p-values is a p-value whatever their joint law, and
    2 cannot be lowered (Rüschendorf 1982, Advances in Applied Probability 14,
    623-632; Vovk & Wang 2020, Biometrika 107, 791-808). A fold without p makes the
    whole NaN: which folds have one may depend on the data.

    Args:
        p: One per fold.

    Returns:
        The combined p, or why there is none.

    Raises:
        InputError: If there are no folds or a value is no p.
    """
    values = np.asarray(p, dtype=np.float64)
    known = values[~np.isnan(values)]
    if values.ndim != 1 or len(values) == 0 or ((known < 0) | (known > 1)).any():
        raise InputError(f"p={list(p)}: give one p between 0 and 1 for each fold.")
    lost = np.flatnonzero(np.isnan(values))
    if len(lost):
        which = ", ".join(map(str, lost))
        word = "folds" if len(lost) > 1 else "fold"
        return CombinedP(float("nan"), len(values), f"no p in {word} {which}")
    return CombinedP(float(min(1.0, 2 * values.mean())), len(values), "")
