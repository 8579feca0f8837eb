"""Families whole or not at all, against every union of families there is."""

from collections import Counter
from itertools import chain, combinations
from math import comb

import numpy as np
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.inference.effects import draw_subsamples, subsample_interval
from spectral_mlops.inference.whole_families import WholeFamilies

#          0  1  2  3  4  5  6  7  8  9 10 11
CODES = [0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, -1]
FAMILIES = [*"AABBCCDEFGHH"]
"""Two of one group, one of two, twins of the other, people alone, one cut family."""


def unions(codes, families, m):
    """Every union of families with ``m`` people of each group, by a slow loop."""
    there = sorted({f for f, code in zip(families, codes, strict=True) if code >= 0})
    groups = {code for code in codes if code >= 0}
    some = chain.from_iterable(combinations(there, k) for k in range(len(there) + 1))
    found = []
    for chosen in map(set, some):
        who = [i for i, f in enumerate(families) if f in chosen and codes[i] >= 0]
        if all([codes[i] for i in who].count(group) == m for group in groups):
            found.append(tuple(who))
    return found


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_ways_are_those_of_a_slow_loop(m):
    whole = WholeFamilies(np.array(CODES), FAMILIES)
    assert whole.ways(m) == len(unions(CODES, FAMILIES, m))


@pytest.mark.parametrize("seed", range(8))
def test_ways_of_random_families_of_three_groups(seed):
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 3, 13)
    families = random.choice([*"PQRSTUVW"], 13).tolist()
    whole = WholeFamilies(codes, families)
    counts = [len(unions(codes.tolist(), families, m)) for m in range(1, 7)]
    assert [whole.ways(m) for m in range(1, 7)] == counts
    possible = [m for m, count in enumerate(counts, 1) if count and m <= 3]
    assert whole.largest(3) == max(possible, default=0)


@pytest.mark.parametrize("m", [2, 3])
def test_every_union_is_drawn_as_often_as_any_other(m):
    draws = 6000
    drawn = draw_subsamples(np.tile(CODES, (draws, 1)), m, 0, FAMILIES)
    found = Counter(tuple(np.flatnonzero(row).tolist()) for row in drawn)
    expected = unions(CODES, FAMILIES, m)
    assert set(found) == set(expected)
    share = 1 / len(expected)
    error = np.sqrt(share * (1 - share) / draws)
    assert max(abs(n / draws - share) for n in found.values()) < 4 * error


def test_without_relatives_these_are_the_subsets_of_people():
    codes = np.array([0] * 60 + [1] * 90)
    whole = WholeFamilies(codes, range(150))
    assert whole.ways(30) == comb(60, 30) * comb(90, 30)  # far beyond a float's digits
    drawn = whole.draw(30, np.random.default_rng(0))
    assert np.bincount(codes[drawn]).tolist() == [30, 30]


def test_an_interval_of_whole_families_is_that_of_half_as_many_people():
    """Twins who are alike are one person: subsamples of 10 of 20 are 5 of 10."""
    numbers = np.random.default_rng(3).normal(size=10)
    of = {f"p{i}{twin}": numbers[i] for i in range(10) for twin in "ab"}
    families = [who[1:-1] for who in of]

    def mean(ids):
        return float(np.mean([of[i] for i in ids]))

    found = subsample_interval(mean, [*of], 10, draws=3000, families=families)
    expected = np.std(numbers, ddof=1) * np.sqrt((1 - 5 / 10) / 5)
    assert found.sd == pytest.approx(expected, rel=0.05)
    with pytest.raises(InputError, match=r"m=9: no whole families have 9 people of ea"):
        subsample_interval(mean, [*of], 9, families=families)
    with pytest.raises(InputError, match=r"\(they can have 2, 4, 6, 8, 10, 12, 14, 16"):
        subsample_interval(mean, [*of], 3, families=families)
