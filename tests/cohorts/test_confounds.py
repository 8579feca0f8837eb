import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from spectral_mlops.cohorts.adjustment import Adjustment, check_adjustment
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.confounds import (
    ConfoundRegression,
    Design,
    confound_columns,
    site_warning,
)
from spectral_mlops.errors import InputError, UnknownNameError


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "group": np.resize(["patient", "control"], 40),
            "age": rng.uniform(20, 60, 40).round(1),
            "sex": rng.permutation(np.resize(["F", "M"], 40)),
            "site": rng.permutation(np.resize(["a", "b", "c"], 40)),
            "fd": rng.lognormal(size=40),
        },
        index=[f"s{i:02d}" for i in range(40)],
    )


@pytest.fixture
def features(people):
    rng = np.random.default_rng(1)
    drift = people["age"].to_numpy()[:, None, None] * rng.normal(size=(3, 2))
    drift[people["site"] == "b"] += 7.0
    return (drift + rng.normal(size=(40, 3, 2))).astype(np.float32)


def test_regression_is_ordinary_least_squares(people, features):
    train, held = people.iloc[:30], people.iloc[30:]
    fitted = ConfoundRegression.fit(features[:30], train, ["age", "site"])
    found = fitted.transform(features[30:], held)
    assert (found.shape, found.dtype) == ((10, 3, 2), np.float32)

    def numbers(table):
        sites = [table["site"] == name for name in "bc"]
        return np.stack([table["age"], *sites], axis=1).astype(float)

    flat = features.reshape(40, -1).astype(float)
    plain = LinearRegression().fit(numbers(train), flat[:30])
    explained = plain.predict(numbers(held)) - flat[:30].mean(axis=0)
    np.testing.assert_allclose(
        found.reshape(10, -1), flat[30:] - explained, rtol=0, atol=1e-4
    )


def test_training_people_keep_their_mean_and_lose_the_confound(people, features):
    fitted = ConfoundRegression.fit(features, people, ["age", "sex", "fd"])
    found = fitted.transform(features, people).reshape(40, -1)
    np.testing.assert_allclose(
        found.mean(axis=0), features.reshape(40, -1).mean(axis=0), rtol=1e-4
    )
    for column in found.T:
        assert abs(stats.pearsonr(column, people["age"]).statistic) < 1e-4


@pytest.mark.parametrize(
    ("change", "columns", "words"),
    [
        ({"age": 3.0}, ["age"], "'age', which is 3.0 for all 40 training people"),
        ({"sex": "F"}, ["sex"], "'sex', which is F for all"),
        ({"fd": [*[0.1] * 39, np.nan]}, ["fd"], r"'fd' is missing for 1 people \(s39"),
        ({"sex": [None, *"MF" * 19, "M"]}, ["sex"], r"'sex' is missing .*\(s00"),
        ({"age": [f"{i} y" for i in range(40)]}, ["age"], "'age' has 40 different te"),
        (
            {"fd": np.arange(40) * 2.0, "age": np.arange(40)},
            ["fd", "age"],
            "tell apart",
        ),
    ],
)
def test_what_cannot_be_regressed(people, features, change, columns, words):
    with pytest.raises(InputError, match=words):
        ConfoundRegression.fit(features, people.assign(**change), columns)


def test_a_category_that_training_lacks_is_refused(people, features):
    here = people["site"] != "c"
    fitted = ConfoundRegression.fit(features[here], people[here], ["site"])
    with pytest.raises(InputError, match=r"nobody with site=c is in training"):
        fitted.transform(features, people)


def test_a_design_is_lenient_where_it_only_predicts(people):
    table = people.assign(age=[np.nan, *people["age"][1:]])
    table.loc["s01", "sex"] = None
    design = Design.fit(table.iloc[:20], ["age", "sex"])
    numbers = design.matrix(table)
    assert numbers.shape == (40, 2)
    assert numbers[0, 0] == 0.0
    assert numbers[1, 1] == 0.0
    np.testing.assert_allclose(numbers[1:20, 0].mean(), 0, atol=1e-12)
    assert Design.fit(table, []).matrix(table).shape == (40, 0)


