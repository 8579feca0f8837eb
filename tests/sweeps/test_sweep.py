from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.sweeps import Sweep, stopping
from spectral_mlops.sweeps import sweep as module
from spectral_mlops.sweeps.familywise import TrialNull
from spectral_mlops.sweeps.space import MAX_DEPTH, suggest
from spectral_mlops.tracking import load_run, open_store


@pytest.fixture
def make(small, uri):
    def make(study="s", **changes):
        settings = small(tracking={"uri": uri}, **changes)
        return Sweep(
            settings, study=study, storage="sqlite:///optuna.db", runs=Path("runs")
        )

    return make


def runs_of(uri):
    client = open_store(uri).client
    experiment = client.get_experiment_by_name("spectral_mlops")
    return {
        run.info.run_id: run for run in client.search_runs([experiment.experiment_id])
    }


def test_every_trial_is_a_complete_run_of_its_own(make, uri):
    sweep = make()
    for _ in range(2):
        sweep.run_trial()
    runs = runs_of(uri)
    trials = sweep.study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
    assert {t.user_attrs["mlflow.run_id"] for t in trials} == runs.keys()
    for trial in trials:
        run = runs[trial.user_attrs["mlflow.run_id"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["optuna.trial_number"] == str(trial.number)
        assert run.data.tags["spectral.uid"] == trial.user_attrs["uid"]
        assert "mlflow.parentRunId" not in run.data.tags
        assert run.data.metrics["final/auc"] == pytest.approx(trial.value)
        width = trial.params["width"]
        hidden = [max(8, width >> k) for k in range(trial.params["depth"])]
        assert run.data.params["model.settings.hidden"] == "-".join(map(str, hidden))
        for quantity in ("gradient", "activation", "adjoint"):
            kept = trial.user_attrs[f"divergence.{quantity}"]
            assert kept == pytest.approx(
                run.data.metrics[f"final/divergence_{quantity}"]
            )
        assert len(load_run(run.info.run_id, uri)) > 0
        null = TrialNull.read(trial.user_attrs)
        z = trial.user_attrs["divergence.adjoint"]
        assert null.values[0] == pytest.approx(z, abs=1e-5)
        assert null.p == pytest.approx(trial.user_attrs["p"])
        assert len(null.values) == 20
    assert len({TrialNull.read(t.user_attrs).relabellings for t in trials}) == 1
    table = sweep.table()
    assert list(table["trial"]) == [0, 1]
    assert set(table["run"]) == runs.keys()


def test_a_study_goes_on_and_refuses_other_people(make):
    make().run_trial()
    again = make()
    again.run_trial()
    assert len(again.study.get_trials()) == 2
    first, second = again.study.get_trials()
    assert first.params != second.params
    with pytest.raises(InputError, match=r"comparison\.probe_seed=0, .* it is 9"):
        make(comparison={"probe_seed": 9})
    with pytest.raises(InputError, match=r"comparison\.seed=0, and here it is 5"):
        make(comparison={"seed": 5})


def test_what_no_trial_can_do_ends_the_search(make, small):
    settings = small(tracking={"uri": "gopher://x"})
    sweep = Sweep(settings, study="s", storage="sqlite:///optuna.db", runs=Path("runs"))
    with pytest.raises(TrackingError, match="gopher"):
        sweep.run_trial()
    (trial,) = sweep.study.get_trials()
    assert trial.state == TrialState.FAIL


def test_a_failed_trial_is_marked_and_the_study_goes_on(make, uri, monkeypatch):
    sweep = make()

    def fail(*arguments, **settings):
        kept(*arguments, **settings)
        raise ZeroDivisionError("by hand")

    kept = module.run
    monkeypatch.setattr(module, "run", fail)
    sweep.run_trial()
    monkeypatch.setattr(module, "run", kept)
    sweep.run_trial()
    failed, complete = sweep.study.get_trials()
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["error"] == "ZeroDivisionError: by hand"
    assert complete.state == TrialState.COMPLETE
    status = {i: run.info.status for i, run in runs_of(uri).items()}
    assert status[failed.user_attrs["mlflow.run_id"]] == "FAILED"
    assert status[complete.user_attrs["mlflow.run_id"]] == "FINISHED"


def test_a_pruned_trial_is_killed_and_keeps_its_divergence(make, uri, monkeypatch):
    sweep = make()
    monkeypatch.setattr(stopping, "WARM_UP_EPOCHS", 0)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self._last == 1)
    report = optuna.Trial.report

    def remember(self, value, step):
        self._last = step
        report(self, value, step)

    monkeypatch.setattr(optuna.Trial, "report", remember)
    sweep.run_trial()
    (trial,) = sweep.study.get_trials()
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values.keys() == {0, 1}
    run = runs_of(uri)[trial.user_attrs["mlflow.run_id"]]
    assert run.info.status == "KILLED"
    kept = trial.user_attrs["divergence.activation"]
    assert kept == pytest.approx(run.data.metrics["divergence/activation"])


def test_an_interrupt_ends_the_trial_and_goes_on_its_way(make, uri):
    sweep = make()

    def stop(epoch, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run_trial(stop)
    (trial,) = sweep.study.get_trials()
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, "interrupted")
    (run,) = runs_of(uri).values()
    assert run.info.status == "KILLED"
    assert run.data.tags["optuna.state"] == "FAIL"
    assert run.data.tags["spectral.error"] == "interrupted"


def test_unusable_storage_and_a_foreign_run_are_refused(make, small, uri, monkeypatch):
    with pytest.raises(InputError, match=r"sqlite:///optuna\.db"):
        Sweep(small(), study="s", storage="nowhere://x", runs=Path("runs"))
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    with pytest.raises(InputError, match="unset"):
        make()


def test_the_space_draws_what_the_settings_can_hold():
    study = optuna.create_study()
    for _ in range(30):
        drawn = suggest(study.ask())
        hidden = drawn["model"]["settings"]["hidden"]
        assert 1 <= len(hidden) <= MAX_DEPTH
        assert hidden == sorted(hidden, reverse=True)
        assert min(hidden) >= 8
        assert 0 <= drawn["model"]["settings"]["dropout"] < 1
        assert 3e-4 <= drawn["training"]["learning_rate"] <= 1e-2
