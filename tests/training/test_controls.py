"""Controls on a small cohort, against what a slow computation gives."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import average
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run, train
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.controls_input import input_comparisons
from spectral_mlops.training.controls_people import surrogate_mixing
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.outcome import outcome_of

LOSSES = "spectral_mlops.training.performance.Predictions.losses"
OFF = ("unrelated_target", "nuisance", "matched", "pseudo", "permuted")


@pytest.fixture
def trained(small):
    """A plan, its folds after two epochs, and what they show on the probe."""
    settings = {"permutations": 39, "primary_quantity": "activation"}
    plan = make_plan(small(comparison=settings), Path())
    folds = [FoldRun(plan, k, torch.device("cpu")) for k in range(2)]
    untrained = probe_of(plan, folds)
    for fold in folds:
        for epoch in range(2):
            fold.train_epoch(epoch)
            fold.validate(epoch)
    return plan, folds, probe_of(plan, folds), untrained


def probe_of(plan, folds):
    seen = [
        fold.probe(0).comparisons(
            plan.config.comparison.permutations, relabel="everyone"
        )
        for fold in folds
    ]
    return outcome_of(average(seen), "activation", "group")


def found(plan, folds, primary, init):
    return {row.name: row for row in Controls(plan, folds, primary, init).rows()}


def test_every_control_says_something_and_leaves_the_networks_alone(trained):
    plan, folds, primary, init = trained
    before = [
        {k: v.clone() for k, v in fold.model.state_dict().items()} for fold in folds
    ]
    rows = found(plan, folds, primary, init)
    assert list(rows) == [
        *("init", "input-surrogate", "input-pooled", "loss-matched"),
        *("input", "input-centred", "matched", "permuted", "pseudo"),
        *(f"nuisance {name}" for name in ("age", "sex", "site", "fd")),
        "unrelated-target",
    ]
    for row in rows.values():
        assert row.outcome.reason or row.says
        assert np.isfinite(row.outcome.p) != bool(row.outcome.reason)
    for fold, weights in zip(folds, before, strict=True):
        assert all(
            torch.equal(v, weights[k]) for k, v in fold.model.state_dict().items()
        )
    assert rows["init"].beyond.p == primary.beyond(init).p
    assert rows["init"].outcome is init
    again = found(plan, folds, primary, init)
    assert [r.outcome.z for r in again.values()] == pytest.approx(
        [r.outcome.z for r in rows.values()], nan_ok=True
    )


def test_a_stratum_does_not_hold_itself_still(trained):
    plan, folds, primary, init = trained
    assert "site" in plan.strata()
    site = found(plan, folds, primary, init)["nuisance site"].outcome
    assert np.isfinite(site.p), site.reason
    assert "site" not in site.strata


def test_the_untrained_network_is_that_before_any_step(small):
    plan = make_plan(small(), Path())
    tracker = MemoryTracker()
    result = train(plan, tracker)
    fresh = [FoldRun(plan, k, torch.device("cpu")) for k in range(2)]
    expected = [x.values for x in average([f.probe(-1).comparisons(19) for f in fresh])]
    assert [row.value for row in result.init] == pytest.approx(
        [values[0] for values in expected], nan_ok=True
    )
    for fold in fresh:
        fold.train_epoch(0)
        for name, weight in fold.initial_weights.items():
            assert not torch.equal(weight, fold.model.state_dict()[name])
    untrained = [record for record in tracker.records if record.epoch == -1]
    assert [(r.source, r.fold) for r in untrained] == [("probe", 0), ("probe", 1)]
    steps = {
        step for key, step, _ in tracker.history if key == "init/divergence_adjoint"
    }
    assert steps == {-1}


def test_surrogates_show_the_first_layer_what_people_do(trained):
    """It sees rows whose mean and covariance, and so spectrum, are the group's own."""
    plan, folds, primary, init = trained
    controls = Controls(plan, folds, primary, init)
    mixing = surrogate_mixing(controls._labels, np.random.default_rng(0))
    outcome = controls._probe(mixing=torch.from_numpy(mixing))
    first = "hidden_1: control, patient"
    assert outcome.layers[first][0] == pytest.approx(primary.layers[first][0], rel=1e-4)
    second = "hidden_2: control, patient"
    assert outcome.layers[second][0] != pytest.approx(primary.layers[second][0], 1e-4)
    assert outcome.null == primary.null
    same = controls._probe()
    np.testing.assert_allclose(same.values, primary.values, atol=1e-3)