def test_confounds_are_found_by_name(people):
    table = people.assign(memory=1.0, gender="M", site="a")
    assert confound_columns(table, "group") == ["age", "sex", "fd"]
    assert confound_columns(people, "sex") == ["age", "site", "fd"]


def test_sites_that_go_with_groups_are_told(people):
    assert site_warning(people, "group") == ""
    table = people.assign(site=np.where(people["group"] == "patient", "b", "a"))
    table.loc["s00", "site"] = "a"
    said = site_warning(table, "group")
    assert "'group' goes with 'site' (Cramér's V 0.95; " in said
    assert "a: 20 control, 1 patient; b: 0 control, 19 patient" in said
    counts = np.array([[20, 1], [0, 19]])
    v = np.sqrt(stats.chi2_contingency(counts, correction=False).statistic / 40)
    assert f"{v:.2f}" == "0.95"
    assert site_warning(table.drop(columns="site"), "group") == ""
    assert site_warning(table.assign(site="a"), "group") == ""


@pytest.fixture
def cohort(people, features):
    return Cohort(people, features, "volume", "group", "patient", "here")


def test_nothing_is_done_unless_asked(cohort):
    rows = np.arange(5)
    nothing = Adjustment.fit(cohort, rows)
    assert nothing == Adjustment()
    assert Adjustment.fit(cohort, rows, ["age"]) != Adjustment()
    same = nothing.apply(cohort, rows)
    np.testing.assert_array_equal(same, cohort.features[:5])


def test_sites_come_first_then_confounds(cohort):
    rows, held = np.arange(30), np.arange(30, 40)
    both = Adjustment.fit(cohort, rows, ["age"], "site")
    sites = both.sites.transform(
        cohort.features[held], cohort.people["site"].iloc[held]
    )
    expected = both.confounds.transform(sites, cohort.people.iloc[held])
    np.testing.assert_array_equal(both.apply(cohort, held), expected)
    fitted = both.apply(cohort, rows).reshape(30, -1)
    for column in fitted.T:
        age = cohort.people["age"].iloc[rows]
        assert abs(stats.pearsonr(column, age).statistic) < 1e-3


@pytest.mark.parametrize(
    ("regress", "harmonise", "error", "words"),
    [
        (["aeg"], None, UnknownNameError, "confounds.regress names 'aeg'.*mean 'age'"),
        ([], "scanner", UnknownNameError, "confounds.harmonise names 'scanner'"),
        (["group"], None, InputError, "'group', the target"),
        (["site"], None, InputError, "nobody with site=c"),
        ([], "site", InputError, "nobody of site=c is in training"),
    ],
)
def test_impossible_wishes_are_refused_early(cohort, regress, harmonise, error, words):
    there = cohort.people["site"] != "c"
    fold = (list(cohort.people.index[there]), list(cohort.people.index[~there]))
    with pytest.raises(error, match=words):
        check_adjustment(cohort, regress, harmonise, [fold])
    check_adjustment(cohort, ["age"], None, [fold])


def test_time_courses_have_no_confounds(people):
    signals = np.random.default_rng(0).normal(size=(40, 6, 2)).astype(np.float32)
    cohort = Cohort(people, signals, "timecourses", "group", "patient", "here")
    with pytest.raises(InputError, match=r"not the same in two people"):
        check_adjustment(cohort, ["age"], None, [])
    check_adjustment(cohort, [], None, [])


def test_an_adjustment_is_stored_without_pickles(cohort, tmp_path):
    rows, held = np.arange(30), np.arange(30, 40)
    fitted = Adjustment.fit(cohort, rows, ["age", "sex"], "site")
    np.savez(tmp_path / "a.npz", **fitted.to_arrays())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        again = Adjustment.from_arrays(arrays)
        lacking = {name: arrays[name] for name in arrays if name != "slopes"}
    np.testing.assert_array_equal(fitted.apply(cohort, held), again.apply(cohort, held))
    assert Adjustment().to_arrays() == {}
    assert Adjustment.from_arrays({}) == Adjustment()
    with pytest.raises(InputError, match=r"not complete \('slopes'\); train again"):
        Adjustment.from_arrays(lacking)
