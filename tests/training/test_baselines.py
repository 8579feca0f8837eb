from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spectral_mlops.cohorts import FeatureScaler
from spectral_mlops.errors import UnknownNameError
from spectral_mlops.training import make_plan
from spectral_mlops.training.baselines import baselines, correlations_of, judge


def test_the_linear_baseline_is_plain_logistic_regression(small):
    plan = make_plan(small(), Path())
    linear = baselines(plan)[0]
    width = plan.cohort.features.shape[1]
    for fold, said, probed in zip(
        plan.folds, linear.validation, linear.probe, strict=True
    ):
        train, held = (
            plan.cohort.rows(ids) for ids in (fold.train_ids, fold.validation_ids)
        )
        plain = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=10 / width, max_iter=5000, tol=1e-8),
        )
        plain.fit(plan.cohort.features[train], plan.targets[train])
        for rows, part in ((held, said), (plan.cohort.rows(plan.probe.ids), probed)):
            expected = plain.predict_proba(plan.cohort.features[rows])
            np.testing.assert_allclose(part.probabilities, expected, atol=2e-3)
            assert part.ids == tuple(plan.cohort.people.index[rows])
            np.testing.assert_array_equal(part.targets, plan.targets[rows])


def test_features_are_read_some_at_a_time(small, monkeypatch):
    plan = make_plan(small(), Path())
    volumes = np.abs(plan.cohort.features).reshape(-1, 11, 3, 2)
    volumes[:, 2] = 0.05  # below the threshold of volumes, and constant
    cohort = replace(plan.cohort, features=volumes, modality="volume")
    plan = replace(plan, cohort=cohort)
    at_once = baselines(plan)[0]
    monkeypatch.setattr("spectral_mlops.training.baselines.CHUNK", 7)
    parts = baselines(plan)[0]
    for one, other in zip(at_once.probe, parts.probe, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
    fold = plan.folds[0]
    train, held = (
        plan.cohort.rows(ids) for ids in (fold.train_ids, fold.validation_ids)
    )
    scaler = FeatureScaler.fit(volumes[train])
    known = scaler.transform(volumes[train])
    plain = LogisticRegression(C=10 / scaler.width, max_iter=5000, tol=1e-8)
    plain.fit(known, plan.targets[train])
    expected = plain.predict_proba(scaler.transform(volumes[held]))
    np.testing.assert_allclose(parts.validation[0].probabilities, expected, atol=2e-3)


def test_the_confounds_are_those_of_the_people(small):
    plan = make_plan(small(), Path())
    confounds = baselines(plan)[1]
    assert confounds.about == "age, sex, site, fd"
    people, fold = plan.cohort.people, plan.folds[0]
    numbers = np.stack(
        [
            *(people["age"], people["sex"] == "M", people["site"] == "B"),
            people["fd"],
        ],
        axis=1,
    ).astype(float)
    train = plan.cohort.rows(fold.train_ids)
    for column in (0, 3):
        numbers[:, column] -= numbers[train, column].mean()
        numbers[:, column] /= numbers[train, column].std()
    plain = LogisticRegression(C=1.0, tol=1e-8).fit(numbers[train], plan.targets[train])
    held = plan.cohort.rows(fold.validation_ids)
    expected = plain.predict_proba(numbers[held])
    np.testing.assert_allclose(
        confounds.validation[0].probabilities, expected, atol=1e-3
    )


def test_confounds_named_by_the_user(small):
    plan = make_plan(small(baselines={"columns": ["age"]}), Path())
    assert baselines(plan)[1].about == "age"
    plan = make_plan(small(baselines={"columns": ["aeg"]}), Path())
    with pytest.raises(UnknownNameError, match=r"'aeg'.*Did you mean 'age'"):
        baselines(plan)
    plan = make_plan(small(baselines={"columns": ["group"]}), Path())
    with pytest.raises(UnknownNameError, match=r"beside the target"):
        baselines(plan)


def test_validation_people_do_not_fit_anything(small):
    """Other features of the people held out change nobody else's prediction."""
    plan = make_plan(small(), Path())
    before = baselines(plan)
    who = plan.folds[0].validation_ids[0]
    features = plan.cohort.features.copy()
    features[plan.cohort.rows([who])] += 5.0
    object.__setattr__(plan.cohort, "features", features)
    after = baselines(plan)
    np.testing.assert_array_equal(
        before[0].validation[0].probabilities[1:],
        after[0].validation[0].probabilities[1:],
    )
    np.testing.assert_array_equal(
        before[0].probe[0].probabilities, after[0].probe[0].probabilities
    )


def test_judging_puts_network_and_baselines_side_by_side(small):
    plan = make_plan(small(baselines={"draws": 100}), Path())
    said = baselines(plan)
    table = judge(plan, said[0].validation, said[0].probe)
    assert list(dict.fromkeys(table["model"])) == ["network", "linear", "confounds"]
    assert set(table["people"]) == {"validation", "probe"}
    of = table[table["group"].eq("all") & table["metric"].eq("auc")]
    of = of.set_index(["model", "people"])["value"]
    expected = [roc_auc_score(p.targets, p.probabilities[:, 1]) for p in said[1].probe]
    assert of["confounds", "probe"] == pytest.approx(np.mean(expected))
    assert of["network", "probe"] == of["linear", "probe"]
    off = make_plan(small(baselines={"run": False}), Path())
    assert judge(off, said[0].validation, said[0].probe).empty


def test_correlations_leave_padding_and_dead_components_out():
    signals = np.random.default_rng(0).normal(size=(3, 20, 4)).astype(np.float32)
    signals[1, 15:] = 0.0
    signals[2, :, 1] = 0.7
    found = correlations_of(signals)
    upper = np.triu_indices(4, 1)
    np.testing.assert_allclose(found[0], np.corrcoef(signals[0].T)[upper], atol=1e-6)
    np.testing.assert_allclose(
        found[1], np.corrcoef(signals[1, :15].T)[upper], atol=1e-6
    )
    assert (found[2][[0, 3, 4]] == 0).all()
    windows = signals.reshape(3, 4, 5, 4)
    np.testing.assert_array_equal(correlations_of(windows), found)
