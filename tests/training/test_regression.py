"""A number is predicted: all figures against scikit-learn, SciPy, a slow reference."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import huber_loss, mse_loss

from spectral_mlops.config import TrainingConfig, validate
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run, train
from spectral_mlops.training.baselines import baselines, judge
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.intervals import (
    METRICS_OF_NUMBERS,
    Judged,
    performance_table,
    weighted_loss,
    weighted_mae,
    weighted_pearson,
    weighted_r2,
)
from spectral_mlops.training.optimisation import Optimisation
from spectral_mlops.training.outcome import no_outcome
from spectral_mlops.training.performance import Estimates
from spectral_mlops.training.plan import _check_spread
from spectral_mlops.training.retrain import MEAN, retrain
from spectral_mlops.training.retrain_permute import shuffle_of
from spectral_mlops.training.target import groupings_of, with_target
from spectral_mlops.training.task import Regression, TargetScale
from tests.training.numbers import aged

CPU = torch.device("cpu")


def estimates(n=23, seed=0, sd=3.0, prefix="p", huber=False):
    rng = np.random.default_rng(seed)
    targets = rng.normal(50, 10, n).round(1)
    values = targets + rng.normal(0, 6, n)
    ids = tuple(f"{prefix}{i}" for i in range(n))
    return Estimates(ids, targets, values, np.full(n, sd), huber)


# -- numbers --------------------------------------------------------------------------


def test_numbers_are_those_of_scikit_learn_and_scipy():
    said = estimates()
    y, p = said.targets, said.values
    assert said.r2 == pytest.approx(r2_score(y, p), rel=1e-12)
    assert said.mae == pytest.approx(mean_absolute_error(y, p), rel=1e-12)
    assert said.pearson == pytest.approx(stats.pearsonr(y, p).statistic, rel=1e-12)
    assert said.loss == pytest.approx(mean_squared_error(y, p) / 9, rel=1e-12)


def test_the_loss_is_that_of_training_in_sds():
    said = estimates(huber=True, sd=5.0)
    y, p = (torch.from_numpy(x / 5.0) for x in (said.targets, said.values))
    assert said.loss == pytest.approx(float(huber_loss(p, y, delta=1.0)), rel=1e-12)
    plain = replace(said, huber=False)
    assert plain.loss == pytest.approx(float(mse_loss(p, y)), rel=1e-12)


def test_one_person_and_one_target_have_an_error_and_no_r2():
    one = estimates(1)
    assert np.isnan([one.r2, one.pearson]).all()
    assert one.mae == abs(one.targets[0] - one.values[0])
    said = estimates(5)
    same = replace(said, targets=np.full(5, 0.1))
    assert np.isnan([same.r2, same.pearson]).all()
    flat = replace(said, values=np.full(5, 0.1))
    assert np.isnan(flat.pearson)
    assert flat.r2 == pytest.approx(r2_score(flat.targets, flat.values))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_diverged_has_no_numbers(value):
    said = estimates(7)
    said.values[3] = value
    row = said.row()
    assert np.isnan(row["pearson"])
    assert not np.isfinite([row["loss"], row["r2"], row["mae"]]).any()


def test_of_groups_those_that_are_there_are_told():
    said = estimates(9)
    table = said.per_group(["x"] * 8 + ["y"]).set_index("group")
    assert list(table.index) == ["all", "x", "y"]
    assert list(table.columns) == ["n", "loss", "r2", "mae", "pearson"]
    assert table.loc["x", "r2"] == r2_score(said.targets[:8], said.values[:8])
    assert table.loc["y", "n"] == 1
    assert np.isnan(table.loc["y", "r2"])
    assert table.loc["y", "mae"] == abs(said.targets[8] - said.values[8])


def test_joined_folds_keep_their_own_sds():
    parts = [estimates(5, 1, sd=2.0), estimates(4, 2, sd=7.0)]
    joined = Estimates.join(parts)
    assert joined.ids == parts[0].ids + parts[1].ids
    np.testing.assert_array_equal(
        joined.losses, np.concatenate([part.losses for part in parts])
    )


def test_weighted_numbers_are_those_of_repeated_people():
    said = estimates()
    weights = np.random.default_rng(1).integers(0, 4, size=(6, 23)).astype(float)
    for row, w in enumerate(weights):
        again = np.repeat(np.arange(23), w.astype(int))
        y, p = said.targets[again], said.values[again]
        expected = {
            weighted_r2: r2_score(y, p),
            weighted_mae: mean_absolute_error(y, p),
            weighted_pearson: stats.pearsonr(y, p).statistic,
            weighted_loss: mean_squared_error(y, p) / 9,
        }
        for metric, value in expected.items():
            assert metric(said, weights)[row] == pytest.approx(value, rel=1e-10)


def test_a_draw_of_one_target_has_no_r2():
    said = replace(estimates(4), targets=np.array([0.1, 0.1, 0.1, 7.0]))
    weights = np.array([[3.0, 1, 7, 0], [0, 1, 0, 1]])
    assert np.isnan(weighted_r2(said, weights)).tolist() == [True, False]
    assert np.isnan(weighted_pearson(said, weights)).tolist() == [True, False]
    assert np.isfinite(weighted_mae(said, weights)).all()


def test_intervals_are_those_of_scipy_s_bootstrap():
    said = estimates(60, 3)
    table = performance_table(
        [Judged("m", "probe", [said])],
        dict.fromkeys(said.ids, "a"),
        4000,
        metrics=METRICS_OF_NUMBERS,
    )
    references = {"r2": r2_score, "mae": mean_absolute_error}
    references["pearson"] = lambda y, p: stats.pearsonr(y, p).statistic
    for name, reference in references.items():
        row = table[(table["metric"] == name) & (table["group"] == "all")].iloc[0]
        theirs = stats.bootstrap(
            (said.targets, said.values),
            reference,
            paired=True,
            vectorized=False,
            n_resamples=2000,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert row["value"] == pytest.approx(reference(said.targets, said.values))
        assert row["low"] == pytest.approx(theirs.low, abs=0.1 * width)
        assert row["high"] == pytest.approx(theirs.high, abs=0.1 * width)


def test_a_network_whose_group_is_one_person_is_left_out_of_its_r2():
    parts = [estimates(6, 1, prefix="a"), estimates(6, 2, prefix="b")]
    labels = {who: "x" for part in parts for who in part.ids} | {"a0": "y", "b0": "y"}
    labels["b1"] = "y"
    table = performance_table(
        [Judged("m", "validation", parts)], labels, 100, metrics=METRICS_OF_NUMBERS
    )
    of = table[table["group"] == "y"].set_index("metric")
    assert of.loc["r2", "value"] == pytest.approx(
        r2_score(parts[1].targets[:2], parts[1].values[:2])
    )
    errors = [np.abs(p.targets - p.values) for p in parts]
    assert of.loc["mae", "value"] == pytest.approx(
        np.mean([errors[0][0], errors[1][:2].mean()])
    )


# -- the task -------------------------------------------------------------------------


def test_targets_are_learned_in_sds_of_training_people():
    targets = np.array([1.0, 4.0, 10.0])
    scale = Regression().scale(targets)
    learned = Regression().learned(targets, scale)
    np.testing.assert_allclose(learned, stats.zscore(targets), rtol=1e-6)
    outputs = torch.tensor([[0.5], [-1.0]])
    said = Regression().said(("a", "b"), targets[:2], outputs, scale)
    np.testing.assert_allclose(said.values, [5 + 0.5 * scale.sd, 5 - scale.sd])
    assert set(said.sd) == {scale.sd}


def test_thirds_hold_equal_targets_together():
    thirds = Regression().strata(np.arange(9.0))
    assert thirds.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert Regression().strata(np.array([0.0] * 8 + [1.0])).tolist() == [0] * 8 + [2]


@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_that_of_the_whole_batch(loss, accumulate):
    torch.manual_seed(0)
    x, y = torch.randn(7, 4), torch.randn(7) * 2
    model, whole = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    whole.load_state_dict(model.state_dict())
    values = {"task": "regression", "loss": loss, "optimizer": "sgd"}
    values |= {"accumulate": accumulate}
    config = validate(TrainingConfig, values, "test")
    how = Optimisation(model, config, CPU, y.numpy(), 0)
    batches = torch.arange(7).split(7 if accumulate == 1 else 3)
    masses = how.masses([y.numpy()[b.numpy()] for b in batches])
    how.begin(0, 0, len(batches))
    for batch, mass in zip(batches, masses, strict=True):
        how.backward(how.loss(model(x[batch]), y[batch], mass))
    reference = {"mse": mse_loss, "huber": huber_loss}[loss]
    reference(whole(x).squeeze(1), y).backward()
    torch.testing.assert_close(model.weight.grad, whole.weight.grad)
    assert how.scale_of(masses[0]) == (None if accumulate == 1 else 1 / 7)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"task": "regression", "class_weights": "balanced"},
            r"class_weights='balanced' is of task='classification': a number has no",
        ),
        ({"target": "age"}, r"target='age' is of task='regression'"),
        ({"loss": "huber"}, r"loss='huber' is of task='regression'"),
        ({"task": "ranking"}, r"task='ranking' is not usable"),
    ],
)
def test_settings_of_the_other_task_are_refused(training, message):
    with pytest.raises(InputError, match=message):
        validate(TrainingConfig, training, "test")


# -- the plan -------------------------------------------------------------------------


def test_groups_are_compared_and_a_number_is_predicted():
    plan = make_plan(aged(), Path())
    assert (plan.groupings, plan.cohort.target, plan.classes) == (("group",), "age", ())
    assert plan.task.outputs == 1
    assert plan.cohort.summary().groups == {}
    np.testing.assert_array_equal(plan.targets, plan.cohort.people["age"])
    assert np.bincount(plan.target_strata).tolist() == [27, 26, 27]
    assert plan.probe.strata == ("group", "age thirds", "site")
    people = plan.cohort.people.assign(third=plan.target_strata)
    held = people.loc[list(plan.probe.ids)]
    assert held["third"].value_counts().between(9, 12).all()
    for fold in plan.folds:
        assert fold.strata[0] == "age thirds"
        third = people.loc[list(fold.validation_ids), "third"].value_counts()
        assert third.max() - third.min() <= 3
    assert plan.config.training.target == "age"
    age = plan.cohort.people["age"]
    said = f"Predicted: 'age', a number, {age.mean():.4g} ± {age.std(ddof=0):.4g}."
    assert said in plan.notes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"cohort": {"settings": {"ages": "missing"}}},
            InputError,
            r"'age' is missing for 2 people \(sub-004, sub-017\)",
        ),
        (
            {"cohort": {"settings": {"ages": "constant"}}},
            InputError,
            r"everyone has age=40; there is nothing to predict",
        ),
        (
            {"training": {"target": "note"}},
            InputError,
            r"'note' of 1 people is no number, of sub-003 it is '89\+'",
        ),
        (
            {"training": {"target": "aeg"}},
            UnknownNameError,
            r"training.target='aeg' is no column.*Did you mean 'age'",
        ),
        (
            {"training": {"target": None}},
            InputError,
            r"labels in 'group' are groups; name the column of numbers",
        ),
        (
            {"comparison": {"groupings": ["age"]}},
            InputError,
            r"names 'age', which is the number predicted and has no groups",
        ),
        (
            {"comparison": {"groupings": ["sexx"]}},
            UnknownNameError,
            r"names 'sexx', which is no column.*Did you mean 'sex'",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        make_plan(aged(**changes), Path())


def test_a_label_column_of_numbers_needs_no_other_name():
    plan = make_plan(aged(), Path())
    numbers = replace(plan.cohort, people=plan.cohort.people.assign(group="x"))
    assert numbers.numeric
    config = aged(training={"target": None})
    assert with_target(numbers, config).target == "age"
    assert groupings_of(config, numbers, numbers) == ("sex",)
    few = replace(numbers, people=numbers.people[["age", "fd"]])
    with pytest.raises(InputError, match=r"no column of groups was found"):
        groupings_of(config, few, few)
    with pytest.raises(InputError, match=r"labels in 'age' are numbers.*regression'"):
        with_target(numbers, aged(training={"task": "classification", "target": None}))


def test_a_fold_whose_people_have_one_target_is_refused(tmp_path):
    plan = make_plan(aged(), Path())
    people = plan.cohort.people.copy()
    people.loc[list(plan.folds[0].train_ids), "age"] = 30.0
    cohort = replace(plan.cohort, people=people)
    with pytest.raises(InputError, match=r"Fold 0: everyone in training has age=30"):
        _check_spread(cohort, plan.folds)


def test_a_site_is_left_out_whatever_its_targets():
    plan = make_plan(aged(training={"split": "site"}), Path())
    assert [fold.strata for fold in plan.folds] == [("site",), ("site",)]


# -- training -------------------------------------------------------------------------


def test_the_baselines_are_plain_ridge_regression():
    plan = make_plan(aged(), Path())
    linear, confounds = baselines(plan)
    assert confounds.about == "sex, site, fd"
    width = plan.cohort.features.shape[1]
    for number, fold in enumerate(plan.folds):
        train, held = (
            plan.cohort.rows(ids) for ids in (fold.train_ids, fold.validation_ids)
        )
        y = plan.targets[train]
        plain = make_pipeline(StandardScaler(), Ridge(alpha=width))
        plain.fit(plan.cohort.features[train], (y - y.mean()) / y.std())
        for rows, part in (
            (held, linear.validation[number]),
            (plan.cohort.rows(plan.probe.ids), linear.probe[number]),
        ):
            z = plain.predict(plan.cohort.features[rows])
            np.testing.assert_allclose(part.values, y.mean() + y.std() * z, rtol=1e-5)
            np.testing.assert_array_equal(part.targets, plan.targets[rows])
        assert linear.validation[number].r2 > 0.5
        assert confounds.validation[number].r2 < 0.2
    table = judge(plan, linear.validation, linear.probe)
    assert set(table["metric"]) == {"r2", "mae", "pearson", "loss"}
    assert set(table["group"]) == {"all", "control", "patient"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "one"
    plan = make_plan(aged(training={"epochs": 6, "seeds": 2}), Path())
    tracker = MemoryTracker()
    return plan, run(plan, tracker, folder, name="one", figures=False), tracker


def test_a_network_learns_it_and_says_so_in_years(finished):
    plan, done, tracker = finished
    metrics = done.result.metrics
    assert metrics["final/r2"] > 0.5
    assert metrics["final/probe_r2"] > 0.5
    assert 0 < metrics["final/mae"] < 12
    names = {name for name, *_ in tracker.history}
    assert not [name for name in names if "auc" in name.split("/")[-1]]
    assert {"val/r2", "val_mae/patient", "best/val_mae", "auc/val_r2"} <= names
    assert {"baseline/linear_r2_probe", "baseline/confounds_mae"} <= names
    assert {"final/r2_sd_folds", "final/r2_sd_seeds", "final/r2_sd"} <= names
    curve = [value for name, _, value in tracker.history if name == "val/mae"]
    assert metrics["best/val_mae"] == min(curve)
    table = pd.read_table(done.folder / "predictions.tsv")
    columns = ["participant_id", "seed", "repeat", "target", "predicted"]
    assert list(table.columns) == columns
    rows = plan.cohort.rows(table["participant_id"])
    np.testing.assert_allclose(table["target"], plan.targets[rows])
    ids = list(plan.folds[0].validation_ids)
    own = table[(table["seed"] == 0) & table["participant_id"].isin(ids)]
    first = r2_score(own["target"], own["predicted"])
    assert done.result.headline[0] == pytest.approx(first)


def test_the_scale_of_each_fold_is_kept(finished):
    plan, done, _ = finished
    for number, fold in enumerate(plan.folds):
        with np.load(done.folder / f"checkpoints/fold-{number}-target.npz") as kept:
            known = plan.targets[plan.cohort.rows(fold.train_ids)]
            assert (kept["mean"], kept["sd"]) == (known.mean(), known.std())
            assert done.result.targets[number] == TargetScale(
                kept["mean"].item(), kept["sd"].item()
            )


def test_the_probe_s_adjoint_is_that_of_the_prediction():
    """One output: its adjoint is 1 for everybody, and knows no target."""
    plan = make_plan(aged(), Path())
    people = plan.cohort.people.assign(age=100 - plan.cohort.people["age"])
    turned = replace(plan, cohort=replace(plan.cohort, people=people))
    one, other = (
        {
            spectrum.layer: spectrum.values
            for spectrum in FoldRun(each, 0, CPU).probe(0).spectra
            if (spectrum.quantity, spectrum.group) == ("adjoint", "all")
        }
        for each in (plan, turned)
    )
    n = len(plan.probe.ids)
    np.testing.assert_allclose(one["output"][0], np.sqrt(n), rtol=1e-5)
    for layer in ("hidden_1", "output"):
        np.testing.assert_array_equal(one[layer], other[layer])


def test_validation_people_fit_no_scale():
    plan = make_plan(aged(), Path())
    people = plan.cohort.people.copy()
    people.loc[list(plan.folds[0].validation_ids), "age"] += 1000.0
    other = replace(plan, cohort=replace(plan.cohort, people=people))
    one, two = (FoldRun(x, 0, CPU) for x in (plan, other))
    assert one.scale == two.scale
    np.testing.assert_array_equal(one.learned, two.learned)


def test_patience_goes_by_the_loss():
    plan = make_plan(
        aged(training={"epochs": 40, "patience": 2, "learning_rate": 0.3}), Path()
    )
    tracker = MemoryTracker()
    found = train(plan, tracker)
    assert found.metrics["final/epochs"] < 40


# -- nulls ----------------------------------------------------------------------------


def test_only_the_target_is_permuted_within_groups_and_folds():
    plan = make_plan(aged(comparison={"groupings": ["group", "sex"]}), Path())
    shuffle = shuffle_of(plan)
    assert shuffle.moving == ("age",)
    assert shuffle.strata == "group × site × sex × fold"
    assert shuffle.different > 10**9
    moved = shuffle.permuted(1)
    assert (moved.targets != plan.targets).sum() > 40
    assert moved.labels(np.arange(80)) == plan.labels(np.arange(80))
    cells = plan.cohort.people[["group", "site", "sex"]].agg(" ".join, axis=1)
    for part in (plan.probe.ids, *(fold.validation_ids for fold in plan.folds)):
        rows = plan.cohort.rows(part)
        for cell in set(cells.iloc[rows]):
            inside = rows[cells.iloc[rows] == cell]
            assert sorted(moved.targets[inside]) == sorted(plan.targets[inside])


def test_retraining_on_permuted_numbers(tmp_path):
    plan = make_plan(aged(), Path())
    run(plan, MemoryTracker(), tmp_path / "one", name="one", figures=False)
    found = retrain(plan, tmp_path / "one", 3)
    means = found.table[found.table["layer"] == MEAN]
    assert set(means["source"]) == {"train", "probe"}
    assert (means["p"] >= 0.25).all()
    assert "'age' permuted over people within group × site × fold" in found.sentences[0]


def test_controls_work_with_numbers():
    plan = make_plan(aged(controls={"run": True, "draws": 1}), Path())
    networks = [FoldRun(plan, k, CPU) for k in range(2)]
    for one in networks:
        for epoch in range(2):
            one.train_epoch(epoch)
            one.validate(epoch)
    nothing = no_outcome("not asked")
    controls = Controls(plan, networks, nothing, nothing)
    rows = {row.name: row for row in controls.rows()}
    assert {"loss-matched", "unrelated-target", "permuted", "nuisance sex"} <= {*rows}
    assert rows["permuted"].outcome.strata == "target × site"
    assert np.isfinite(rows["permuted"].outcome.p)
