"""Who may be relabelled, and every refusal of a p-value."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spectral_mlops.errors import InputError
from spectral_mlops.validity import FEWEST, MANY, People, draw_people
from tests.reference import all_relabellings


def drawn(
    labels: Sequence[str], within: Sequence[str] | None = None, **more: object
) -> People:
    ids = [f"p{i:03d}" for i in range(len(labels))]
    strata = {} if within is None else {"site": dict(zip(ids, within, strict=True))}
    settings = {"grouping": "dx", "target": None, "permutations": 5, "seed": 0} | more
    return draw_people(dict(zip(ids, labels, strict=True)), strata=strata, **settings)


def slow_distinct(
    labels: Sequence[str], within: Sequence[str], groups: Sequence[str]
) -> int:
    """Different partitions of the people into the groups, by trying every order."""
    codes = [groups.index(x) if x in groups else -1 for x in labels]
    found = set()
    for kept in all_relabellings(codes, within):
        members = [
            frozenset(i for i, code in enumerate(kept) if code == g)
            for g in range(len(groups))
        ]
        found.add(frozenset(members))
    return len(found)


@settings(deadline=None, max_examples=60)
@given(
    people=st.lists(st.sampled_from(["ax", "ay", "bx", "by", "cx"]), min_size=2,
                    max_size=7),
    everyone=st.booleans(),
)  # fmt: skip
def test_distinct_values_are_counted_as_a_slow_loop_does(people, everyone):
    labels, within = [x[0] for x in people], [x[1] for x in people]
    groups = sorted(set(labels)) if everyone else ["a", "b"]
    assume(set(groups) <= set(labels))
    assume(len(groups) > 1)
    assert drawn(labels, within).distinct(groups) == slow_distinct(
        labels, within, groups
    )


def test_counting_ends_where_there_are_many():
    assert drawn(["a", "b"] * 500).distinct(["a", "b"]) == MANY


@pytest.mark.parametrize(
    ("labels", "within", "words"),
    [
        ("abbbbbbb", "xxxxxxxx", "fewer than two people in group 'a'"),
        ("aaaabbbb", "xxxxyyyy", "grouping 'dx' and stratum 'site' tell the same"),
        ("aabbcccc", "xyzwvutr", "no relabelling within the strata (site)"),
        ("aaabbb", "xxxxxx", "only 10 different values"),
        ("aabbaabb", "xxxxyyyy", "only 18 different values"),
        ("aaabbbb", "xxxxxxx", ""),
        ("aaaabbbb", "xxxxxxxx", ""),
    ],
)
def test_refusals_in_one_sentence(labels, within, words):
    said = drawn(labels, within).refusal("dx", ["a", "b"])
    assert said.startswith(words) if words else not said
    assert "\n" not in said
    assert ". " not in said


def test_what_is_refused_could_not_have_reached_a_small_p():
    """All relabellings of a refused design, enumerated: p stays above 0.05."""
    for labels in ("aaabbb", "aabbb"):
        people = drawn(labels)
        assert people.refusal("dx", ["a", "b"])
        codes = [int(x == "b") for x in labels]
        every = list(all_relabellings(codes, ["x"] * len(labels)))
        scores = np.arange(len(labels)) ** 2.0
        values = [
            abs(np.mean(scores[np.array(c) == 1]) - np.mean(scores[np.array(c) == 0]))
            for c in every
        ]
        best = max(values)
        assert np.mean(np.array(values) >= best - 1e-12) > 0.05
    assert FEWEST * 0.05 == 1


def test_a_stratum_of_the_groupings_own_name_is_left_out():
    people = drawn("aaaabbbb", "aaaabbbb", grouping="site")
    assert (people.strata, people.fused) == ("none", "")
    assert not people.refusal("site", ["a", "b"])
    moved = {tuple(codes) for codes in people.codes.tolist()}
    assert len(moved) > 2


def test_the_target_is_left_out_where_it_is_the_grouping():
    ids = [f"p{i:03d}" for i in range(8)]
    same = dict(zip(ids, "11112222", strict=True))
    assert drawn("aaaabbbb", target=same).strata == "none"
    other = dict(zip(ids, "12121212", strict=True))
    people = drawn("aaaabbbb", target=other)
    assert people.strata == "target"
    for codes in people.codes:
        assert codes[::2].sum() == codes[1::2].sum() == 2


def test_people_without_a_stratum_are_named():
    people, strata = {"p000": "a", "p001": "b"}, {"site": {"p000": "x"}}
    with pytest.raises(InputError, match=r"'site'.*'p001'"):
        draw_people(people, "dx", None, strata, 3, 0)


def test_codes_of_some_people_in_any_order():
    people = drawn("aabb")
    found = people.columns(["p003", "nobody", "p000"], 2)
    assert found.shape == (3, 3)
    assert found[:, 1].tolist() == [-1] * 3
    np.testing.assert_array_equal(found[:, 0], people.codes[:3, 3])
    np.testing.assert_array_equal(found[:, 2], people.codes[:3, 0])
