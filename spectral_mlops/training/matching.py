"""People of equal loss, relatives together: matches that cut no family."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

NODES = 2000
"""Where the search for the best matches ends; what it has then is taken."""


def match_families(
    losses: NDArray[np.float64],
    first: NDArray[np.intp],
    others: Sequence[NDArray[np.intp]],
    families: Sequence[str],
    limit: float,
) -> list[list[int]]:
    """Match everybody of a family or nobody, as many people as can be.

    An integer programme: a variable for every pair of people who may be matched, and
    one for every family, which is what the variables of each member's pairs add up
    to. First comes the number of matches, then how near they are.

    Args:
        losses: Of each person, shape ``[n]``.
        first: Places of the smallest group's people.
        others: Those of each other group.
        families: Family of each person.
        limit: Largest difference of losses within a match.

    Returns:
        Matches, each with one person per group, the smallest group's first.
    """
    codes = np.unique(np.asarray(families, dtype=str), return_inverse=True)[1]
    one, two, gaps, number = [], [], [], []
    for k, other in enumerate(others):
        apart = abs(losses[first][:, None] - losses[other])
        i, j = np.nonzero(apart <= limit)
        one.append(first[i])
        two.append(other[j])
        gaps.append(apart[i, j])
        number.append(np.full(len(i), k))
    i, j, gap, of = (np.concatenate(x) for x in (one, two, gaps, number))
    if not len(gap):
        return []
    # a row of every person and other group: first people once for each of the others
    n, pairs = len(losses), len(gap)
    rows = [i + of * n, j + of * n]
    who = [np.concatenate([first, other]) for other in others]
    members = np.concatenate([one + k * n for k, one in enumerate(who)])
    entries = coo_array(
        (
            np.concatenate([np.ones(2 * pairs), -np.ones(len(members))]),
            (
                np.concatenate([*rows, members]),
                np.concatenate([*(np.arange(pairs),) * 2, pairs + codes[members % n]]),
            ),
        ),
        shape=(len(others) * n, pairs + codes.max() + 1),
    )
    most = len(others) * n + 1.0  # one match more is worth any nearness
    worth = most * np.bincount(codes[first], minlength=codes.max() + 1)
    found = milp(
        np.concatenate([gap / max(limit, np.finfo(float).tiny), -worth]),
        integrality=np.ones(entries.shape[1]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(entries.tocsr(), 0, 0),
        options={"mip_rel_gap": 0, "node_limit": NODES},
    )
    matched = {int(place): [int(place)] for place in first}
    if found.x is None:
        return []
    for pair in np.flatnonzero(found.x[:pairs] > 0.5):
        matched[int(i[pair])].append(int(j[pair]))
    return [match for match in matched.values() if len(match) == len(others) + 1]
