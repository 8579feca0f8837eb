"""From statistics under relabellings to the rows a reader sees.

A `Comparison` holds one statistic under the observed labels and all relabellings.
Averages (over folds) are taken on these, relabelling by relabelling, because the
same relabellings were applied everywhere; only then are z and p formed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spectral_mlops.inference.significance import (
    Array,
    combined_z,
    p_max_t,
    p_value,
    standardise,
)
from spectral_mlops.records import Divergence, Quantity

EVERY_GROUP = "*"
"""Stands for both groups where all of them are compared at once."""
NOTHING_MOVES = "no relabelling within the strata gives another value"
DIFFERENT_NULLS = "descriptive: an average over folds that relabel different people"


@dataclass(frozen=True, eq=False)
class Comparison:
    """One layer and quantity, two groups, one statistic.

    Where all groups are compared at once both are `EVERY_GROUP`; ``n_a`` and
    ``subjects_a`` are then those of the smallest group, ``n_b`` and ``subjects_b`` of
    the largest.

    Attributes:
        values: Shape ``[P + 1]``, the observed one first; ``[1]`` without a null.
        testable: Whether z and p may be formed: the relabellings are exchangeable.
        reason: Why something is missing; empty if nothing is.
    """

    layer: str
    quantity: Quantity
    grouping: str
    group_a: str
    group_b: str
    divergence: str
    values: Array
    n_a: int
    n_b: int
    subjects_a: int
    subjects_b: int
    source: str
    null: str
    strata: str
    valid_for: str
    testable: bool
    reason: str

    @property
    def has_null(self) -> bool:
        """Whether there are relabellings beside the observed labels."""
        return len(self.values) > 1


def to_divergences(comparisons: Sequence[Comparison]) -> list[Divergence]:
    """Form z, p and family-wise p; rows come back in the order given.

    ``p_max`` is adjusted over the layers of the same quantity, grouping and pair.
    """
    families: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, item in enumerate(comparisons):
        if item.has_null and item.testable:
            families[_family(item)].append(i)
    p_max = dict.fromkeys(range(len(comparisons)), np.nan)
    for members in families.values():
        together = np.stack([comparisons[i].values for i in members], axis=1)
        p_max |= dict(zip(members, p_max_t(together), strict=True))
    return [_row(item, p_max[i]) for i, item in enumerate(comparisons)]


def average(folds: Sequence[Iterable[Comparison]]) -> list[Comparison]:
    """Average the same comparison over folds, relabelling by relabelling.

    Folds in which it has no finite observed value are left out of its average, and
    so are folds without a null where others have one. Sizes are those of the first
    fold that is in; the average is testable if all of them are and have one null, and
    not of a single fold that has one. Where folds relabel different people, and one
    has fewer relabellings than another, its own are gone through again and again.

    Args:
        folds: The comparisons of each fold, made with the same relabellings.
    """
    together: dict[tuple[str, ...], list[Comparison]] = defaultdict(list)
    for fold in folds:
        for item in fold:
            together[(item.layer, *_family(item))].append(item)
    result = []
    for items in together.values():
        known = [x for x in items if np.isfinite(x.values[0])]
        if known:
            used = [x for x in known if x.has_null] or known
            result.append(_mean(used, alone=len(used) == 1 < len(known)))
        else:
            result.append(items[0])
    return result


def _family(item: Comparison) -> tuple[str, ...]:
    """Everything but the layer."""
    return (
        item.quantity,
        item.grouping,
        item.group_a,
        item.group_b,
        item.divergence,
        item.source,
    )


def _mean(items: Sequence[Comparison], alone: bool) -> Comparison:
    """Average comparisons that have the same relabellings.

    Where they have not (folds of different training people), the average is still a
    description, but no test: relabellings drawn anew for each fold and averaged
    would reject far too often. A fold that is ``alone`` in having a null (its people
    could be relabelled, the others' not) does not speak for all.
    """
    untestable = next((item for item in items if not item.testable), None)
    first = untestable or items[0]
    number = max(len(item.values) for item in items) - 1
    every = [np.append(x.values[0], np.resize(x.values[1:], number)) for x in items]
    mean = replace(first, values=np.mean(every, axis=0))
    if untestable is None and (alone or len({item.null for item in items}) > 1):
        reason = first.reason or DIFFERENT_NULLS
        mean = replace(mean, testable=False, valid_for=DIFFERENT_NULLS, reason=reason)
    return mean


def headline(comparisons: Iterable[Comparison], quantity: str) -> float:
    """The one number per quantity (`significance.combined_z`), over all layers.

    With more than two groups, pass comparisons whose relabellings move everyone's
    labels together; every pair at every layer is then one column.

    Returns:
        z, or NaN where no layer is testable and eligible.
    """
    values = [
        item.values
        for item in comparisons
        if item.quantity == quantity and item.testable and item.has_null
    ]
    if not values:
        return float("nan")
    return float(combined_z(np.stack(values, axis=1))[0])


def mean_excess(comparisons: Iterable[Comparison], quantity: str) -> float:
    """Mean over layers of the value less the mean under relabelling; descriptive."""
    excess = [row.excess for row in map(_row, comparisons) if row.quantity == quantity]
    known = [x for x in excess if np.isfinite(x)]
    return float(np.mean(known)) if known else float("nan")


def _row(item: Comparison, p_max: float = np.nan) -> Divergence:
    value = float(item.values[0])
    mean = sd = z = p = np.nan
    reason = item.reason
    if item.has_null and np.isfinite(value):
        null = item.values[1:]
        known = null[np.isfinite(null)]
        if len(known):
            mean, sd = float(known.mean()), float(known.std())
        z = float(standardise(item.values)[0])
        p = float(p_value(item.values))
        if np.isnan(z):
            reason = reason or NOTHING_MOVES
            p = p_max = np.nan
    if not item.testable:
        z = p = p_max = np.nan
    return Divergence(
        layer=item.layer,
        quantity=item.quantity,
        grouping=item.grouping,
        group_a=item.group_a,
        group_b=item.group_b,
        divergence=item.divergence,
        value=value,
        null_mean=mean,
        null_sd=sd,
        excess=value - mean,
        z=z,
        p=p,
        p_max=p_max,
        n_a=item.n_a,
        n_b=item.n_b,
        subjects_a=item.subjects_a,
        subjects_b=item.subjects_b,
        source=item.source,
        null=item.null,
        strata=item.strata,
        valid_for=item.valid_for,
        reason=reason,
    )
