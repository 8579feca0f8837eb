"""Families as blocks, against all moves that keep relatives together, one by one."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_mlops.errors import InputError
from spectral_mlops.inference.exchange import (
    count_distinct,
    draw_exchanges,
    interchangeable,
    kin_of,
    kinds_of,
    list_distinct,
)
from spectral_mlops.inference.nuisance import freedman_lane
from spectral_mlops.inference.relabel import (
    digest,
    distinct_relabellings,
    draw_orders,
    draw_relabellings,
    enumerate_relabellings,
    relabel,
)
from spectral_mlops.inference.significance import p_value
from tests.reference import all_relabellings

PEOPLE = st.lists(
    st.tuples(*map(st.sampled_from, ("ab", "xy", "ABCDEF"))), min_size=1, max_size=6
)


def codes_of(labels):
    return np.unique(list(labels), return_inverse=True)[1].astype(np.int64)


def test_two_pairs_and_a_single_written_out_by_hand():
    """Pairs swap as a whole and inside; nobody takes the label of the single."""
    labels, families = list("aabab"), list("PPQQR")
    expected = {"aaabb", "aabab", "abaab", "baaab"}
    listed = enumerate_relabellings(labels, ["all"] * 5, 99, families)
    found = {"".join("ab"[code] for code in row) for row in listed}
    assert found == expected
    assert len(listed) == 4
    assert "".join("ab"[code] for code in listed[0]) == "aabab"


def test_families_across_strata_by_hand():
    """One sibling in each of two sites: wholes swap, and nobody swaps alone."""
    labels, strata, families = list("abba"), list("xyxy"), list("PPQQ")
    listed = enumerate_relabellings(labels, strata, 99, families)
    assert {tuple(row) for row in listed.tolist()} == {(0, 1, 1, 0), (1, 0, 0, 1)}


@settings(deadline=None, max_examples=80)
@given(people=PEOPLE, seed=st.integers(0, 99))
def test_all_block_relabellings_are_counted_listed_and_drawn(people, seed):
    labels, strata, families = map(list, zip(*people, strict=True))
    codes = codes_of(labels)
    possible = all_relabellings(codes.tolist(), strata, families)
    assert distinct_relabellings(labels, strata, families) == len(possible)
    listed = enumerate_relabellings(labels, strata, len(possible) - 1, families)
    assert len(listed) == len(possible)
    assert set(map(tuple, listed.tolist())) == possible
    assert listed[0].tolist() == codes.tolist()
    drawn = draw_relabellings(labels, strata, 8, seed, families)
    assert drawn[0].tolist() == codes.tolist()
    assert set(map(tuple, drawn.tolist())) <= possible
    orders = draw_orders(strata, 8, seed, families)
    np.testing.assert_array_equal(codes[orders], drawn)
    assert (np.sort(orders, axis=1) == np.arange(len(people))).all()


@pytest.mark.parametrize(
    ("labels", "strata", "families"),
    [
        ("aabab", "xxxxx", "PPQQR"),
        ("abbaab", "xyxyxy", "PPQQRR"),
        ("abbaabb", "xxyxxyx", "PPPQQQR"),
    ],
)
def test_every_block_relabelling_is_as_likely(labels, strata, families):
    possible = sorted(
        all_relabellings(codes_of(labels).tolist(), list(strata), list(families))
    )
    drawn = draw_relabellings(list(labels), list(strata), 6000, 5, list(families))
    counts = Counter(map(tuple, drawn[1:].tolist()))
    assert set(counts) == set(possible)
    assert len(possible) > 2
    assert scipy.stats.chisquare([counts[x] for x in possible]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("n", "permutations", "relabelled", "moved"),
    [
        (0, 3, "f585b56c028b", "f585b56c028b"),
        (7, 50, "b38d64dc2364", "cc9460115860"),
        (30, 99, "1da53a1c836e", "961c4d343f11"),
        (101, 199, "cbd3b7382888", "30974ba0d4cb"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_without_relatives_draws_are_those_before_there_were_families(
    n, permutations, relabelled, moved, alone
):
    """Digests of the version that knew no families, the labels drawn as then."""
    random = np.random.default_rng(n)
    labels = ["abc"[i] for i in random.integers(0, 3, n)]
    strata = ["xyz"[i] for i in random.integers(0, 3, n)]
    families = [f"F{-i}" for i in range(n)] if alone else None
    drawn = draw_relabellings(labels, strata, permutations, n, families)
    orders = draw_orders(strata, permutations, n, families)
    assert digest([], drawn).startswith(relabelled)
    assert digest([], orders).startswith(moved)


def test_a_few_families_are_listed_and_many_drawn():
    labels = {f"p{i:02d}": "ab"[i // 10] for i in range(20)}
    families = [str(i // 2) for i in range(20)]
    found = relabel(labels, ["all"] * 20, 251, 0, families)
    assert found.exact
    assert len(found.codes) == 252  # 10 families of which 5 are in a
    assert not relabel(labels, ["all"] * 20, 250, 0, families).exact
    assert found.digest != relabel(labels, ["all"] * 20, 251, 0).digest


def test_people_and_families_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="3 strata, 2 families: give one per person"):
        draw_relabellings(list("aab"), list("xxx"), 3, 0, list("PP"))


def test_labels_that_may_be_exchanged_as_a_whole():
    families, strata = list("PPQQRR"), ["x"] * 6
    kinds = kinds_of(strata, families)
    assert interchangeable(kinds, codes_of("aabbab"), 0, 1)
    assert not interchangeable(kinds, codes_of("aabbaa"), 0, 1)  # other numbers
    across = kinds_of(list("xyxyxy"), families)
    assert not interchangeable(across, codes_of("abbaab"), 0, 1)  # ab twice, ba once


def test_nobody_at_all():
    kinds = kinds_of([], [])
    codes = np.empty(0, dtype=np.int64)
    assert count_distinct(kinds, codes) == 1
    assert list_distinct(kinds, codes).shape == (1, 0)
    assert draw_exchanges(kinds, 4, np.random.default_rng(0)).shape == (4, 0)


# -- families that are not all there -------------------------------------------------


def test_who_has_relatives_elsewhere_is_said():
    families = dict(zip("abcdefg", "PPPQQRS", strict=True))
    named, marks = kin_of(list("abdfg"), families)
    assert named == list("PPQRS")
    one = " + 1 relatives elsewhere"
    assert marks == [one, one, one, "", ""]
    assert kin_of(["f", "g"], families) == (None, ["", ""])


@pytest.mark.parametrize(
    ("labels", "families"),
    [("abcabca", "PPPQQQR"), ("abcbacc", "PPQQRRS"), ("abccabb", "PPPQQRR")],
)
def test_a_pair_is_relabelled_as_everyone_is_while_others_keep_their_labels(
    labels, families
):
    """Of all moves of whole families, those that leave group c in its place."""
    ids = [f"p{i}" for i in range(7)]
    pair = [i for i, label in enumerate(labels) if label != "c"]
    everyone = all_relabellings([*range(7)], ["x"] * 7, list(families))
    stay = [
        order
        for order in everyone
        if all((labels[i] == "c") == (labels[j] == "c") for i, j in enumerate(order))
    ]
    expected = {tuple(labels[order[i]] for i in pair) for order in stay}
    named, marks = kin_of([ids[i] for i in pair], dict(zip(ids, families, strict=True)))
    listed = enumerate_relabellings([labels[i] for i in pair], marks, 999, named)
    assert {tuple("ab"[code] for code in row) for row in listed} == expected


# -- what it is for --------------------------------------------------------------------


def test_siblings_of_one_label_are_no_twice_as_many_people():
    """Differences of means: exact among families, of strangers far too small a p."""
    random = np.random.default_rng(4)
    wrong = {"families": 0, "strangers": 0}
    labels, strata = ["a"] * 12 + ["b"] * 12, ["x"] * 24
    families = [str(i // 2) for i in range(24)]
    for seed in range(400):
        values = np.repeat(random.normal(size=12), 2) + 0.1 * random.normal(size=24)
        for name, blocks in (("families", families), ("strangers", None)):
            codes = draw_relabellings(labels, strata, 19, seed, blocks)
            apart = abs((values * (2 * codes - 1)).sum(1))
            wrong[name] += p_value(apart) <= 0.05
    assert scipy.stats.binomtest(wrong["families"], 400, 0.05).pvalue > 1e-3
    assert wrong["strangers"] > 50


def test_residuals_move_as_blocks():
    """Without nuisance: the t of every choice of families, written out."""
    y = np.random.default_rng(2).normal(size=12)
    groups, families = list("aaaaaabbbbbb"), [str(i // 2) for i in range(12)]
    found = freedman_lane(y, groups, permutations=300, families=families)
    every = set()
    for chosen in combinations(range(6), 3):
        a = np.array([int(family) in chosen for family in families])
        t = scipy.stats.ttest_ind(y[a], y[~a]).statistic
        every.add(round(abs(float(t)), 9))
    assert set(np.round(found.values[:, 0], 9)) == every
    assert len(every) == 10