def test_people_of_equal_loss_have_equal_loss(trained, monkeypatch):
    plan, folds, primary, init = trained
    controls = Controls(plan, folds, primary, init)
    everyone = np.array(controls._labels)
    losses = np.random.default_rng(0).gamma(2, size=26) + (everyone == "control")
    monkeypatch.setattr(LOSSES, losses)
    seen = []
    monkeypatch.setattr(
        controls, "_probe", lambda chosen: seen.append(chosen) or primary
    )
    (row,) = controls._loss_rows()
    (chosen,) = seen
    labels = np.array(controls._labels)[chosen]
    control, patient = (losses[chosen][labels == g] for g in ("control", "patient"))
    assert len(control) == len(patient) >= 6
    gap = abs(control.mean() - patient.mean())
    assert gap <= 0.2 * losses.std()
    assert gap < abs(
        np.subtract(*(losses[everyone == g].mean() for g in set(everyone)))
    )
    assert row.passes == (primary.p <= 0.05)
    worst = np.where(everyone == "control", 0.0, 9.0)
    monkeypatch.setattr(LOSSES, worst)
    (none,) = controls._loss_rows()
    assert none.passes is None
    assert "0 people per group have an equal loss" in none.outcome.reason


def test_a_random_target_is_trained_as_long_and_unwatched(trained, monkeypatch):
    plan, folds, primary, init = trained
    made = []

    class Noted(FoldRun):
        def __init__(self, *words, **more):
            super().__init__(*words, **more)
            self.epochs = []
            made.append((self, more))

        def train_epoch(self, epoch):
            seen, loss = super().train_epoch(epoch)
            assert seen.batches == 0
            self.epochs.append(epoch)
            return seen, loss

    monkeypatch.setattr("spectral_mlops.training.controls.FoldRun", Noted)
    controls = Controls(plan, folds, primary, init)
    (row,) = controls._unrelated_rows()
    for fold, (other, more) in zip(folds, made, strict=True):
        assert other.epochs == list(range(fold.best_epoch + 1))
        assert sorted(more["targets"]) == sorted(plan.targets)
        assert not np.array_equal(more["targets"], plan.targets)
    assert row.beyond.p == primary.beyond(row.outcome).p


@pytest.mark.parametrize("rows", ["uncentred", "centred"])
def test_the_spectrum_of_the_inputs_by_a_slow_loop(rows):
    random = np.random.default_rng(2)
    x = random.standard_normal((13, 40))
    ids = [f"p{i:02d}" for i in random.permutation(13)]
    people = dict(zip(ids, "abbabababbaba", strict=True))
    within = {person: str(int(person[1:]) % 2) for person in ids}
    (found,) = input_comparisons(
        torch.from_numpy(x), people, within, rows=rows, grouping="group",
        strata="parity", permutations=19, seed=3, divergence="js",
    )  # fmt: skip
    order = sorted(ids)
    codes = draw_relabellings(
        [people[i] for i in order], [within[i] for i in order], 19, 3
    )
    expected = []
    for code in codes:
        spectra = []
        for group in (0, 1):
            members = [
                ids.index(i) for i, c in zip(order, code, strict=True) if c == group
            ]
            chosen = x[members]
            if rows == "centred":
                chosen = chosen - chosen.mean(0)
            values = np.linalg.svd(chosen, compute_uv=False)
            spectra.append(torch.from_numpy(np.where(values > 1e-9, values, 0.0)))
        expected.append(float(DIVERGENCES.get("js")(*spectra)))
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert (found.subjects_a, found.subjects_b) == (6, 7)


def test_the_inputs_uncentred_are_what_the_first_layer_sees(trained):
    plan, folds, primary, init = trained
    row = found(plan, folds, primary, init)["input"]
    seen = primary.layers["hidden_1: control, patient"][0]
    assert row.outcome.layers["input: control, patient"][0] == pytest.approx(seen, 1e-5)


def test_permuted_labels_stay_within_site_and_target(small):
    plan = replace(make_plan(small(), Path()), groupings=("sex",))
    folds = [FoldRun(plan, k, torch.device("cpu")) for k in range(2)]
    seen = [f.probe(0).comparisons(19, relabel="everyone") for f in folds]
    primary = outcome_of(average(seen), "activation", "sex")
    controls = Controls(plan, folds, primary, primary)
    strata = " × ".join(["target", *plan.strata()])
    assert controls._strata == primary.strata == strata
    people = plan.cohort.people.loc[list(plan.probe.ids)]
    labels = []
    controls._probe = lambda **more: labels.append(more) or primary
    list(controls._permuted_rows())
    moved = people.assign(moved=labels[0]["labels"])
    for _, cell in moved.groupby(["group", *plan.strata()]):
        assert sorted(cell["sex"]) == sorted(cell["moved"])
    assert list(moved["moved"]) != list(moved["sex"])


