"""p over trials: against loops, against every relabelling, and on null data."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np

from spectral_mlops.inference.significance import standardise
from spectral_mlops.sweeps.familywise import TrialNull, p_over_trials


def slow_p(columns):
    """Counts relabellings one at a time."""
    found = []
    for observed in (column[0] for column in columns):
        reached = 1
        for b in range(1, len(columns[0])):
            largest = max(column[b] for column in columns)
            reached += largest >= observed
        found.append(reached / len(columns[0]))
    return found


def nulls_of(columns, relabellings="these"):
    return [TrialNull(np.array(column), relabellings) for column in columns]


def test_p_over_trials_is_that_of_loops():
    rng = np.random.default_rng(0)
    for trials in (1, 2, 7):
        shared = rng.normal(size=(60, 1))
        columns = standardise(shared + rng.normal(size=(60, trials))).T
        columns = np.vstack([columns, columns[:1]])  # one network twice
        p, said = p_over_trials(nulls_of(columns))
        assert p == slow_p(columns.tolist())
        assert said == ""


def test_p_over_trials_is_exact_where_every_relabelling_is_listed():
    """Two trials, 6 people in two groups of 3: 20 relabellings, worked by hand."""
    x = np.array([[0.0, 1, 2, 7, 8, 9], [5.0, 1, 4, 2, 3, 0]])
    groups = [(3, 4, 5), *(g for g in combinations(range(6), 3) if g != (3, 4, 5))]
    gaps = [[row[list(g)].sum() - row.sum() / 2 for g in groups] for row in x]
    columns = standardise(np.abs(gaps).T).T
    p, _ = p_over_trials(nulls_of(columns))
    # Only the observed groups and their mirror image part the first trial's so far,
    # and no relabelling of the second trial's people does as much.
    assert p[0] == 2 / 20
    assert p == slow_p(columns.tolist())
    alone, _ = p_over_trials(nulls_of(columns[1:]))
    assert alone[0] <= p[1]


def test_p_over_trials_of_null_data_is_seldom_small():
    """2000 studies of 8 alike trials; by themselves they would be wrong far oftener."""
    rng = np.random.default_rng(3)
    wrong, alone = 0, 0
    for _ in range(2000):
        shared = rng.exponential(size=(40, 1))
        nulls = nulls_of(standardise(shared + rng.exponential(size=(40, 8))).T)
        wrong += min(p_over_trials(nulls)[0]) <= 0.05
        alone += min(one.p for one in nulls) <= 0.05
    assert 0.035 < wrong / 2000 < 0.065  # 0.05 and three standard errors
    assert alone / 2000 > 0.15


def test_no_relabelling_and_others_people_take_no_part():
    assert p_over_trials([]) == ([], "")
    assert np.isnan(p_over_trials([None, None])[0]).all()
    rng = np.random.default_rng(1)
    same = nulls_of(standardise(rng.normal(size=(40, 3))).T)
    stranger = nulls_of(standardise(rng.normal(size=(40, 1))).T, "others")
    fewer = nulls_of(standardise(rng.normal(size=(20, 1))).T)
    p, said = p_over_trials([same[0], None, *stranger, *same[1:], *fewer])
    assert [p[0], *p[3:5]] == p_over_trials(same)[0]
    assert np.isnan([p[1], p[2], p[5]]).all()
    assert said == "2 trials with other relabellings have no p over trials."


def test_attributes_give_back_what_they_took():
    values = standardise(np.random.default_rng(0).normal(size=(200, 1)))[:, 0]
    values[7] = np.nan
    kept = TrialNull(values, "these").attributes()
    back = TrialNull.read(kept)
    np.testing.assert_allclose(back.values, values, atol=1e-5)
    assert back.relabellings == "these"
    assert TrialNull.read({"auc": 0.5}) is None


def test_a_run_without_a_null_has_none():
    plan = SimpleNamespace(primary_quantity="adjoint", primary="group", probe=None)
    assert TrialNull.of(plan, SimpleNamespace(null=[])) is None


def test_the_bound_is_above_the_observed():
    values = standardise(np.random.default_rng(0).chisquare(4, size=(200, 1)))[:, 0]
    one = TrialNull(values, "these")
    assert one.upper > one.values[0]
