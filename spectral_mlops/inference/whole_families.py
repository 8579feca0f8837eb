"""Equally many people of every group, families whole or not at all.

Relatives are alike: half of a family in a subsample and half out of it is neither
another family nor the same one again. So subsamples are unions of families, every
union with the wanted number of people in each group as likely as any other. Where
nobody has a relative these are the subsets of people.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import comb, prod

import numpy as np
from numpy.typing import NDArray

MakeUp = tuple[int, ...]
"""How many people of each group a family has."""
Kinds = tuple[tuple[MakeUp, int], ...]
"""Make-ups, and how many families have each."""


class WholeFamilies:
    """Families among people of groups, and how they can be drawn.

    Args:
        codes: Group of each person, below 0 for those who take no part, ``[n]``.
        families: Family of each.
    """

    def __init__(self, codes: NDArray[np.int64], families: Sequence[Hashable]) -> None:
        groups = np.unique(codes[codes >= 0]).tolist()
        self._people = len(codes)
        members: dict[Hashable, list[int]] = defaultdict(list)
        for place, (code, family) in enumerate(zip(codes, families, strict=True)):
            if code >= 0:
                members[family].append(place)
        self._places: dict[MakeUp, list[list[int]]] = defaultdict(list)
        for places in members.values():
            own = codes[places].tolist()
            self._places[tuple(own.count(group) for group in groups)].append(places)
        kinds = [(make_up, len(own)) for make_up, own in sorted(self._places.items())]
        self._mixed: Kinds = tuple(k for k in kinds if np.count_nonzero(k[0]) > 1)
        # families of one group alone, group by group: their ways multiply
        self._pure: tuple[Kinds, ...] = tuple(
            tuple(
                ((make_up[g],), number)
                for make_up, number in kinds
                if make_up[g] and np.count_nonzero(make_up) == 1
            )
            for g in range(len(groups))
        )

    def ways(self, m: int) -> int:
        """Count the unions of families with ``m`` people of every group."""
        return _ways(self._mixed, self._pure, (m,) * len(self._pure))

    def largest(self, most: int) -> int:
        """Return the largest number up to ``most`` that can be drawn, or 0."""
        return next((m for m in range(most, 0, -1) if self.ways(m)), 0)

    def draw(self, m: int, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Draw ``m`` people of every group.

        Args:
            m: A number with at least one way.
            generator: Of random numbers.

        Returns:
            Who is drawn, ``[n]``.
        """
        groups = len(self._pure)
        numbers, left = _numbers(self._mixed, self._pure, (m,) * groups, generator)
        taken = [(k[0], n) for k, n in zip(self._mixed, numbers, strict=True)]
        for g, kinds in enumerate(self._pure):
            numbers, _ = _numbers(kinds, (), (left[g],), generator)
            for ((size,), _), number in zip(kinds, numbers, strict=True):
                taken.append((tuple(size * (h == g) for h in range(groups)), number))
        chosen = np.zeros(self._people, dtype=bool)
        for make_up, number in taken:
            own = self._places[make_up]
            for k in generator.choice(len(own), number, replace=False).tolist():
                chosen[own[k]] = True
        return chosen


def _choices(kind: tuple[MakeUp, int], left: MakeUp) -> list[tuple[int, MakeUp]]:
    """List in how many ways 0, 1, 2… families of a kind are taken, and what is left."""
    make_up, families = kind
    most = min(size // n for size, n in zip(left, make_up, strict=True) if n)
    return [
        (
            comb(families, k),
            tuple(size - k * n for size, n in zip(left, make_up, strict=True)),
        )
        for k in range(min(families, most) + 1)
    ]


@lru_cache(maxsize=1 << 14)
def _ways(kinds: Kinds, pure: tuple[Kinds, ...], left: MakeUp) -> int:
    """Count the unions of families that have just so many people of each group.

    Args:
        kinds: Families that are chosen first.
        pure: Families of one group, for each of the groups, chosen then; none if
            ``kinds`` are all there are.
        left: How many people of each group are wanted.
    """
    if kinds:
        choices = _choices(kinds[0], left)
        return sum(ways * _ways(kinds[1:], pure, rest) for ways, rest in choices)
    if not pure:
        return int(not any(left))
    return prod(_ways(own, (), (n,)) for own, n in zip(pure, left, strict=True))


def _numbers(
    kinds: Kinds,
    pure: tuple[Kinds, ...],
    left: MakeUp,
    generator: np.random.Generator,
) -> tuple[list[int], MakeUp]:
    """Draw how many families of each kind are taken, and what they leave.

    Each number comes as often as there are unions with it, so that in the end all
    unions are equally likely.
    """
    numbers = []
    for step, kind in enumerate(kinds):
        choices = _choices(kind, left)
        counts = [own * _ways(kinds[step + 1 :], pure, rest) for own, rest in choices]
        whole = sum(counts)  # may be beyond what a float holds, shares are not
        shares = [count / whole for count in counts]
        numbers.append(int(generator.choice(len(shares), p=shares)))
        left = choices[numbers[-1]][1]
    return numbers, left
