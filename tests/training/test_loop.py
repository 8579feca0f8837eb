from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops.cohorts import FeatureScaler
from spectral_mlops.config import ModelConfig
from spectral_mlops.errors import InputError
from spectral_mlops.models import build_model
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, read_plan, run, train
from spectral_mlops.training.fold import FoldRun, even_order


def plain_training(plan, number, *seeds):
    """The same fold trained by hand, with no monitor anywhere."""
    config, fold = plan.config.training, plan.folds[number]
    rows = plan.cohort.rows(fold.train_ids)
    scaler = FeatureScaler.fit(plan.cohort.features[rows])
    x = torch.from_numpy(scaler.transform(plan.cohort.features[rows]))
    y = torch.from_numpy(plan.targets[rows])

    def seed(epoch):
        state = np.random.SeedSequence([config.seed, number, epoch + 1, *seeds])
        torch.manual_seed(int(state.generate_state(1)[0]))

    seed(-1)
    model = build_model(plan.config.model, scaler.width, 2)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for epoch in range(config.epochs):
        seed(epoch)
        model.train()
        order = even_order([plan.cohort.labels[i] for i in rows])
        for batch in order.split(config.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def test_watched_and_unwatched_training_give_the_same_weights(small):
    plan = make_plan(small(), Path())
    for number in range(2):
        fold = FoldRun(plan, number, torch.device("cpu"))
        for epoch in range(plan.config.training.epochs):
            fold.train_epoch(epoch)
            fold.validate(epoch)
            fold.probe(epoch).divergences(permutations=19)
        expected = plain_training(plan, number).state_dict()
        for name, weight in fold.model.state_dict().items():
            assert torch.equal(weight, expected[name])


def test_a_fold_does_not_depend_on_its_siblings(small):
    """Nor on what the others drew at random before it."""
    plan = make_plan(small(), Path())
    alone = FoldRun(plan, 1, torch.device("cpu"))
    folds = [FoldRun(plan, k, torch.device("cpu")) for k in range(2)]
    for epoch in range(2):
        alone.train_epoch(epoch)
        for fold in folds:
            fold.train_epoch(epoch)
    pairs = zip(alone.model.parameters(), folds[1].model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_batches_have_the_groups_in_their_shares():
    groups = ["a"] * 40 + ["b"] * 20 + ["c"] * 4
    torch.manual_seed(0)
    orders = [even_order(groups) for _ in range(5)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(64))
        for batch in order.split(16):
            count = Counter(groups[i] for i in batch.tolist())
            assert abs(count["a"] - 10) <= 1
            assert abs(count["b"] - 5) <= 1
            assert abs(count["c"] - 1) <= 1
    assert not torch.equal(orders[0], orders[1])
    first = Counter(int(even_order(groups)[0]) for _ in range(300))
    assert len(first) > 40  # anybody may come first


def test_scaling_is_fitted_on_training_people_only(small):
    plan = make_plan(small(), Path())
    before = FoldRun(plan, 0, torch.device("cpu")).scaler
    held = plan.cohort.rows((*plan.folds[0].validation_ids, *plan.probe.ids))
    features = plan.cohort.features.copy()
    features[held] = 0.9
    object.__setattr__(plan.cohort, "features", features)
    after = FoldRun(plan, 0, torch.device("cpu")).scaler
    assert np.array_equal(before.mean, after.mean)
    assert np.array_equal(before.sd, after.sd)


def test_a_run_logs_what_it_found(small):
    plan = make_plan(small(), Path())
    tracker, epochs = MemoryTracker(), []
    result = train(plan, tracker, lambda epoch, metrics: epochs.append(epoch))
    assert epochs == [0, 1, 2]
    keys = {key for key, _, _ in tracker.history}
    assert {
        "train/loss",
        "val/loss",
        "val/auc",
        "val/balanced_accuracy",
        "val_loss/control",
        "val_loss/patient",
        "divergence/activation",
        "divergence/gradient",
        "divergence/adjoint",
        "excess/gradient",
        "final/divergence_activation",
        "final/auc",
        "final/probe_auc",
        "final/additivity",
    } <= keys
    steps = {step for key, step, _ in tracker.history if key == "divergence/adjoint"}
    assert steps == {1, 2}
    assert result.additivity < 1e-5
    folds = {(r.epoch, r.source, r.fold) for r in tracker.records}
    assert {(e, "train", k) for e in range(3) for k in range(2)} <= folds
    assert {(e, "probe", k) for e in (1, 2) for k in range(2)} <= folds
    (validation,) = result.validation
    assert set(validation.ids) == set(plan.cohort.people.index) - {*plan.probe.ids}


def test_the_null_keeps_to_its_budget_by_the_clock(small):
    """Epochs of 10 s, nulls of 2 s: 5 % of four epochs pay for one."""
    times = iter([0.0, 10.0, 12.0])

    def clock():
        return next(times, 1e9)  # later epochs are not measured

    settings = small(training={"epochs": 6}, comparison={"null_epochs": None})
    tracker = MemoryTracker()
    result = train(make_plan(settings, Path()), tracker, clock=clock)
    every = [(step, x) for key, step, x in tracker.history if key == "cost/null_every"]
    assert every == [(0, 4.0)]
    assert result.metrics["cost/null_every"] == 4
    steps = {step for key, step, _ in tracker.history if key == "divergence/adjoint"}
    assert steps == {0, 4, 5}
    with_null = {
        record.epoch
        for record in tracker.records
        for row in record.divergences
        if row.null != "none" and record.epoch >= 0
    }
    assert with_null == {0, 4, 5}
    assert set(result.trajectories["epoch"]) == {0, 4, 5}


def test_the_final_numbers_are_those_of_the_lowest_validation_loss(small):
    plan = make_plan(small(training={"epochs": 6, "learning_rate": 0.05}), Path())
    tracker = MemoryTracker()
    result = train(plan, tracker)
    fold = FoldRun(plan, 0, torch.device("cpu"))
    losses = []
    for epoch in range(6):
        fold.train_epoch(epoch)
        losses.append(fold.validate(epoch).loss)
    best = int(np.argmin(losses))
    assert result.best_epochs[0] == best
    fold.restore_best()
    for name, weight in fold.model.state_dict().items():
        assert torch.equal(weight, result.weights[0][name])
    assert fold.validate(best).auc == pytest.approx(result.headline[0])


def test_the_same_settings_give_the_same_run(small):
    plan = make_plan(small(), Path())
    first, second = (train(plan, MemoryTracker()).metrics for _ in range(2))
    assert first == second
    other = make_plan(small(training={"epochs": 3, "seed": 1}), Path())
    assert train(other, MemoryTracker()).metrics != first


def test_folds_are_averaged_relabelling_by_relabelling(small):
    """The z of the run is that of the average, by a slow loop over folds."""
    plan = make_plan(small(), Path())
    result = train(plan, MemoryTracker())
    sums = []
    for number in range(2):
        fold = FoldRun(plan, number, torch.device("cpu"))
        fold.model.load_state_dict(result.weights[number])
        compared = fold.probe(0).comparisons(permutations=19)
        sums.append({c.layer: c.values for c in compared if c.quantity == "activation"})
    layers = []
    for layer in sums[0]:
        mean = (sums[0][layer] + sums[1][layer]) / 2
        layers.append((mean - mean.mean()) / mean.std())
    together = np.mean(layers, axis=0)
    z = (together[0] - together.mean()) / together.std()
    assert result.metrics["final/divergence_activation"] == pytest.approx(z)


def test_without_a_probe_values_are_descriptive(small):
    plan = make_plan(small(comparison={"probe_fraction": 0.2}), Path())
    tracker = MemoryTracker()
    result = train(plan, tracker)
    keys = {key for key, _, _ in tracker.history}
    assert "excess/activation" in keys
    assert not {key for key in keys if key.startswith("divergence/")}
    assert all(np.isnan(row.p) for row in result.divergences)
    assert all(row.source == "train" for row in result.divergences)
    assert any(np.isfinite(row.value) for row in result.divergences)


def test_folds_of_different_people_make_no_test(small):
    """Sex is not the target, yet the folds' training people are not the same."""
    comparison = {"probe_fraction": 0.2, "groupings": ["sex"]}
    tracker = MemoryTracker()
    result = train(make_plan(small(comparison=comparison), Path()), tracker)
    assert all(np.isnan([row.z, row.p, row.p_max]).all() for row in result.divergences)
    shaped = [row for row in result.divergences if np.isfinite(row.value)]
    assert shaped
    assert all(np.isfinite(row.excess) for row in shaped)
    assert all("different people" in row.reason for row in shaped)
    each_fold = [row for record in tracker.records for row in record.divergences]
    assert any(row.p > 0 for row in each_fold)


def test_several_groupings_are_watched_and_the_first_is_the_headline(small):
    plan = make_plan(small(comparison={"groupings": ["sex", "group"]}), Path())
    tracker = MemoryTracker()
    result = train(plan, tracker)
    assert {row.grouping for row in result.divergences} == {"sex"}
    seen = {row.grouping for record in tracker.records for row in record.divergences}
    assert seen == {"sex", "group"}


def test_a_run_leaves_its_files(small, tmp_path):
    plan = make_plan(small(), Path())
    tracker = MemoryTracker()
    finished = run(plan, tracker, tmp_path / "one", name="one", tags={"mine": "yes"})
    names = {
        p.relative_to(tmp_path / "one").as_posix()
        for p in (tmp_path / "one").rglob("*")
    }
    assert {
        "config.json",
        "environment.txt",
        "predictions.tsv",
        "layers.tsv",
        "final.json",
        "splits/probe.tsv",
        "splits/fold-1/train.tsv",
        "checkpoints/fold-0.pt",
    } <= names
    assert tracker.tags["mine"] == "yes"
    assert tracker.tags["spectral.probe"] == plan.probe.digest
    assert tracker.params["training.epochs"] == "3"
    assert "layers" in tracker.tables
    weights = torch.load(
        tmp_path / "one" / "checkpoints" / "fold-0.pt", weights_only=True
    )
    model: nn.Module = build_model(plan.config.model, 66, 2)
    model.load_state_dict(weights)
    with np.load(tmp_path / "one" / "checkpoints" / "fold-0-scaler.npz") as arrays:
        scaler = FeatureScaler.from_arrays(arrays)
    (said,) = finished.result.validation
    ids = plan.folds[0].validation_ids
    rows = plan.cohort.rows(ids)
    x = torch.from_numpy(scaler.transform(plan.cohort.features[rows]))
    p = model.eval()(x).double().softmax(1).detach().numpy()
    np.testing.assert_allclose(p, said.probabilities[: len(ids)], rtol=1e-5)
    assert said.ids[: len(ids)] == ids
    assert len(finished.layers) == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"confounds": {"regress": ["age", "sex", "fd"], "harmonise": "site"}},
        {"training": {"split": "site", "epochs": 2}},
        {"training": {"repeats": 2, "epochs": 2}},
    ],
    ids=["confounds", "sites", "repeats"],
)
def test_runs_with_confounds_and_other_splits(small, tmp_path, changes):
    plan = make_plan(small(baselines={"draws": 100}, **changes), Path())
    done = run(plan, MemoryTracker(), tmp_path / "run", name="one", figures=False)
    table = done.result.performance
    of = table[table["metric"].eq("auc") & table["group"].eq("all")]
    of_all = of[of["people"] == "validation"]
    of = of.set_index(["model", "people"])
    assert len(of) == 6
    for people, name in (("validation", "auc"), ("probe", "probe_auc")):
        value = done.result.metrics[f"final/{name}"]
        assert of.loc[("network", people), "value"] == pytest.approx(value)
    assert done.result.metrics["baseline/linear_auc_probe"] == pytest.approx(
        of.loc[("linear", "probe"), "value"]
    )
    everyone = done.result.groups.set_index("group")["n"]
    assert everyone["all"] == 56 - len(plan.probe.ids)
    assert (tmp_path / "run" / "performance.tsv").exists()
    stored = list((tmp_path / "run" / "checkpoints").glob("*-adjustment.npz"))
    assert len(stored) == ("confounds" in changes) * len(plan.folds)
    again = read_plan(tmp_path / "run", Path())
    assert (again.probe, again.folds) == (plan.probe, plan.folds)
    said = pd.read_csv(tmp_path / "run" / "predictions.tsv", sep="\t")
    repeats = plan.config.training.repeats
    for repeat, of in said.groupby("repeat"):
        folds = len(plan.folds) // repeats
        here = plan.folds[repeat * folds : (repeat + 1) * folds]
        assert list(of["participant_id"]) == [i for f in here for i in f.validation_ids]
    assert said["repeat"].nunique() == repeats
    validated = {who for fold in plan.folds for who in fold.validation_ids}
    assert set(of_all["n"]) == {len(validated)}


