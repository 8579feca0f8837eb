"""How sure performance is: bootstrap intervals over people.

People are drawn with replacement within group (and class), as many as there are;
networks stay as they are. An interval tells how much a number depends on who happened
to be held out, not how much another training would change it; relatives count as
unrelated people. Every metric is a weighted mean over people, or of pairs of them, so a
draw is a row of weights and no prediction is sorted twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.training.performance import Estimates, Predictions, Said

Array = NDArray[np.float64]
Metric = Callable[[Any, Array], Array]
"""Of `Said` of ``n`` people and weights ``[draws, n]``, giving ``[draws]``."""

LEVEL = 0.95
SMALLEST = 2
"""Fewest people of a group of whom anything is said."""


def weighted_auc(said: Predictions, weights: Array) -> Array:
    """Area under the ROC curve of weighted people.

    ``Σ_ij w_i w_j [s_i > s_j] / Σ_ij w_i w_j`` over pairs of a person of the class and
    one of another, ties counting half; of several classes the mean of each against the
    rest.

    Args:
        said: Of ``n`` people.
        weights: Shape ``[draws, n]``.

    Returns:
        Shape ``[draws]``; NaN where a class has no weight.
    """
    scores, targets = said.probabilities, said.targets
    classes = range(scores.shape[1]) if scores.shape[1] > 2 else [1]
    areas = []
    for one in classes:
        inside = targets == one
        higher = scores[inside, one][:, None] - scores[~inside, one][None]
        wins = (np.sign(higher) + 1) / 2  # [inside, outside]
        a, b = weights[:, inside], weights[:, ~inside]
        areas.append(_ratio(((a @ wins) * b).sum(1), a.sum(1) * b.sum(1)))
    return np.mean(areas, axis=0)


def weighted_balanced_accuracy(said: Predictions, weights: Array) -> Array:
    """Mean recall of weighted people over the classes present, shape ``[draws]``."""
    right = said.probabilities.argmax(1) == said.targets
    recalls = []
    for one in np.unique(said.targets):
        inside = said.targets == one
        part = weights[:, inside]
        recalls.append(_ratio(part @ right[inside], part.sum(1)))
    return _mean(np.stack(recalls))


def weighted_accuracy(said: Predictions, weights: Array) -> Array:
    """Share of weighted people told rightly, shape ``[draws]``."""
    right = said.probabilities.argmax(1) == said.targets
    return _ratio(weights @ right, weights.sum(1))


def weighted_loss(said: Said, weights: Array) -> Array:
    """Mean loss of weighted people, shape ``[draws]``."""
    return _ratio(weights @ said.losses, weights.sum(1))


def weighted_r2(said: Estimates, weights: Array) -> Array:
    """Coefficient of determination of weighted people, shape ``[draws]``.

    ``1 − Σ w (y − ŷ)² / Σ w (y − ȳ_w)²``; NaN where all who weigh have one target.
    """
    centred = said.targets - _weighted_mean(said.targets, weights)
    spread = np.where(_vary(said.targets, weights), (weights * centred**2).sum(1), 0.0)
    return 1 - _ratio(weights @ (said.targets - said.values) ** 2, spread)


def weighted_mae(said: Estimates, weights: Array) -> Array:
    """Mean absolute error of weighted people, shape ``[draws]``."""
    return _ratio(weights @ np.abs(said.targets - said.values), weights.sum(1))


def weighted_pearson(said: Estimates, weights: Array) -> Array:
    """Correlation of predicted and true of weighted people, shape ``[draws]``.

    NaN where either is the same for all who weigh.
    """
    both = (said.targets, said.values)
    x, y = (values - _weighted_mean(values, weights) for values in both)
    scale = np.sqrt((weights * x**2).sum(1) * (weights * y**2).sum(1))
    known = np.logical_and(*(_vary(values, weights) for values in both))
    return _ratio((weights * x * y).sum(1), np.where(known, scale, 0.0))


METRICS: dict[str, Metric] = {
    "auc": weighted_auc,
    "balanced_accuracy": weighted_balanced_accuracy,
    "accuracy": weighted_accuracy,
    "loss": weighted_loss,
}
"""Of `Predictions`."""
METRICS_OF_NUMBERS: dict[str, Metric] = {
    "r2": weighted_r2,
    "mae": weighted_mae,
    "pearson": weighted_pearson,
    "loss": weighted_loss,
}
"""Of `Estimates`."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One model's predictions, and about whom.

    Attributes:
        model: Its name.
        people: ``validation`` or ``probe``.
        parts: Predictions of each network: folds, and seeds within them. A person may
            stand in several.
    """

    model: str
    people: str
    parts: Sequence[Said]


def performance_table(
    judged: Sequence[Judged],
    labels: Mapping[str, str],
    draws: int = 1000,
    seed: int = 0,
    metrics: Mapping[str, Metric] = METRICS,
) -> pd.DataFrame:
    """Judge models over all people and group by group, with intervals.

    A metric is computed for every network's people and averaged over networks; those
    that lack a class of a group are left out of that group's AUC (and those that have
    one target in it, of its R² and correlation). Of everyone, ``value`` is what
    ``final/auc`` (or ``r2``) and ``final/probe_auc`` are.

    Args:
        judged: All models; of the same people the same draws are taken.
        labels: Group of each person, by id.
        draws: Of the bootstrap.
        seed: Of the draws.
        metrics: By name.

    Returns:
        Columns ``model, people, group, n, metric, value, low, high``: the group
        ``all`` first, then each of two people or more; 95 % percentile intervals. AUC
        is left out where no network's people have every class, R² where none's vary.
    """
    rows = []
    for one in judged:
        weights = _draw(one.parts, labels, draws, seed)
        groups = sorted({labels[who] for part in one.parts for who in part.ids})
        for group in ["all", *(name for name in groups if name != "all")]:
            rows += _rows_of(one, group, weights, labels, metrics)
    return pd.DataFrame(rows, columns=[*ROW])


ROW = ("model", "people", "group", "n", "metric", "value", "low", "high")


def _rows_of(
    one: Judged,
    group: str,
    weights: Mapping[str, Array],
    labels: Mapping[str, str],
    metrics: Mapping[str, Metric],
) -> list[dict[str, object]]:
    """Return one row per metric, of everyone or of one group."""
    parts = []
    for part in one.parts:
        chosen = np.array([group in ("all", labels[who]) for who in part.ids])
        if chosen.any():
            parts.append(part.of(chosen))
    people = {who for part in parts for who in part.ids}
    if len(people) < SMALLEST:
        return []
    rows = []
    for name, metric in metrics.items():
        each = []
        for part in parts:
            drawn = np.stack([weights[who] for who in part.ids], axis=1)
            plain = np.ones((1, len(part.ids)))
            each.append(metric(part, np.vstack([plain, drawn])))
        known = np.stack(each)  # [networks, 1 + draws]
        known = known[np.isfinite(known[:, 0])]
        if not len(known):
            continue
        values = _mean(known)
        low, high = np.nanquantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        row = (one.model, one.people, group, len(people), name, values[0], low, high)
        rows.append(dict(zip(ROW, row, strict=True)))
    return rows


def _draw(
    parts: Sequence[Said], labels: Mapping[str, str], draws: int, seed: int
) -> dict[str, Array]:
    """Return how often each person is drawn, ``{person: [draws]}``.

    Within group, and class where there are some, over all folds: strata of a fold would
    be so small that they hide much of what varies.
    """
    cells: dict[tuple[int, str], list[str]] = {}
    seen: set[str] = set()
    for part in parts:
        for who, stratum in zip(part.ids, part.strata, strict=True):
            if who not in seen:
                cells.setdefault((int(stratum), labels[who]), []).append(who)
                seen.add(who)
    rng = np.random.default_rng([seed, draws])
    weights: dict[str, Array] = {}
    for members in cells.values():
        count = len(members)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        weights |= dict(zip(members, drawn.T.astype(np.float64), strict=True))
    return weights


def _weighted_mean(values: Array, weights: Array) -> Array:
    """Shape ``[draws, 1]``."""
    return _ratio(weights @ values, weights.sum(1))[:, None]


def _vary(values: Array, weights: Array) -> NDArray[np.bool_]:
    """Whether those who weigh differ, ``[draws]``: sums of squares round to no zero."""
    there = weights > 0
    low = np.where(there, values, np.inf).min(axis=1)
    return low < np.where(there, values, -np.inf).max(axis=1)


def _mean(values: Array) -> Array:
    """Average over the first axis what is there; NaN where nothing is."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(0), known.sum(0).astype(np.float64))


def _ratio(above: Array, below: Array) -> Array:
    """Divide; NaN where nothing is below."""
    full = np.full(above.shape, np.nan)
    return np.divide(above, below, out=full, where=below > 0)
