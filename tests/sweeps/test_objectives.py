"""How trials are judged, by hand and by small studies."""

import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.sweeps import Sweep, stopping
from spectral_mlops.sweeps.objective import Judgement
from spectral_mlops.sweeps.seen import POINTS, Seen, thinned
from spectral_mlops.sweeps.space_file import data_space
from spectral_mlops.sweeps.stopping import Stopping

NAN = math.nan
SPACE = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.settings.activation": {
        "choices": ["relu", "tanh"],
        "when": {"relu": {"model.settings.hidden": {"depth": [1, 2], "width": [6, 9]}}},
    },
}


@pytest.fixture
def make(small):
    def make(space=SPACE, changes=None, **how):
        settings = small(tracking={"uri": "none"}, **(changes or {}))
        return Sweep(
            settings,
            study="s",
            storage="sqlite:///optuna.db",
            runs=Path("runs"),
            space=data_space(space, "sweep.toml") if space else None,
            **how,
        )

    return make


@pytest.mark.parametrize(
    ("objective", "numbers", "constraints", "word"),
    [
        ("auc", (0.7, 5.0, NAN), {}, ""),
        ("auc", (0.7, 5.0, 0.75), {"confounds": 0.05}, "0.700 is below the 0.750"),
        ("auc", (0.7, NAN, 0.7), {"confounds": 0.0}, ""),
        ("constrained", (0.7, 1.5, 0.6), {"confounds": -0.1, "divergence": -0.5}, ""),
        ("constrained", (0.7, 3.0, NAN), {"divergence": 1.0}, "3.00 is above 2"),
        ("constrained", (0.7, NAN, NAN), {"divergence": 1.0}, "not known"),
        ("auc,divergence", (NAN, 1.0, 0.5), {"confounds": 1.0}, ""),
    ],
)
def test_what_is_allowed(objective, numbers, constraints, word):
    judged = Judgement(objective, 2.0, "adjoint")
    assert judged.constraints(*numbers) == pytest.approx(constraints)
    assert word in judged.why_not(*numbers)
    assert bool(judged.why_not(*numbers)) == any(x > 0 for x in constraints.values())


def test_what_a_trial_is_worth():
    assert Judgement("auc", 2.0, "adjoint").values(0.7, NAN) == [0.7]
    both = Judgement("auc,divergence", 2.0, "adjoint")
    assert both.values(0.7, 1.5) == [0.7, 1.5]
    assert both.values(0.7, -3.0) == [0.7, 0.0]
    with pytest.raises(ValueError, match="adjoint could not be formed"):
        both.values(0.7, NAN)


def test_what_was_seen_is_the_latest_then_the_end():
    seen = Seen(["gradient", "adjoint"], "adjoint")
    assert seen.attributes() == {}
    seen.epoch(0, {"val/auc": 0.5, "divergence/adjoint": 1.0})
    seen.epoch(1, {"val/auc": 0.6, "divergence/adjoint": NAN})
    assert (seen.accuracy, seen.divergence) == (0.6, 1.0)
    seen.epoch(2, {"val/auc": 0.7, "divergence/adjoint": 2.0})
    found = seen.attributes()
    assert found["trajectory.adjoint"] == [[0, 1.0], [2, 2.0]]
    assert found["divergence.adjoint"] == 2.0
    seen.end({"final/auc": 0.65, "final/divergence_adjoint": 1.5})
    assert (seen.accuracy, seen.divergence) == (0.65, 1.5)


def test_a_long_trajectory_is_thinned_and_keeps_its_ends():
    points = [(epoch, 0.0) for epoch in range(401)]
    epochs = [epoch for epoch, _ in thinned(points)]
    assert len(epochs) == POINTS
    assert (epochs[0], epochs[-1]) == (0, 400)
    assert sorted(set(epochs)) == epochs
    assert thinned(points[:3]) == points[:3]


def test_two_objectives_over_branches(make):
    sweep = make(objective="auc,divergence")
    states = [sweep.run_trial() for _ in range(3)]
    assert states == [TrialState.COMPLETE] * 3
    for trial in sweep.study.get_trials():
        z = trial.user_attrs["divergence.adjoint"]
        assert trial.values == [trial.user_attrs["auc"], max(0.0, z)]
        assert trial.user_attrs["trajectory.adjoint"]
        assert trial.constraints.keys() == {"confounds"}
        low = trial.constraints["confounds"] > 0
        assert low == ("infeasible" in trial.user_attrs)
        alone = sweep.study.user_attrs["confounds_auc"]
        assert trial.constraints["confounds"] == pytest.approx(alone - trial.values[0])
    with pytest.raises(InputError, match="another objective"):
        make()
    with pytest.raises(InputError, match="another search space"):
        make({"training.epochs": {"choices": [3]}}, objective="auc,divergence")
    assert {"relu", "tanh"} >= set(sweep.table()["model.settings.activation"])


