from collections import Counter
from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_mlops.errors import InputError
from spectral_mlops.inference.relabel import (
    digest,
    distinct_relabellings,
    draw_orders,
    draw_relabellings,
    enumerate_relabellings,
    relabel,
    spread_over_runs,
)
from spectral_mlops.inference.significance import p_value
from tests.reference import all_relabellings

PEOPLE = st.lists(
    st.tuples(st.sampled_from("bac"), st.sampled_from(["x", "y", "z"])), max_size=25
)


@settings(deadline=None, max_examples=60)
@given(people=PEOPLE, permutations=st.integers(0, 12), seed=st.integers(0, 9))
def test_labels_are_kept_within_strata_and_the_observed_come_first(
    people, permutations, seed
):
    labels = [label for label, _ in people]
    strata = [stratum for _, stratum in people]
    drawn = draw_relabellings(labels, strata, permutations, seed)
    known = sorted(set(labels))
    assert drawn.shape == (permutations + 1, len(people))
    assert drawn.dtype == np.int64
    assert [known[code] for code in drawn[0]] == labels
    for row in drawn:
        moved = [known[code] for code in row]
        for stratum in set(strata):
            inside = [i for i, x in enumerate(strata) if x == stratum]
            assert Counter(moved[i] for i in inside) == Counter(
                labels[i] for i in inside
            )


def test_nothing_but_the_arguments_decides():
    arguments = (list("aabbabab"), list("xxxxyyyy"), 20)
    first = draw_relabellings(*arguments, seed=3)
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(draw_relabellings(*arguments, seed=3), first)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert (draw_relabellings(*arguments, seed=4)[1:] != first[1:]).any()
    # The names of labels and strata mean nothing but their order.
    renamed = draw_relabellings(list("ppqqpqpq"), list("llllmmmm"), 20, seed=3)
    np.testing.assert_array_equal(renamed, first)


@pytest.mark.parametrize(
    ("labels", "strata"),
    [([0, 0, 1, 1, 1], "xxxxx"), ([0, 1, 0, 1, 2], "xxyyy"), ([0, 1, 2, 2], "xxxx")],
)
def test_every_relabelling_is_as_likely(labels, strata):
    possible = sorted(all_relabellings(labels, strata))
    drawn = draw_relabellings([str(x) for x in labels], list(strata), 6000, seed=5)
    counts = Counter(map(tuple, drawn[1:].tolist()))
    assert set(counts) == set(possible)
    assert scipy.stats.chisquare([counts[x] for x in possible]).pvalue > 1e-3


def test_strata_move_independently():
    drawn = draw_relabellings(list("abab"), list("xxyy"), 4000, seed=1)[1:]
    both = Counter(zip(drawn[:, 0].tolist(), drawn[:, 2].tolist(), strict=True))
    assert len(both) == 4
    assert scipy.stats.chisquare(list(both.values())).pvalue > 1e-3


def test_one_person_per_stratum_can_go_nowhere():
    drawn = draw_relabellings(list("abc"), list("xyz"), 5, seed=0)
    assert (drawn == [0, 1, 2]).all()


@pytest.mark.parametrize(
    ("strata", "permutations", "said"),
    [("xy", 5, "3 labels, 2 strata"), ("xyz", -1, "permutations=-1")],
)
def test_what_is_refused(strata, permutations, said):
    with pytest.raises(InputError, match=said):
        draw_relabellings(list("aab"), list(strata), permutations, seed=0)


def test_the_digest_differs_when_anything_does():
    people = ["s1", "s2", "s3", "s4"]
    drawn = draw_relabellings(list("aabb"), list("xxxx"), 3, seed=0)
    other = drawn.copy()
    other[3, [0, 1, 2, 3]] = 1 - other[3]
    found = [
        digest(people, drawn),
        digest(people[::-1], drawn),
        digest(["s1", "s2", "s3", "s5"], drawn),
        digest(["s1", "s2", "s3\ns4"], drawn),
        digest(people, other),
        digest(people, drawn[:-1]),
        digest(people, drawn[::-1]),
        digest(people, drawn.reshape(2, 8)),
    ]
    assert len(set(found)) == len(found)
    assert {len(x) for x in found} == {64}


def test_the_digest_is_of_values_not_of_memory():
    people = ["s1", "s2", "s3"]
    drawn = draw_relabellings(list("aab"), list("xxx"), 4, seed=0)
    strided = np.asfortranarray(drawn)
    assert digest(people, drawn) == digest(tuple(people), strided)
    assert digest(people, drawn) == digest(people, drawn.astype(np.int32))


def test_orders_are_the_moves_behind_the_relabellings():
    labels, strata = list("abcabccab"), list("xxxyyyyxx")
    orders = draw_orders(strata, 30, seed=6)
    codes = np.unique(labels, return_inverse=True)[1]
    np.testing.assert_array_equal(
        codes[orders], draw_relabellings(labels, strata, 30, seed=6)
    )
    assert orders[0].tolist() == list(range(9))
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    with pytest.raises(InputError, match="permutations=-1"):
        draw_orders(strata, -1, seed=0)