def test_confounds_leave_what_the_network_sees(small):
    plan = make_plan(small(confounds={"regress": ["age"]}), Path())
    fold = FoldRun(plan, 0, torch.device("cpu"))
    age = plan.cohort.people["age"].to_numpy()[fold.train_rows]
    age = (age - age.mean()) / age.std()
    inputs = fold.inputs.numpy()
    np.testing.assert_allclose(inputs.T @ age / len(age), 0, atol=1e-5)
    plain = FoldRun(make_plan(small(), Path()), 0, torch.device("cpu"))
    assert np.abs(plain.inputs.numpy().T @ age / len(age)).max() > 0.1


def test_simulated_time_courses_train_a_recurrent_network(small, tmp_path):
    settings = small(
        cohort={"settings": {"modality": "timecourses", "timepoints": 20}},
        training={"epochs": 1},
        baselines={"draws": 100},
    )
    lstm = ModelConfig(name="lstm", settings={"width": 5})
    plan = make_plan(settings.model_copy(update={"model": lstm}), Path())
    done = run(plan, MemoryTracker(), tmp_path / "run", name="one", figures=False)
    assert done.result.additivity < 1e-4
    upper = np.triu_indices(12, 1)
    vectors = np.stack([np.corrcoef(x.T)[upper] for x in plan.cohort.features])
    areas = []
    for fold in plan.folds:
        train, held = (
            plan.cohort.rows(ids) for ids in (fold.train_ids, fold.validation_ids)
        )
        plain = make_pipeline(StandardScaler(), LogisticRegression(C=10 / 66))
        plain.fit(vectors[train], plan.targets[train])
        scores = plain.decision_function(vectors[held])
        areas.append(roc_auc_score(plan.targets[held], scores))
    found = done.result.metrics["baseline/linear_auc"]
    assert found == pytest.approx(np.mean(areas), abs=0.02)


