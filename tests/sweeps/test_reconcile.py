"""Whatever becomes of a trial: state, tag and message are right in both places."""

import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from spectral_mlops.sweeps import Sweep, draining, work
from spectral_mlops.sweeps import sweep as module
from spectral_mlops.sweeps.ended import TAKEN_OVER
from spectral_mlops.sweeps.stale import DIED, INTERRUPTED, mend
from spectral_mlops.sweeps.tickets import worker_name
from spectral_mlops.tracking import open_store
from spectral_mlops.tracking.trials import TrialRuns
from tests.interrupts import lose_a_signal


@pytest.fixture
def make(small, uri):
    def make(**how):
        settings = small(
            tracking={"uri": uri},
            training={"epochs": 1, "batch_size": 32},
            spectra={"batches_per_epoch": 1},
        )
        where = {"storage": "sqlite:///optuna.db", "runs": Path("runs")}
        return Sweep(settings, study="s", **where, **how)

    return make


def runs_of(uri):
    return {int(r.tags["optuna.trial_number"]): r for r in TrialRuns("s", uri).all()}


def raising(error):
    def run(*arguments, **settings):
        raise error

    return run


def training(metric):
    """Stand for a run whose AUC is as given."""

    def run(plan, tracker, folder, *, name, tags, **settings):
        tracker.start(name, tags=tags)

        result = SimpleNamespace(metrics={"final/auc": metric}, null=[])
        return SimpleNamespace(result=result)

    return run


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        (raising(ZeroDivisionError("by hand")), "ZeroDivisionError: by hand"),
        (raising(MemoryError("300 GB")), "MemoryError: 300 GB"),
        (training(math.nan), "ValueError: its value is nan"),
    ],
)
def test_a_trial_that_fails_is_told_in_both_places(
    make, uri, monkeypatch, instead, words
):
    sweep = make()
    sweep.want(2)
    monkeypatch.setattr(module, "run", instead)
    states = work(sweep, most=1)
    monkeypatch.setattr(module, "run", training(0.75))
    states += work(sweep)
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    failed, complete = sweep.study.get_trials()
    assert failed.user_attrs["error"].startswith(words)
    assert sweep.table()["error"][0].startswith(words)
    runs = runs_of(uri)
    assert (runs[0].status, runs[0].tags["optuna.state"]) == ("FAILED", "FAIL")
    assert runs[0].tags["spectral.error"] == failed.user_attrs["error"]
    assert (runs[1].status, runs[1].tags["optuna.state"]) == ("FINISHED", "COMPLETE")
    assert runs[1].tags["optuna.values"] == "[0.75]"
    assert complete.user_attrs["mlflow.run_id"] == runs[1].run_id
    assert sweep.tickets.counts() == {"free": 0, "taken": 0, "spent": 2}
    assert sweep.reconcile().mended == []


def test_a_network_that_no_memory_holds_fails_its_trial_alone(make, uri):
    sweep = make()
    sweep.want(2)
    usual = sweep.space
    huge = {"model": {"settings": {"hidden": [10**12]}}}  # beyond 2^47 bytes
    sweep.space = replace(usual, suggest=lambda trial: huge)
    assert work(sweep, most=1) == [TrialState.FAIL]
    sweep.space = usual
    assert work(sweep) == [TrialState.COMPLETE]
    failed, _ = sweep.study.get_trials()
    assert "allocate memory" in failed.user_attrs["error"]
    run = runs_of(uri)[0]
    assert (run.status, run.tags["optuna.state"]) == ("FAILED", "FAIL")
    assert run.tags["spectral.error"] == failed.user_attrs["error"]
    assert sweep.tickets.counts() == {"free": 0, "taken": 0, "spent": 2}


def test_one_seed_draws_the_same_trials_whoever_runs_them(make, monkeypatch):
    monkeypatch.setattr(module, "run", training(0.6))
    drawn = []
    for visits in ([12], [3, 9]):
        Path("optuna.db").unlink(missing_ok=True)
        for visit in visits:
            sweep = make()
            sweep.want(visit)
            work(sweep)
        drawn.append([trial.params for trial in sweep.study.get_trials()])
    assert drawn[0] == drawn[1]
    assert len({str(params) for params in drawn[0]}) == 12