def test_families_are_whole_in_a_run_and_its_controls(small):
    """Two of a family of the probe; the labels of its people allow many moves."""
    plan = make_plan(small(), Path())
    people = plan.cohort.people.copy()
    people["family"] = None
    held = list(plan.probe.ids)
    people.loc[held, "family"] = [f"F{i // 2}" for i in range(len(held))]
    plan = replace(plan, cohort=replace(plan.cohort, people=people))
    fold = FoldRun(plan, 0, torch.device("cpu"))
    tested = fold.probe(0).comparisons(19, relabel="everyone")
    primary = outcome_of(tested, "activation", "group")
    strata = ", ".join([" × ".join(plan.strata()) or "none", "families whole"])
    assert primary.strata == strata
    controls = Controls(plan, [fold], primary, primary)
    (row, _) = controls._input_rows()
    assert row.outcome.strata == strata
    assert row.outcome.null in primary.null  # the same draws of the same people
    labels = []
    controls._probe = lambda **more: labels.append(more["labels"]) or primary
    list(controls._permuted_rows())
    kin = people.loc[held].assign(site=people.loc[held, "site"], moved=labels[0])

    def kinds(column):
        """Labels of whole families, by who is where."""
        return sorted(
            tuple(sorted(zip(own["site"], own[column], strict=True)))
            for _, own in kin.groupby("family")
        )

    assert kinds("moved") == kinds("group")
    list(controls._pseudo_rows())
    halves = pd.Series(labels[1], index=held)
    assert (halves.groupby(kin["family"]).nunique() == 1).all()
    assert abs(halves.value_counts().diff().iloc[-1]) <= 2
    dealt = pd.Series(controls._random_targets(), index=people.index)[held]
    real = pd.Series(plan.targets, index=people.index)[held]
    families = [x.groupby(kin["family"]).agg(sorted).tolist() for x in (dealt, real)]
    assert sorted(families[0]) == sorted(families[1])
    assert families[0] != families[1]
    asked = []
    controls._probe = lambda chosen, **_: asked.append(chosen) or primary
    fold.predict_probe = lambda: SimpleNamespace(losses=np.zeros(len(held)))
    controls._labels = labels = ["aab"[i % 3] for i in range(len(held))]
    for (row,) in (controls._matched_rows(), controls._loss_rows()):
        assert row.outcome is primary
        chosen = asked.pop()
        assert [labels[i] for i in chosen].count("a") == len(chosen) / 2
        there = kin["family"].iloc[chosen]
        assert len(chosen) == kin["family"].isin(there).sum() < len(held)


def test_controls_are_switched_one_by_one_and_left_in_files(small, tmp_path):
    switched = {"run": True, "draws": 1, **dict.fromkeys(OFF, False)}
    plan = make_plan(small(controls=switched), Path())
    tracker = MemoryTracker()
    finished = run(plan, tracker, tmp_path / "one", name="one")
    result = finished.result
    names = ["trained", "init", "input-surrogate", "input-pooled", "loss-matched"]
    assert list(result.controls["control"]) == [*names, "input", "input-centred"]
    written = pd.read_csv(tmp_path / "one" / "controls.tsv", sep="\t")
    assert list(written["control"]) == list(result.controls["control"])
    assert "controls" in tracker.tables
    sentence, verdict = (tmp_path / "one" / "verdict.txt").read_text().splitlines()
    assert sentence.startswith("p = ")
    assert verdict.startswith("Verdict: ")
    assert combined_primary(tracker) == result.controls.loc[0, "z"]
    keys = {key for key, _, _ in tracker.history}
    assert {"controls/init", "controls/input-surrogate", "final/primary_p"} <= keys


def combined_primary(tracker):
    (z,) = [v for k, _, v in tracker.history if k == "final/divergence_adjoint"]
    return z


def test_without_controls_or_a_probe(small, tmp_path):
    plan = make_plan(small(), Path())
    result = run(plan, MemoryTracker(), tmp_path / "plain", name="plain").result
    assert result.controls is None
    assert result.verdict.startswith("p = ")
    assert not (tmp_path / "plain" / "controls.tsv").exists()
    few = small(comparison={"probe_fraction": 0.2}, controls={"run": True})
    with pytest.raises(InputError, match=r"--controls .* No probe"):
        make_plan(few, Path())
    none = make_plan(small(comparison={"probe_fraction": 0.2}), Path())
    result = train(none, MemoryTracker())
    assert (result.verdict, result.init) == ("", [])
