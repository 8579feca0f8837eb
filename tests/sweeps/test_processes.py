"""A worker of two processes: the trials of one, and nothing lost with one of them."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.errors import ProcessError
from spectral_mlops.sweeps import Sweep, work
from spectral_mlops.sweeps.processes import was_left
from spectral_mlops.sweeps.space_file import space_of
from spectral_mlops.sweeps.stale import INTERRUPTED
from spectral_mlops.sweeps.tickets import Tickets
from spectral_mlops.tracking.trials import TrialRuns
from tests.training.test_distributed import child_of_rank, torchrun

STORAGE = "sqlite:///optuna.db"
WORKER = ("spectral_mlops.cli", "sweep", "worker", "--study")
SPACE = """
def draw(trial):
    epochs = trial.suggest_int("epochs", 1, 60)
    rate = trial.suggest_float("rate", 0.001, 0.01)
    impossible = 0.004 < rate < 0.005  # which no corner of the space is
    return {"training": {"epochs": 0 if impossible else epochs, "learning_rate": rate}}
"""


@pytest.fixture
def made(small, uri):
    """Make a study whose trials are all told what to draw."""
    Path("whole_space.py").write_text(SPACE)
    settings = small(
        model={"settings": {"dropout": 0.0}},  # processes drop units of their own
        spectra={"directions": 0, "influence": False},
        baselines={"draws": 100},
        tracking={"uri": uri},
    )

    def make(study, *draws, **options):
        sweep = Sweep(
            settings,
            study=study,
            storage=STORAGE,
            runs=Path("runs"),
            space=space_of("whole_space:draw", "test"),
            heartbeat=2.0,
            **options,
        )
        for epochs, rate in draws:
            sweep.study.enqueue_trial({"epochs": epochs, "rate": rate})
        sweep.want(len(draws))
        return sweep

    return make


def trials(name):
    return optuna.load_study(study_name=name, storage=STORAGE).get_trials()


def runs_of(name, uri):
    found = TrialRuns(name, uri, "spectral_mlops").all()
    return {run.tags["spectral.uid"]: run for run in found}


@pytest.mark.slow
def test_two_processes_complete_the_trials_of_one(made, uri):
    """Also past a trial that cannot be, and one that is stopped early."""
    draws = [(2, 0.003), (8, 0.006), (1, 0.0045), (2, 0.009)]
    work(made("one", *draws, prune_divergence=-100.0))
    sweep = made("two", *draws, prune_divergence=-100.0)
    process = torchrun(*WORKER, "two", "--trust")
    said, problems = process.communicate(timeout=600)
    assert process.returncode == 0, problems[-4000:]
    assert said.count("Trials of this worker:") == 1
    assert sweep.tickets.counts() == {"free": 0, "taken": 0, "spent": 4}
    runs = runs_of("two", uri)
    states = [trial.state.name for trial in trials("two")]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    ends = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    for one, two in zip(trials("one"), trials("two"), strict=True):
        assert (one.state, one.params) == (two.state, two.params)
        assert one.user_attrs.get("error") == two.user_attrs.get("error")
        assert one.user_attrs.keys() == two.user_attrs.keys()
        run = runs.pop(two.user_attrs["uid"])
        assert run.status == ends[two.state.name]
        for name, value in one.user_attrs.items():
            if name.startswith(("divergence.", "trajectory.", "auc")):
                other = two.user_attrs[name]
                np.testing.assert_allclose(other, value, rtol=5e-3, atol=2e-3)
        if one.values is not None:
            np.testing.assert_allclose(two.values, one.values, rtol=1e-3)
            folder = next(Path("runs").glob(f"two-{two.number:05d}-*"))
            assert '"spectral.processes": "2"' in (
                folder / "spool" / "events.jsonl"
            ).read_text().replace("\\", "")
    assert runs == {}
    stopped = trials("two")[1].user_attrs
    assert "after 6 epochs" in stopped["stopped"]
    assert [at for at, _ in stopped["trajectory.auc"]] == [*range(6)]


@pytest.mark.slow
def test_a_process_that_is_killed_costs_no_ticket(made, uri):
    sweep = made("two", (60, 0.003))
    process = torchrun(*WORKER, "two", "--trust")
    end = time.monotonic() + 300
    while not any("mlflow.run_id" in trial.user_attrs for trial in trials("two")):
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
    _, problems = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "has ended, and with it the run" in problems
    (trial,) = trials("two")
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, INTERRUPTED)
    assert runs_of("two", uri)[trial.user_attrs["uid"]].status == "KILLED"
    counts = Tickets(sweep.study, STORAGE).counts()
    assert counts == {"free": 1, "taken": 0, "spent": 0}
    assert sweep.reconcile().mended == []


def misbehaving(what):
    process = torchrun("tests.sweeps.told_worker", what, *WORKER[1:], "two", "--trust")
    _, problems = process.communicate(timeout=300)
    return process.returncode, problems


@pytest.mark.slow
def test_processes_that_see_others_are_refused_before_the_first_ticket(made):
    sweep = made("two", (1, 0.003))
    code, problems = misbehaving("others-1")
    assert code != 0
    assert "see different people or settings" in problems
    assert sweep.tickets.counts() == {"free": 1, "taken": 0, "spent": 0}
    assert trials("two")[0].state == TrialState.WAITING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "error", "sentence"),
    [
        (0, "", "(ZeroDivisionError: by hand) in the midst of its batches"),
        (1, "ProcessError: Process 1 of 2 (from 0) failed: ", "Process 1 of 2"),
    ],
)
def test_a_trial_that_fails_among_its_batches_ends_the_worker(
    made, uri, rank, error, sentence
):
    sweep = made("two", (1, 0.003), (1, 0.005))
    code, problems = misbehaving(f"fail-{rank}")
    assert code != 0
    assert sentence in problems
    failed, waiting = trials("two")
    assert (failed.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    said = failed.user_attrs["error"]
    assert said.startswith(f"{error}ZeroDivisionError: by hand")
    run = runs_of("two", uri)[failed.user_attrs["uid"]]
    assert (run.status, run.tags["optuna.state"]) == ("FAILED", "FAIL")
    assert sweep.tickets.counts() == {"free": 1, "taken": 0, "spent": 1}
    assert sweep.reconcile().mended == []


def test_who_says_why_it_failed_has_not_left():
    said = ProcessError("Process 1 of 2 failed: no memory")
    left = ProcessError("Another of the 2 processes has ended")
    left.__cause__ = RuntimeError("connection closed")
    assert [was_left(error) for error in (said, left, ValueError())] == [
        False,
        True,
        False,
    ]