@settings(deadline=None, max_examples=60)
@given(people=PEOPLE.map(lambda people: people[:7]))
def test_all_relabellings_are_counted_and_listed_once(people):
    labels = [label for label, _ in people]
    strata = [stratum for _, stratum in people]
    known = sorted(set(labels))
    possible = all_relabellings([known.index(x) for x in labels], strata)
    number = distinct_relabellings(labels, strata)
    assert number == len(possible)
    listed = enumerate_relabellings(labels, strata, number - 1)
    assert listed.dtype == np.int64
    assert len(listed) == number
    assert set(map(tuple, listed.tolist())) == possible
    assert [known[code] for code in listed[0]] == labels


def test_many_people_are_counted_exactly_and_not_listed():
    labels, strata = ["a"] * 60 + ["b"] * 90, ["x"] * 100 + ["y"] * 50
    number = distinct_relabellings(labels, strata)
    assert number == comb(100, 60)
    assert type(number) is int
    with pytest.raises(InputError, match=rf"{number} relabellings.*= 1000"):
        enumerate_relabellings(labels, strata, 999)
    long = enumerate_relabellings(["a"] * 3000, ["x"] * 3000, 0)
    assert long.shape == (1, 3000)
    with pytest.raises(InputError, match="3 labels, 2 strata"):
        distinct_relabellings(list("aab"), list("xy"))


def test_enumerated_relabellings_give_the_exact_test():
    data = np.array([0.3, 1.9, 2.2, -0.4, 3.1, 0.0, 1.0])
    labels = enumerate_relabellings(list("abbabaa"), ["x"] * 7, 34)
    values = np.array([abs(data[r == 0].mean() - data[r == 1].mean()) for r in labels])
    exact = scipy.stats.permutation_test(
        (data[labels[0] == 0], data[labels[0] == 1]),
        lambda a, b: abs(a.mean() - b.mean()),
        alternative="greater",
        n_resamples=10**4,
    ).pvalue
    assert p_value(values) == pytest.approx(exact)


def test_few_relabellings_are_listed_and_many_drawn():
    people = dict(zip(["p1", "p2", "p3", "p4"], "abab", strict=True))
    every = relabel(people, ["x"] * 4, 5, seed=1)
    assert (every.exact, every.number, every.people) == (True, 5, tuple(people))
    assert set(map(tuple, every.codes.tolist())) == all_relabellings(
        [0, 1, 0, 1], "xxxx"
    )
    assert every.codes[0].tolist() == [0, 1, 0, 1]
    assert every.text == f"exact, all 6 relabellings ({every.digest})"
    assert relabel(people, ["x"] * 4, 99, seed=2).digest == every.digest
    some = relabel(people, ["x"] * 4, 4, seed=1)
    assert not some.exact
    drawn = draw_relabellings(list("abab"), ["x"] * 4, 4, seed=1)
    np.testing.assert_array_equal(some.codes, drawn)
    assert some.text == f"4 relabellings ({digest(list(people), drawn)[:12]})"
    alone = relabel(people, list("wxyz"), 0, seed=0)
    assert (alone.exact, alone.number) == (False, 0)
    with pytest.raises(InputError, match="2 strata"):
        relabel(people, ["x"] * 2, 5, seed=1)


def test_runs_are_averaged_over_seeds_then_folds():
    values = np.array(
        [
            [[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]],
            [[10.0, 0.0, 4.0], [np.nan, 100.0, 100.0]],  # a run without a value
            [[np.nan] * 3, [np.nan] * 3],  # a fold without one
        ]
    )
    assert spread_over_runs(values).tolist() == [6, 2, 5]
    values[0, 1, 2] = np.nan  # counts as reaching
    assert np.isnan(spread_over_runs(values)).tolist() == [False, False, True]
    assert np.isnan(spread_over_runs(values[2:])).all()


def test_many_runs_of_the_same_people_are_no_more_evidence():
    generator = np.random.default_rng(4)
    joint = apart = 0
    for seed in range(400):
        labels = draw_relabellings(list("aaaaaaaabbbbbbbb"), ["x"] * 16, 39, seed)
        people = generator.normal(size=16)
        runs = people + 0.3 * generator.normal(size=(3, 5, 16))
        weight = np.where(labels == 0, 1.0, -1.0) / 8
        values = runs @ weight.T  # [folds, seeds, P + 1]
        joint += p_value(spread_over_runs(values)) <= 0.05
        observed = values[:, :, 0].ravel()
        apart += scipy.stats.ttest_1samp(observed, 0, alternative="greater").pvalue < (
            0.05
        )
    assert scipy.stats.binomtest(int(joint), 400, 0.05).pvalue > 1e-3
    assert apart > 100  # runs as units