def test_a_trial_without_the_divergence_it_is_judged_by_failed(make):
    """One layer of two classes has rank 1: no shape, no divergence of adjoints."""
    linear = {"model.name": {"choices": ["logistic"]}}
    sweep = make(linear, {"training": {"epochs": 1}}, objective="auc,divergence")
    assert sweep.run_trial() == TrialState.FAIL
    (trial,) = sweep.study.get_trials()
    assert "adjoint could not be formed" in trial.user_attrs["error"]


def test_a_pruned_trial_says_first_whether_it_is_allowed(make, monkeypatch):
    every = {"comparison": {"null_epochs": 3}}
    sweep = make(SPACE, every, objective="constrained", tau=-50.0)
    monkeypatch.setattr(stopping, "WARM_UP_EPOCHS", 0)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: True)
    assert sweep.run_trial() == TrialState.PRUNED
    (trial,) = sweep.study.get_trials()
    z = trial.user_attrs["divergence.adjoint"]
    assert trial.constraints == {"divergence": pytest.approx(z + 50)}
    assert "above -50" in trial.user_attrs["infeasible"]


def test_the_same_seed_draws_the_same_trials(make):
    drawn = []
    for _ in range(2):
        Path("optuna.db").unlink(missing_ok=True)
        sweep = make(SPACE, {"training": {"epochs": 1}})
        for _ in range(2):
            sweep.run_trial()
        drawn.append([trial.params for trial in sweep.study.get_trials()])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_a_branch_leaves_nothing_to_the_trials_of_another(make):
    momentum = {"training.momentum": {"low": 0.5, "high": 0.9}}
    space = {
        "training.optimizer": {"choices": ["sgd", "adam"], "when": {"sgd": momentum}}
    }
    sweep = make(space, {"training": {"epochs": 1}})
    sweep.study.enqueue_trial({"training.optimizer": "adam"})
    assert sweep.run_trial() == TrialState.COMPLETE
    (trial,) = sweep.study.get_trials()
    assert trial.params == {"training.optimizer": "adam"}


def test_settings_that_do_not_go_together_fail_one_trial(make):
    sweep = make()
    impossible = {"training": {"epochs": 0}}
    sweep.space = replace(sweep.space, suggest=lambda trial: impossible)
    assert sweep.run_trial() == TrialState.FAIL
    (trial,) = sweep.study.get_trials()
    assert "epochs=0" in trial.user_attrs["error"]


@pytest.mark.parametrize(
    ("space", "how", "words"),
    [
        ({"model.name": {"choices": ["mlp", "perceptron"]}}, {}, "perceptron"),
        ({"model.name": {"choices": ["mlp", "gru"]}}, {}, "'gru' takes"),
        ({"model.settings.widht": {"choices": [3]}}, {}, "'widht'"),
        ({"model.settings.dropout": {"low": 0.0, "high": 1.0}}, {}, "dropout=1"),
        ({"training.rate": {"low": 0.0, "high": 1.0}}, {}, "training.rate"),
        (None, {"changes": {"model": {"name": "logistic", "settings": {}}}}, "mlp"),
        (
            SPACE,
            {
                "changes": {"comparison": {"probe_fraction": 0.05}},
                "objective": "constrained",
            },
            "--objective constrained needs a probe",
        ),
    ],
)
def test_what_no_trial_could_use_is_refused_before_anything_is_written(
    make, space, how, words
):
    with pytest.raises((InputError, UnknownNameError), match=words):
        make(space, **how)
    assert not Path("optuna.db").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("objective", ["auc", "auc,divergence", "constrained"])
def test_past_its_first_trials_the_sampler_goes_where_trials_are_allowed(objective):
    """Made up: ``tanh`` is below the confounds, divergence rises with the rate."""
    judged = Judgement(objective, 0.0, "adjoint")
    study = optuna.create_study(
        directions=judged.directions,
        sampler=judged.sampler(0, grouped=True),
        pruner=Stopping(judged).of_optuna(),
    )
    space = data_space(SPACE, "x")
    for _ in range(40):
        trial = study.ask()
        drawn = space.suggest(trial)
        relu = drawn["model"]["settings"]["activation"] == "relu"
        auc = 0.7 if relu else 0.4
        z = math.log10(drawn["training"]["learning_rate"]) + 3.5
        for name, far in judged.constraints(auc, z, 0.5).items():
            trial.set_constraint(name, far)
        study.tell(trial, judged.values(auc, z))
    late = study.get_trials()[20:]
    named = [trial.params["model.settings.activation"] for trial in late]
    assert named.count("relu") > 12
    if objective == "constrained":
        rates = [trial.params["training.learning_rate"] for trial in late]
        assert sum(rate <= 10**-3.5 for rate in rates) > 12
    assert all(trial.constraints["confounds"] <= 0 for trial in study.best_trials)
