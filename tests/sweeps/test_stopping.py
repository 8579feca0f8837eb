"""Which trials are stopped early, and that no fold is held against another."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps import Sweep, stopping
from spectral_mlops.sweeps.objective import WARM_UP_EPOCHS, Judgement
from spectral_mlops.sweeps.seen import Seen
from spectral_mlops.sweeps.stopping import STARTUP_TRIALS, Stopping
from spectral_mlops.training import loop

BOTH = Judgement("auc,divergence", 2.0, "adjoint")
ONE = Judgement("auc", 2.0, "adjoint")


def finished(auc, z, late=0.0):
    """A trial that stood there after five epochs, and elsewhere after nine."""
    return create_trial(
        values=[auc, max(0.0, z)],
        user_attrs={
            "trajectory.auc": [[0, 0.5], [5, auc], [9, late]],
            "trajectory.adjoint": [[0, 9.0], [5, z], [9, 9 - late]],
        },
    )


def study_of_both(count=STARTUP_TRIALS):
    study = optuna.create_study(directions=BOTH.directions)
    some = [(0.6, 0.0), (0.7, 1.0), (0.8, 2.0), (0.9, 3.0)]
    study.add_trials([finished(auc, z) for auc, z in some[:count]])
    return study


def seen_of(auc, z, epoch):
    seen = Seen(["adjoint"], "adjoint")
    seen.epoch(epoch, {"val/auc": auc, "divergence/adjoint": z})
    return seen


@pytest.mark.parametrize(
    ("auc", "z", "epoch", "stops"),
    [
        (0.74, 1.6, 5, True),  # the medians of that epoch are 0.75 and 1.5
        (0.76, 1.6, 5, False),
        (0.74, 1.4, 5, False),
        (0.74, math.nan, 5, False),
        (0.74, 1.6, WARM_UP_EPOCHS - 1, False),
        (0.74, 1.6, 9, False),  # where the medians are 0 and 9
    ],
)
def test_of_two_objectives_a_trial_worse_in_both_is_stopped(auc, z, epoch, stops):
    trial = study_of_both().ask()
    why = Stopping(BOTH).why(trial, epoch, seen_of(auc, z, epoch))
    assert bool(why) == stops
    if stops:
        assert why == (
            "AUC 0.740 and divergence 1.60 after 6 epochs, the medians are 0.750 and "
            "1.50"
        )
    assert Stopping(BOTH, "none").why(trial, epoch, seen_of(auc, z, epoch)) == ""


def test_few_trials_and_trials_without_a_divergence_stop_nobody():
    trial = study_of_both(STARTUP_TRIALS - 1).ask()
    assert Stopping(BOTH).why(trial, 5, seen_of(0.1, 9.0, 5)) == ""
    study = study_of_both(STARTUP_TRIALS - 1)
    study.add_trial(create_trial(values=[0.7, 0.0]))
    assert Stopping(BOTH).why(study.ask(), 5, seen_of(0.1, 9.0, 5)) == ""


def test_less_divergence_than_none_is_no_advantage():
    study = optuna.create_study(directions=BOTH.directions)
    study.add_trials([finished(0.8, -2.0) for _ in range(STARTUP_TRIALS)])
    rule = Stopping(BOTH)
    assert rule.why(study.ask(), 5, seen_of(0.7, -0.5, 5)) == ""
    assert rule.why(study.ask(), 5, seen_of(0.7, 0.5, 5)) != ""


@pytest.mark.parametrize("judgement", [ONE, BOTH])
def test_a_divergence_too_large_stops_after_the_warm_up(judgement):
    rule = Stopping(judgement, "none", 3.0)
    study = optuna.create_study(
        directions=judgement.directions, pruner=rule.of_optuna()
    )
    trial = study.ask()
    for epoch in range(WARM_UP_EPOCHS):
        assert rule.why(trial, epoch, seen_of(0.7, 9.0, epoch)) == ""
    assert rule.why(trial, 5, seen_of(0.7, 3.0, 5)) == ""
    assert rule.why(trial, 6, seen_of(0.7, 3.1, 6)) == "divergence 3.10 after 7 epochs"
    off = Stopping(judgement, "none")
    assert off.why(trial, 7, seen_of(0.7, 99.0, 7)) == ""


def test_one_objective_has_optunas_rules():
    kinds = {name: Stopping(ONE, name).of_optuna() for name in ("median", "hyperband")}
    assert isinstance(kinds["median"], optuna.pruners.MedianPruner)
    assert isinstance(kinds["hyperband"], optuna.pruners.HyperbandPruner)
    assert isinstance(Stopping(BOTH).of_optuna(), optuna.pruners.NopPruner)
    for name, pruner in kinds.items():
        study = optuna.create_study(direction="maximize", pruner=pruner)
        rule, stopped = Stopping(ONE, name), 0
        for number in range(12):  # each worse than all before
            trial, auc = study.ask(), 0.9 - number / 20
            for epoch in range(30):
                if why := rule.why(trial, epoch, seen_of(auc, 0.0, epoch)):
                    assert epoch >= WARM_UP_EPOCHS
                    assert f"({name})" in why
                    study.tell(trial, state=TrialState.PRUNED)
                    stopped += 1
                    break
            else:
                study.tell(trial, auc)
        assert stopped >= 4


@pytest.mark.parametrize("glance", [0.0, 10.0])
def test_finished_trials_are_read_once_a_trial_and_judged_as_optuna_does(
    monkeypatch, glance
):
    monkeypatch.setattr(stopping, "GLANCE", glance)
    reads = []
    read = optuna.Study.get_trials

    def counted(study, *args, **kwargs):
        reads.append(study)
        return read(study, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    rule, rng = Stopping(ONE, "median"), np.random.default_rng(3)
    study = optuna.create_study(direction="maximize", pruner=rule.of_optuna())
    plain = optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARM_UP_EPOCHS
    )
    said = []
    for _ in range(20):
        trial = study.ask()
        reads.clear()
        auc = rng.uniform(size=9)
        for epoch, value in enumerate(auc):
            stops = bool(rule.why(trial, epoch, seen_of(value, 0.0, epoch)))
            own = len(reads)
            frozen = study.trials[trial.number]
            waits = epoch < WARM_UP_EPOCHS
            assert stops == (not waits and plain.prune(study, frozen))
            del reads[own:]
            said.append(stops)
        asked = len(auc) - WARM_UP_EPOCHS
        assert len(reads) == (1 if glance else asked)
        study.tell(trial, auc[-1])
    assert 0 < sum(said) < len(said)


def test_those_that_others_finish_meanwhile_are_seen_later(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    study, rule = study_of_both(STARTUP_TRIALS - 1), Stopping(BOTH)
    trial, bad = study.ask(), seen_of(0.1, 9.0, 5)
    assert rule.why(trial, 5, bad) == ""
    study.add_trial(finished(0.9, 0.0))
    clock[0] += stopping.GLANCE / 2
    assert rule.why(trial, 5, bad) == ""
    clock[0] += stopping.GLANCE / 2
    assert rule.why(trial, 5, bad)
    assert Stopping(BOTH).why(study.ask(), 5, bad)


@pytest.mark.parametrize(
    ("rules", "probe", "words"),
    [
        ((BOTH, "hyperband"), True, "one objective"),
        ((ONE, "medain"), True, "choose median, hyperband or none"),
        ((ONE, "none", math.nan), True, "finite z"),
        ((ONE, "none", 3.0), False, "needs a probe"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules, probe, words):
    with pytest.raises(InputError, match=words):
        Stopping(*rules).check(probe)


@pytest.fixture
def make(small):
    def make(training, **how):
        settings = small(
            tracking={"uri": "none"},
            training=training,
            comparison={"null_epochs": training["epochs"]},
        )
        storage = "sqlite:///optuna.db"
        return Sweep(settings, study="s", storage=storage, runs=Path("runs"), **how)

    return make


def test_every_epoch_that_is_compared_is_of_all_folds(make, monkeypatch):
    """Also of folds whose own training has stopped."""
    formed, means = loop.epoch_metrics, []

    def watching(plan, losses, validation, said):
        means.append((len(said), float(np.mean([x.auc for x in said]))))
        return formed(plan, losses, validation, said)

    monkeypatch.setattr(loop, "epoch_metrics", watching)
    sweep = make({"epochs": 6, "folds": 2, "patience": 1})
    assert sweep.run_trial() == TrialState.COMPLETE
    (trial,) = sweep.study.get_trials()
    assert {number for number, _ in means} == {2}
    reported = [trial.intermediate_values[epoch] for epoch in range(len(means))]
    assert reported == pytest.approx([auc for _, auc in means])


def test_a_trial_stopped_by_its_divergence_says_so(make):
    sweep = make({"epochs": 7}, prune_divergence=-50.0)
    assert sweep.run_trial() == TrialState.PRUNED
    (trial,) = sweep.study.get_trials()
    assert trial.user_attrs["stopped"].startswith("divergence")
    epochs = {
        name: [epoch for epoch, _ in trial.user_attrs[f"trajectory.{name}"]]
        for name in ("auc", *sweep.plan.quantities)
    }
    assert set(map(tuple, epochs.values())) == {tuple(range(WARM_UP_EPOCHS + 1))}
    assert sweep.study.user_attrs["prune_divergence"] == -50.0
