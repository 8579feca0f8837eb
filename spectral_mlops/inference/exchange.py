"""Who may exchange labels with whom: people within strata, families as blocks.

Relatives are alike, in data and often in label, and single people of different
families may then not be exchanged. Families of one *kind* (as many members in each
stratum) exchange the labels of all their members as a whole, and members of one
family and stratum exchange theirs among themselves; both together, as
exchangeability blocks of Winkler, Webster, Vidaurre, Nichols & Smith (2015,
NeuroImage 123, 253-268). Who has no relative is a family of one, and where nobody
has, this is the permutation of people within strata.

It assumes that relatives of one stratum are alike in kind: parents and children want
a stratum that tells them apart.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import product
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Kind = tuple[NDArray[np.intp], ...]
"""Families of one make-up: per stratum that they are in, the places of their members
there, shape ``[families, members]``."""


def kinds_of(
    strata: Sequence[str], families: Sequence[Hashable] | None = None
) -> tuple[Kind, ...]:
    """Sort families by how many members they have in each stratum.

    Args:
        strata: One stratum per person, length ``n``.
        families: One family per person; everybody is their own if not given.
    """
    named = range(len(strata)) if families is None else families
    members: dict[Hashable, dict[str, list[int]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for place, (family, stratum) in enumerate(zip(named, strata, strict=True)):
        members[family][str(stratum)].append(place)
    alike: dict[tuple[tuple[str, int], ...], list[list[list[int]]]] = defaultdict(list)
    for places in members.values():
        own = sorted(places)
        make_up = tuple((stratum, len(places[stratum])) for stratum in own)
        alike[make_up].append([places[stratum] for stratum in own])
    return tuple(
        tuple(np.array(x, dtype=np.intp) for x in zip(*alike[make_up], strict=True))
        for make_up in sorted(alike)
    )


def by_family(kind: Kind) -> list[tuple[NDArray[np.intp], ...]]:
    """Places of each family's members, stratum by stratum."""
    return list(zip(*kind, strict=True))


def draw_exchanges(
    kinds: Sequence[Kind], number: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw whose label each person gets, every exchange as likely as any other.

    Args:
        kinds: Of ``n`` people, from `kinds_of`.
        number: Of draws.
        generator: Of random numbers.

    Returns:
        Places of people, shape ``[number, n]``.
    """
    people = sum(part.size for kind in kinds for part in kind)
    givers = np.empty((number, people), dtype=np.int64)
    for kind in kinds:
        count = len(kind[0])
        order = generator.permuted(np.tile(np.arange(count), (number, 1)), axis=1)
        if all(part.shape[1] == 1 for part in kind):
            for part in kind:
                givers[:, part[:, 0]] = part[order, 0]
            continue
        for family, other in enumerate(order.T):
            for part in kind:
                givers[:, part[family]] = generator.permuted(part[other], axis=1)
    return givers


def count_distinct(kinds: Sequence[Kind], codes: Codes) -> int:
    """Count the different labellings that exchanges give, the observed one included.

    Of each kind: which family gets whose labels, times the orders of labels within
    the strata of every family.

    Args:
        kinds: From `kinds_of`.
        codes: Label of each person, shape ``[n]``.
    """
    number = 1
    for kind in kinds:
        held = _held(kind, codes)
        number *= _orders(Counter(held))
        for inside in (labels for family in held for labels in family):
            number *= _orders(Counter(inside))
    return number


def list_distinct(kinds: Sequence[Kind], codes: Codes) -> Codes:
    """List every different labelling once.

    Args:
        kinds: From `kinds_of`.
        codes: Label of each person, shape ``[n]``.

    Returns:
        Shape ``[count_distinct(kinds, codes), n]``.
    """
    result = np.tile(codes, (count_distinct(kinds, codes), 1))
    each = product(*(list(_labellings(kind, codes)) for kind in kinds))
    places = [np.concatenate([*map(np.concatenate, by_family(k))]) for k in kinds]
    for row, parts in zip(result, each, strict=True):
        for where, part in zip(places, parts, strict=True):
            row[where] = part
    return result


def interchangeable(kinds: Sequence[Kind], codes: Codes, a: int, b: int) -> bool:
    """Whether exchanging two labels everywhere is one of these labellings too.

    Args:
        kinds: From `kinds_of`.
        codes: Label of each person, shape ``[n]``.
        a: One label.
        b: The other.
    """
    swapped = np.where(codes == a, b, np.where(codes == b, a, codes))
    return all(
        Counter(_held(kind, codes)) == Counter(_held(kind, swapped)) for kind in kinds
    )


def kin_of(
    people: Sequence[str], families: Mapping[str, str]
) -> tuple[list[str] | None, list[str]]:
    """Say who is whose relative among some people, and whose relatives are not there.

    A family of which some take no part (a pair of groups cuts it, or a batch) exchanges
    with families that lack as many: just those exchanges of whole families that leave
    the others where they are.

    Args:
        people: Ids.
        families: Family of everybody, by id.

    Returns:
        The family of each, or ``None`` where none has a relative in ``families``; and
        what tells families apart in how many are elsewhere, to add to their strata.
    """
    named = [families[person] for person in people]
    size, here = Counter(families.values()), Counter(named)
    if all(size[family] == 1 for family in here):
        return None, [""] * len(people)
    lost = [size[family] - here[family] for family in named]
    return named, [f" + {n} relatives elsewhere" if n else "" for n in lost]


Held = tuple[tuple[int, ...], ...]


def _held(kind: Kind, codes: Codes) -> list[Held]:
    """Labels of each family, sorted within each of its strata."""
    parts = [map(tuple, np.sort(codes[part], axis=1).tolist()) for part in kind]
    return list(zip(*parts, strict=True))


def _labellings(kind: Kind, codes: Codes) -> Iterator[list[int]]:
    """Different labellings of one kind, family by family and stratum by stratum."""
    held = _held(kind, codes)
    known = sorted(set(held))
    for order in _arrangements([known.index(family) for family in held]):
        inside = [_arrangements(list(x)) for i in order for x in known[i]]
        for rows in product(*inside):
            yield [code for row in rows for code in row]


def _orders(counts: Counter[Any]) -> int:
    """Number of orders of things of which some are alike."""
    orders = factorial(counts.total())
    for alike in counts.values():
        orders //= factorial(alike)
    return orders


def _arrangements(codes: list[int]) -> Iterator[tuple[int, ...]]:
    """Distinct orders of codes, lexicographically (Knuth's Algorithm L)."""
    row = sorted(codes)
    while True:
        yield tuple(row)
        rises = [i for i in range(len(row) - 1) if row[i] < row[i + 1]]
        if not rises:
            return
        i = rises[-1]
        j = max(j for j in range(i + 1, len(row)) if row[j] > row[i])
        row[i], row[j] = row[j], row[i]
        row[i + 1 :] = row[:i:-1]
