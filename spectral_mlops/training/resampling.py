"""People drawn with replacement, relatives together, for intervals over people."""

from collections.abc import Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bootstrap_weights(
    cells: Mapping[str, Hashable],
    families: Mapping[str, str],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Return how often each person is drawn.

    Families are drawn as wholes (the cluster bootstrap), as many as there are, among
    those in the same cell; families with members in several cells among themselves,
    since few would share a make-up and those would not vary. Who has no relative is a
    family of one, so that without relatives people are drawn within cells.

    Args:
        cells: Stratum of each person.
        families: Family by person; whoever is not in it is alone.
        draws: How many.
        rng: Of the draws.

    Returns:
        Shape ``[draws]`` by person.
    """
    members: dict[Hashable, list[str]] = {}
    for who in cells:
        family = families.get(who)
        # a pair, so that no family is called like a person
        members.setdefault((family is None, family or who), []).append(who)
    strata: dict[Hashable, list[list[str]]] = {}
    for people in members.values():
        inside = {cells[who] for who in people}
        stratum = (inside.pop(),) if len(inside) == 1 else ()
        strata.setdefault(stratum, []).append(people)
    weights: dict[str, Array] = {}
    for drawn_from in strata.values():
        count = len(drawn_from)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        for people, times in zip(drawn_from, drawn.T.astype(np.float64), strict=True):
            weights |= dict.fromkeys(people, times)
    return weights
