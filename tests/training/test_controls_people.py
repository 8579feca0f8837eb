from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.training.controls_people import (
    CALIPER,
    equal_sizes,
    match_by_loss,
    nuisance_columns,
    nuisance_groups,
    permuted_within,
    random_halves,
    surrogate_mixing,
)

GROUPS = [*"abbabbbaab", "c"]


@pytest.fixture
def random():
    return np.random.default_rng(4)


def test_surrogates_have_the_mean_and_covariance_of_their_group(random):
    mixing = surrogate_mixing(GROUPS, random)
    np.testing.assert_allclose(mixing @ mixing.T, np.eye(11), atol=1e-12)
    people = random.exponential(size=(11, 30))
    drawn = mixing @ people
    labels = np.array(GROUPS)
    for group in "ab":
        one, other = (rows[labels == group] for rows in (people, drawn))
        np.testing.assert_allclose(one.mean(0), other.mean(0))
        np.testing.assert_allclose(np.cov(one.T), np.cov(other.T), atol=1e-12)
        assert abs(one - other).max() > 0.1
    np.testing.assert_allclose(people[-1], drawn[-1])  # somebody alone stays


def test_surrogates_are_gaussian_over_draws(random):
    """Of a spike, too: each person is as likely anywhere on the sphere of contrasts."""
    spike = np.zeros(40)
    spike[3] = 1.0
    drawn = np.array([surrogate_mixing(["a"] * 40, random) @ spike for _ in range(400)])
    away = (drawn - 1 / 40) / np.sqrt((39 / 40) / 40)
    assert abs(away.mean()) < 1e-10
    assert away.var() == pytest.approx(1, abs=1e-10)
    assert (away**4).mean() == pytest.approx(3, abs=0.25)  # the spike itself has 38
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 3])[0, 1] + 1 / 39) < 0.2


def test_matches_are_the_nearest_there_are(random):
    """Against every assignment there is."""
    losses = random.uniform(size=9)
    losses[:4] *= 1.5
    groups = [*"aaaa", *"bbbbb"]
    limit = CALIPER * losses.std()
    found = match_by_loss(losses, groups)

    def score(order):
        gaps = [abs(losses[i] - losses[4 + j]) for i, j in enumerate(order)]
        near = [gap for gap in gaps if gap <= limit]
        return -len(near), sum(near)

    best = min(score(order) for order in permutations(range(5), 4))
    gaps = [abs(losses[i] - losses[j]) for i, j in found]
    assert (-len(found), pytest.approx(sum(gaps))) == best
    assert max(gaps) <= limit
    assert len({i for match in found for i in match}) == 2 * len(found)


def test_matches_of_several_groups_have_one_of_each():
    losses = np.array([0.0, 1.0, 0.01, 1.02, 5.0, 1.01, 0.02])
    groups = [*"aa", *"bbb", *"cc"]
    assert match_by_loss(losses, groups) == [[0, 2, 6], [1, 3, 5]]
    apart = np.array([0.0, 0.1, 8.0, 9.0])
    assert match_by_loss(apart, [*"aabb"]) == []


@pytest.mark.parametrize("seed", range(5))
def test_matches_with_families_are_the_best_that_cut_none(seed):
    """Against every set of whole families, and every assignment in it."""
    random = np.random.default_rng(seed)
    losses = random.uniform(size=9).round(2)
    groups = [*"aaaabbbbb"]
    families = random.choice([*"PQRSTU"], 9).tolist()
    found = match_by_loss(losses, groups, families)
    there = [i for match in found for i in match]
    assert len(there) == len(set(there))
    cut = {families[i] for i in there} & {
        families[i] for i in range(9) if i not in there
    }
    assert not cut

    limit = CALIPER * losses.std()
    best = (0, 0.0)
    for k in range(1, 5):
        for who in combinations(range(4), k):
            for to in permutations(range(4, 9), k):
                some = {*who, *to}
                whole = all(
                    (i in some) == (families[i] in {families[j] for j in some})
                    for i in range(9)
                )
                gaps = abs(losses[list(who)] - losses[list(to)])
                if whole and gaps.max() <= limit:
                    best = min(best, (-k, gaps.sum()))
    gaps = [abs(losses[i] - losses[j]) for i, j in found]
    assert (-len(found), pytest.approx(sum(gaps))) == best


