"""Families: people who belong together, and are drawn together."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from spectral_mlops.cohorts.columns import plain

NAMES = ("family", "familyid")
"""How a column of families is called, without case, blanks and underscores."""


def families_of(people: pd.DataFrame) -> "pd.Series[str] | None":
    """Return the family of each person, where a column tells of any.

    Args:
        people: Index of ids; a column ``family`` or ``family_id``, if there is one.
            Whoever has none is a family of their own.

    Returns:
        Texts by id; None where nobody has a relative in the table.
    """
    found = [name for name in people.columns if plain(str(name)) in NAMES]
    if not found:
        return None
    ids = [str(who) for who in people.index]
    column = people[found[0]]
    names = [
        f"alone {who}" if unknown else str(name)
        for who, name, unknown in zip(ids, column, column.isna(), strict=True)
    ]
    families = pd.Series(names, index=pd.Index(ids, dtype=object), dtype=object)
    return families if families.duplicated().any() else None


def draw_families(
    families: "pd.Series[str]",
    cells: "pd.Series[str]",
    groups: "pd.Series[str]",
    share_of: Mapping[str, int],
    rng: np.random.Generator,
) -> list[str]:
    """Draw whole families until every group has its share.

    Families come in random order: first those that fit into what is left of their
    strata, then those that fit into what is left of their groups, then, for groups
    still short, those that add the fewest people too many.

    Args:
        families: Family of each person, by id.
        cells: Stratum of each person, by sorted id.
        groups: Group of each person, by id.
        share_of: How many people each stratum should give.
        rng: Of the draw.

    Returns:
        Ids; no group has fewer people than the shares of its strata add up to.
    """
    members: dict[str, list[str]] = {}
    for who in cells.index:
        members.setdefault(families[who], []).append(who)
    waiting = [sorted(members)[i] for i in rng.permutation(len(members))]
    cell_left, group_left = Counter(share_of), Counter[str]()
    group_of_cell = dict(zip(cells, groups[cells.index], strict=True))
    for cell, share in share_of.items():
        group_left[group_of_cell[cell]] += share
    chosen: list[str] = []

    def take(family: str) -> None:
        chosen.extend(members[family])
        cell_left.subtract(cells[members[family]])
        group_left.subtract(groups[members[family]])
        waiting.remove(family)

    for column, left in ((cells, cell_left), (groups, group_left)):
        for family in tuple(waiting):
            need = Counter(column[members[family]])
            if all(left[key] >= n for key, n in need.items()):
                take(family)
    while short := [group for group, left in group_left.items() if left > 0]:
        helpful = [f for f in waiting if set(groups[members[f]]) & set(short)]
        excess = {
            family: sum(
                max(0, n - max(0, group_left[group]))
                for group, n in Counter(groups[members[family]]).items()
            )
            for family in helpful
        }
        take(min(helpful, key=lambda family: excess[family]))
    return chosen