def test_a_training_that_diverged_is_one_sentence_and_keeps_its_epochs(small, tmp_path):
    training = {"optimizer": "sgd", "learning_rate": 1e30}
    plan = make_plan(small(training=training), Path())
    said = r"Training diverged: .* of 2 of 2 networks"
    with pytest.raises(InputError, match=said), MemoryTracker() as tracker:
        run(plan, tracker, tmp_path / "run", name="x", figures=False)
    charted = [step for key, step, _ in tracker.history if key == "erank_act/all"]
    assert sorted(charted) == [0, 1, 2]  # the inputs; of the rest nothing is a number
    assert {record.epoch for record in tracker.records} == {-1, 0, 1, 2}
    assert all(np.isfinite(value) for *_, value in tracker.history)
    assert tracker.status == "FAILED"


def test_a_training_that_diverges_later_has_its_best_epoch(small, tmp_path):
    """The first epochs are measured; of the last ones nothing is finite."""
    plan = make_plan(small(training={"epochs": 3}), Path())

    class Breaking(FoldRun):
        def train_epoch(self, epoch):
            if epoch == 2:
                with torch.no_grad():
                    next(self.model.parameters()).fill_(np.nan)
            return super().train_epoch(epoch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("spectral_mlops.training.networks.FoldRun", Breaking)
        found = run(plan, MemoryTracker(), tmp_path / "run", name="x", figures=False)
    assert max(found.result.best_epochs) < 2
    assert np.isfinite(found.result.metrics["final/auc"])
    with np.load(tmp_path / "run" / "final.npz") as arrays:
        place = arrays["quantities"].tolist().index("gradient")
        assert np.isnan(arrays["last"][:, :, place]).all()
        assert np.isfinite(arrays["best"][0, 0, place, 0])