def test_an_interrupt_gives_the_ticket_back(make, uri):
    sweep = make()
    sweep.want(1)

    def stop(epoch, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(sweep, on_epoch=stop)
    assert sweep.tickets.counts() == {"free": 1, "taken": 0, "spent": 0}
    (run,) = runs_of(uri).values()
    assert (run.status, run.tags["spectral.error"]) == ("KILLED", "interrupted")
    assert sweep.reconcile().mended == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_loses_is_found_after_the_epoch(make, uri):
    sweep = make()
    sweep.want(2)
    with draining() as stop:
        orders = {"stop": stop, "interrupted": stop.interrupted}

        def on_trial(state):
            lose_a_signal()

        def on_epoch(epoch, metrics):
            pytest.fail("it was interrupted before")

        with pytest.raises(KeyboardInterrupt):  # between two trials
            work(sweep, on_trial=on_trial, **orders)
        assert stop()
        assert stop.interrupted()
        assert not stop.drain
        stop.interrupted.numbers.clear()
        plan = sweep.space.suggest

        def draw(trial):
            lose_a_signal()
            return plan(trial)

        sweep.space = replace(sweep.space, suggest=draw)
        with pytest.raises(KeyboardInterrupt):
            work(sweep, on_epoch=on_epoch, **orders)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole, cut = sweep.study.get_trials()
    assert (whole.state, cut.state) == (TrialState.COMPLETE, TrialState.FAIL)
    assert cut.user_attrs["error"] == INTERRUPTED
    assert runs_of(uri)[1].status == "KILLED"
    assert sweep.tickets.counts() == {"free": 1, "taken": 0, "spent": 1}


def test_a_worker_thought_dead_survives(make, uri):
    """Its trial fails and is tried again by the same worker, who lost the ticket."""
    sweep = make(heartbeat=60.0)
    sweep.want(1)

    def die_once(epoch, metrics):
        if len(sweep.study.get_trials()) == 1:
            sweep.tickets.silence(worker_name())
            assert len(mend(sweep.study, sweep.tickets)) == 1

    states = work(sweep, on_epoch=die_once)
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    lost, again = sweep.study.get_trials()
    assert again.user_attrs["retry_of"] == lost.number
    assert again.params == lost.params
    assert sweep.table()["error"][0] == DIED
    runs = runs_of(uri)
    assert (runs[0].status, runs[1].status) == ("FAILED", "FINISHED")
    assert runs[0].tags["spectral.error"] == TAKEN_OVER
    assert runs[1].tags["optuna.retry_of"] == "0"
    assert sweep.tickets.counts() == {"free": 0, "taken": 0, "spent": 1}
    assert sweep.reconcile().mended == []


def test_one_who_hears_of_it_while_training_stops(make, uri, monkeypatch):
    sweep = make()
    sweep.want(1)
    monkeypatch.setattr(module, "run", raising(UpdateFinishedTrialError("gone")))
    assert work(sweep, most=1) == [TrialState.FAIL]
    assert runs_of(uri)[0].tags["spectral.error"] == TAKEN_OVER


def test_reconcile_mends_runs_once_and_lists_the_rest(make, uri, monkeypatch, command):
    monkeypatch.setattr(module, "run", training(0.6))
    sweep = make()
    sweep.want(3)
    work(sweep, most=2)
    hold, trial = sweep.tickets.take(), sweep.study.ask()  # and then it is killed
    hold.bind(trial.number)
    trial.set_user_attr("uid", "of-the-dead")
    sweep.tickets.silence(worker_name())
    client = open_store(uri).client
    first = runs_of(uri)[0]
    client.update_run(first.run_id, status="RUNNING")
    client.delete_tag(first.run_id, "optuna.state")
    second = runs_of(uri)[1]
    client.set_tag(second.run_id, "spectral.uid", "nobody")
    code, out, _ = command("sweep", "reconcile", "s", "--tracking", uri)
    assert code == 0
    mended = [line for line in out.splitlines() if line.startswith("Mended: ")]
    assert len(mended) == 3
    assert "trial 2: its worker died; another takes its place" in mended[0]
    assert "trial 0: COMPLETE" in mended[1]
    assert "spectral.orphan" in mended[2]
    left = [line for line in out.splitlines() if line.startswith("Left: ")]
    assert left == ["Left: trial 1: COMPLETE, no run", "Left: trial 2: FAIL, no run"]
    code, out, _ = command("sweep", "reconcile", "s")
    assert "Nothing to mend." in out
    assert [line for line in out.splitlines() if line.startswith("Left: ")] == left
    runs = runs_of(uri)
    assert (runs[0].status, runs[0].tags["optuna.state"]) == ("FINISHED", "COMPLETE")
    assert runs[1].tags["spectral.orphan"] == "true"


def test_a_store_that_is_away_leaves_runs_to_be_synced(make, command, monkeypatch):
    """Nothing listens at that port."""
    monkeypatch.setattr(module, "run", training(0.6))
    sweep = make()
    sweep.config = sweep.config.model_copy(
        update={
            "tracking": sweep.config.tracking.model_copy(
                update={"uri": "http://127.0.0.1:9"}
            )
        }
    )
    sweep.want(1)
    assert work(sweep) == [TrialState.COMPLETE]
    assert sweep.undelivered
    code, _, err = command("sweep", "reconcile", "s")
    assert code == 2
    assert "cannot be used" in err
