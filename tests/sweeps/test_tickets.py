"""Tickets and what dead workers leave, with trials that train nothing."""

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps import tickets as module
from spectral_mlops.sweeps.stale import INTERRUPTED, RETRIES, counted, mend
from spectral_mlops.sweeps.storage import open_storage
from spectral_mlops.sweeps.tickets import Tickets, worker_name
from tests.conftest import ROOT

STORAGE = "sqlite:///optuna.db"


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name="s", storage=open_storage(STORAGE))


@pytest.fixture
def tickets(study):
    return Tickets(study, STORAGE, interval=0.4)


def begin(study, tickets, *, settings=True):
    """Do what a worker does before it trains."""
    hold = tickets.take()
    trial = study.ask()
    hold.bind(trial.number)
    trial.set_user_attr("uid", f"uid-{trial.number}")
    if settings:
        trial.suggest_float("x", 0, 1)
    return hold, trial


def test_each_ticket_is_taken_once_in_order(study, tickets):
    assert tickets.take() is None
    tickets.add(2)
    tickets.add(1)
    held = [tickets.take() for _ in range(3)]
    assert [hold.number for hold in held] == [0, 1, 2]
    assert tickets.take() is None
    held[1].give_back()
    held[0].spend()
    assert tickets.counts() == {"free": 1, "taken": 1, "spent": 1}
    assert Tickets(study, STORAGE, interval=9).interval == 0.4  # the study's own
    assert tickets.take().number == 1
    other = optuna.create_study(study_name="o", storage=open_storage(STORAGE))
    assert Tickets(other, STORAGE).counts() == {"free": 0, "taken": 0, "spent": 0}


def test_processes_take_every_ticket_once(study, tickets):
    tickets.add(30)
    code = (
        "import optuna; from spectral_mlops.sweeps.tickets import Tickets\n"
        "from spectral_mlops.sweeps.storage import open_storage\n"
        f"storage = open_storage({STORAGE!r})\n"
        "study = optuna.load_study(study_name='s', storage=storage)\n"
        f"tickets = Tickets(study, {STORAGE!r})\n"
        "while (hold := tickets.take()) is not None: print(hold.number)\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", code]
    settings = {"stdout": subprocess.PIPE, "text": True}
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(words, env=environment, **settings) for _ in range(3)]
    taken = [int(n) for worker in workers for n in worker.communicate()[0].split()]
    assert sorted(taken) == list(range(30))


def test_a_worker_that_lives_keeps_its_ticket(study, tickets):
    tickets.add(1)
    hold, trial = begin(study, tickets)
    with hold.alive():
        time.sleep(4 * tickets.interval)
        assert mend(study, tickets) == []
    assert not hold.lost
    time.sleep(4 * tickets.interval)  # silent now
    assert "another takes its place" in mend(study, tickets)[0]
    with hold.alive():
        time.sleep(2 * tickets.interval)
        assert hold.lost
    assert study.tell(trial, 0.5, skip_if_finished=True).state == TrialState.FAIL
    hold.spend()  # says nothing to a ticket that is another's
    assert tickets.counts() == {"free": 1, "taken": 0, "spent": 0}


def test_a_dead_trial_is_tried_again_clean_and_twice_at_most(study, tickets):
    tickets.add(1)
    values = set()
    for attempt in range(RETRIES + 1):
        hold, trial = begin(study, tickets)
        assert trial.user_attrs.get("retries", 0) == attempt
        assert "mlflow.run_id" not in trial.user_attrs
        assert not trial.constraints
        values.add(trial.params["x"])
        trial.set_user_attr("mlflow.run_id", f"run-{attempt}")
        trial.set_constraint("confounds", 0.5)
        trial.report(0.5, 0)
        tickets.silence(worker_name())
        assert len(mend(study, tickets)) == 1
        assert mend(study, tickets) == []
        assert hold.number == 0
    assert len(values) == 1
    trials = study.get_trials()
    assert [t.state for t in trials] == [TrialState.FAIL] * (RETRIES + 1)
    assert [t.user_attrs.get("retry_of") for t in trials] == [None, 0, 1]
    assert counted(trials) == [trials[-1]]
    assert tickets.counts() == {"free": 0, "taken": 0, "spent": 1}


@pytest.mark.parametrize(
    ("moment", "states", "left"),
    [
        ("taken", [], "free"),
        ("asked", ["FAIL", "WAITING"], "free"),
        ("bound", ["FAIL", "WAITING"], "free"),
        ("failed", ["FAIL"], "spent"),
        ("interrupted", ["FAIL"], "free"),
        ("told", ["COMPLETE"], "spent"),
        ("mended half", ["FAIL", "WAITING"], "free"),
    ],
)
def test_at_whatever_moment_a_worker_dies(study, tickets, moment, states, left):
    tickets.add(1)
    hold = tickets.take()
    if moment != "taken":
        trial = study.ask()
    if moment not in ("taken", "asked"):
        hold.bind(trial.number)
        trial.suggest_float("x", 0, 1)
    if moment in ("failed", "interrupted"):
        error = INTERRUPTED if moment == "interrupted" else "ValueError: by hand"
        trial.set_user_attr("error", error)
        study.tell(trial, state=TrialState.FAIL)
    if moment == "told":
        study.tell(trial, 0.7)
    if moment == "mended half":  # by one who died after the copy was made
        study.tell(trial, state=TrialState.FAIL)
        again = optuna.create_trial(
            state=TrialState.WAITING, user_attrs={"retry_of": 0, "retries": 1}
        )
        study.add_trial(again)
    tickets.silence(worker_name())
    if moment == "asked":  # nobody knows whose it is
        time.sleep(4 * tickets.interval)
    assert mend(study, tickets)
    assert mend(study, tickets) == []
    assert [t.state.name for t in study.get_trials()] == states
    assert tickets.counts() == {"free": 0, "taken": 0, "spent": 0} | {left: 1}
    spent = len(counted(study.get_trials()))
    assert spent == (left == "spent")


def test_a_database_without_a_known_clock_is_refused(study, monkeypatch):
    monkeypatch.setattr(module, "_CLOCKS", {})
    with pytest.raises(InputError, match="share SQLite"):
        Tickets(study, STORAGE)
    assert Path("optuna.db").exists()
