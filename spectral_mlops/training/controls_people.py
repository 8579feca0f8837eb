"""People for controls: surrogates, people of equal loss, groups that mean nothing."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.optimize import linear_sum_assignment

from spectral_mlops.cohorts.columns import concept_of, plain
from spectral_mlops.inference.effects import draw_subsamples
from spectral_mlops.inference.exchange import draw_exchanges, kinds_of
from spectral_mlops.inference.whole_families import WholeFamilies
from spectral_mlops.training.matching import match_families

CALIPER = 0.2
"""Largest difference of losses within a match, in SDs of all of them."""
CONCEPTS = ("age", "sex", "site", "fd")
MEASURES = ("scanlength", "volumes", "nvolumes", "timepoints", "duration", "motion")
"""Columns that control `nuisance` looks for: by concept, and by plain name."""
FEW = 5
"""Different numbers up to which a column names groups; more are split at the median."""


def surrogate_mixing(
    groups: Sequence[str], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mixing that makes Gaussian people out of people.

    Multiplied from the left with the input rows of people, it gives rows with exactly
    the mean and the covariance of each group, and otherwise Gaussian ones: given those
    two, Gaussian samples are distributed as a random rotation of each other. No
    covariance is estimated, so none is too large, singular or in need of shrinkage.

    Args:
        groups: Group of each person, length ``n``.
        random: Of the draw.

    Returns:
        An orthogonal matrix, shape ``[n, n]``, zero between groups.
    """
    labels = np.asarray(groups, dtype=str)
    mixing = np.zeros((len(labels), len(labels)))
    for group in np.unique(labels):
        members = np.flatnonzero(labels == group)
        n = len(members)
        block = np.full((n, n), 1 / n)
        if n > 1:
            contrasts = helmert(n).T  # [n, n - 1], orthonormal, each of sum zero
            q, r = np.linalg.qr(random.standard_normal((n - 1, n - 1)))
            block += contrasts @ (q * np.sign(np.diag(r))) @ contrasts.T
        mixing[np.ix_(members, members)] = block
    return mixing


def match_by_loss(
    losses: NDArray[np.float64],
    groups: Sequence[str],
    families: Sequence[str] | None = None,
) -> list[list[int]]:
    """Match people of all groups by nearest loss, each at most once.

    Every person of the smallest group gets the nearest of each other group such that
    the differences add up to the least; matches further apart than `CALIPER` are
    dropped. Of families every member is matched or none is.

    Args:
        losses: Of each person, shape ``[n]``.
        groups: Group of each person.
        families: Family of each person, if any are relatives.

    Returns:
        Matches, each with one person per group, the smallest group's first.
    """
    labels = np.asarray(groups, dtype=str)
    names = np.unique(labels).tolist()
    members = {name: np.flatnonzero(labels == name) for name in names}
    first = min(names, key=lambda name: len(members[name]))
    others = [members[name] for name in names if name != first]
    limit = CALIPER * float(losses.std())
    if families is not None:
        return match_families(losses, members[first], others, families, limit)
    matched = {i: [i] for i in members[first].tolist()}
    for other in others:
        gaps = abs(losses[members[first]][:, None] - losses[other])
        cost = np.where(gaps <= limit, gaps, len(losses) * (limit + 1.0))
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            if gaps[i, j] <= limit:
                matched[int(members[first][i])].append(int(other[j]))
    return [match for match in matched.values() if len(match) == len(names)]


def equal_sizes(
    groups: Sequence[str],
    random: np.random.Generator,
    families: Sequence[str] | None = None,
) -> list[int]:
    """Return as many people of each group as the smallest has, in order.

    Args:
        groups: Group of each person.
        random: Of the draw.
        families: Family of each person, if any are relatives: whole or not at all,
            and as many people as that allows, which may be none.
    """
    labels = np.asarray(groups, dtype=str)
    codes = np.unique(labels, return_inverse=True)[1]
    size = int(np.bincount(codes).min())
    if families is not None:
        size = WholeFamilies(codes, families).largest(size)
    if not size:
        return []
    (chosen,) = draw_subsamples(codes[None], size, random, families)
    return np.flatnonzero(chosen).tolist()


def permuted_within(
    labels: Sequence[str],
    strata: Sequence[str],
    random: np.random.Generator,
    families: Sequence[str] | None = None,
) -> list[str]:
    """Permute labels within strata, families as blocks."""
    (giver,) = draw_exchanges(kinds_of(strata, families), 1, random)
    return [labels[i] for i in giver]


def random_halves(
    n: int, random: np.random.Generator, families: Sequence[str] | None = None
) -> list[str]:
    """Deal ``n`` people into two halves, of equal size if ``n`` is even.

    Args:
        n: How many.
        random: Of the deal.
        families: Family of each, whose members come into one half: the largest first,
            each into the smaller half, so that people without relatives even them out.
    """
    if families is None:
        return [f"half {1 + i % 2}" for i in random.permutation(n)]
    names, sizes = np.unique(np.asarray(families, dtype=str), return_counts=True)
    shuffled = random.permutation(len(names))
    half, dealt = {}, [0, 0]
    for k in sorted(shuffled.tolist(), key=lambda k: -sizes[k]):
        smaller = int(np.argmin(dealt)) if dealt[0] != dealt[1] else random.integers(2)
        half[names[k]] = f"half {1 + smaller}"
        dealt[smaller] += int(sizes[k])
    return [half[name] for name in families]


def nuisance_columns(people: pd.DataFrame, wanted: Sequence[str] = ()) -> list[str]:
    """Return the columns named, or those that look like age, sex, site or motion."""
    if wanted:
        return list(wanted)
    names = [str(name) for name in people.columns]
    return [n for n in names if concept_of(n) in CONCEPTS or plain(n) in MEASURES]


def nuisance_groups(column: "pd.Series[str]") -> list[str | None]:
    """Turn a column into groups: labels as they are, many numbers at the median.

    Args:
        column: One value a person.

    Returns:
        A group per person; None where the value is not known.
    """
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().sum() == column.notna().sum() and numbers.nunique() > FEW:
        middle = numbers.median()
        return [
            None if x != x else f"≤ {middle:g}" if x <= middle else f"> {middle:g}"
            for x in numbers
        ]
    return [None if pd.isna(x) else str(x) for x in column]