def test_matches_of_several_groups_keep_families_whole():
    losses = np.array([0.0, 1.0, 0.01, 1.02, 5.0, 1.01, 0.02, 0.015])
    groups, families = [*"aabbbccb"], [*"ABCDEFGC"]
    assert match_by_loss(losses, groups, families) == [[1, 3, 5]]
    families[7] = "D"  # of 2 and 7 the farther one, who completes a family
    assert match_by_loss(losses, groups, families) == [[0, 7, 6], [1, 3, 5]]
    nobody = np.array([0.0, 0.1, 8.0, 9.0])
    assert match_by_loss(nobody, [*"aabb"], [*"PPQQ"]) == []
    alike = np.zeros(4)  # differences of none at all
    assert len(match_by_loss(alike, [*"aabb"], [*"PPQQ"])) == 2


def test_groups_of_equal_size_are_of_whole_families(random):
    groups, families = [*"aaaabbbbbbb"], [*"AABBCCCDDEE"]
    seen = set()
    for _ in range(200):
        chosen = equal_sizes(groups, random, families)
        assert [groups[i] for i in chosen].count("b") == 4
        there = {families[i] for i in chosen}
        assert chosen == [i for i, family in enumerate(families) if family in there]
        seen.add(tuple(chosen))
    assert seen == {(0, 1, 2, 3, 7, 8, 9, 10)}  # D and E; three of C and one cannot be
    assert len(equal_sizes(groups, random, [*"AABBCCCDDEF"])) == 8
    assert equal_sizes([*"aab"], random, [*"PPQ"]) == []
    alone = equal_sizes(groups, random, range(11))
    assert [groups[i] for i in alone].count("b") == 4


def test_equal_sizes_and_permuted_labels(random):
    chosen = equal_sizes([*"aabbbbb", "a"], random)
    assert [[*"aabbbbb", "a"][i] for i in chosen].count("b") == 3
    assert chosen == sorted(set(chosen))
    labels, strata = [*"aabbabbb"] * 9, [*"xxxxyyyy"] * 9
    moved = permuted_within(labels, strata, random)
    assert moved != labels
    for cell in "xy":
        of_cell = [
            sorted(x for x, s in zip(column, strata, strict=True) if s == cell)
            for column in (labels, moved)
        ]
        assert of_cell[0] == of_cell[1]
    halves = random_halves(21, random)
    assert sorted(map(halves.count, set(halves))) == [10, 11]


def test_nuisance_columns_are_found_by_name_or_named():
    people = pd.DataFrame(
        columns=["group", "Current Age", "gender", "Scan_Length", "mean_fd", "iq"]
    )
    found = ["Current Age", "gender", "Scan_Length", "mean_fd"]
    assert nuisance_columns(people) == found
    assert nuisance_columns(people, ("iq",)) == ["iq"]


def test_many_numbers_are_split_at_the_median():
    ages = pd.Series(["20", "30", "31", None, "44", "52", "60"])
    assert nuisance_groups(ages) == [*["≤ 37.5"] * 3, None, *["> 37.5"] * 3]
    assert nuisance_groups(pd.Series([1, 2, 2, None])) == ["1.0", "2.0", "2.0", None]
    assert nuisance_groups(pd.Series(["f", None, "m"])) == ["f", None, "m"]


def test_halves_keep_families_whole_and_even(random):
    families = [*"AAABBCC", *(f"alone {k}" for k in range(6))]
    seen = set()
    for _ in range(40):
        halves = np.array(random_halves(13, random, families))
        for family in "ABC":
            assert len({*halves[[f == family for f in families]]}) == 1
        assert abs((halves == "half 1").sum() - (halves == "half 2").sum()) == 1
        seen.add(tuple(halves))
    assert len(seen) > 20
    together = [h[0] == h[3] for h in seen]  # A and B are of one half now and then
    assert not all(together)
    first = np.mean([h[0] == "half 1" for h in seen])
    assert 0.2 < first < 0.8
