"""Ctrl-C and SIGTERM to the parent of workers: real processes, nothing left behind."""

import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from optuna.trial import TrialState

from spectral_mlops.cli.crew import DRAIN, INTERRUPT, KILL, urgency
from spectral_mlops.sweeps.stale import INTERRUPTED, counted
from tests.sweeps.test_workers import (
    RUNS,
    STORAGE,
    check_both_stores,
    opened,
    ran,
    runs_by_uid,
    start,
    wait_for,
)

INT, TERM = signal.SIGINT, signal.SIGTERM
WANTED = 3


@pytest.fixture
def parent(command, cheap, uri):
    """A study made, and a call that lets two workers run it until both train."""
    words = ["--config", cheap, "--tracking", uri, "--study", "many", "--seed", 4]
    words += ["--epochs", 25, "--trials", WANTED, "--workers", 0]
    assert command("sweep", *words)[0] == 0
    return begin


def begin():
    process = start("--study", "many", "--workers", 2)
    study, _ = opened()
    wait_for(lambda: len(training(study)) == 2 or process.poll() is not None)
    assert process.poll() is None, Path("log").read_text()
    pids = children(process.pid)
    assert len(pids) == 2
    return process, pids


def training(study):
    """Return trials whose runs have begun."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [t for t in running if list(RUNS.glob(f"many-{t.number:05d}-*/config.json"))]


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def command_to_go_on():
    """Return the words after the program's name, from the one sentence that says it."""
    said = Path("log").read_text()
    (line,) = [line for line in said.splitlines() if "go on in this folder:" in line]
    assert "Traceback" not in said
    assert f"wants {WANTED} trials more" in line
    program, name, *words = shlex.split(line.rpartition("folder:")[2])
    assert (program, name) == ("spectral-mlops", "sweep")
    return words


def check_nothing_is_left(process, pids, uri):
    assert [pid for pid in pids if alive(pid)] == []
    study, tickets = opened()
    states = {trial.state for trial in study.get_trials()}
    assert TrialState.RUNNING not in states
    assert tickets.counts() == {"free": WANTED, "taken": 0, "spent": 0}
    assert "RUNNING" not in {run.status for run in runs_by_uid(uri).values()}
    return study, tickets


def goes_on_to_exact_totals(uri):
    ran(*command_to_go_on(), storage=STORAGE)
    study, tickets = opened()
    assert tickets.counts() == {"free": 0, "taken": 0, "spent": WANTED}
    trials = study.get_trials()
    assert all(trial.state.is_finished() for trial in trials)
    ended = counted(trials)
    assert [trial.state for trial in ended] == [TrialState.COMPLETE] * WANTED
    check_both_stores(study, uri)
    assert "Nothing to mend." in ran("reconcile", "many", storage=STORAGE)


@pytest.mark.slow
def test_ctrl_c_ends_all_and_the_command_said_goes_on(parent, uri):
    process, pids = parent()
    os.killpg(process.pid, INT)
    assert process.wait(60) == 130
    study, _ = check_nothing_is_left(process, pids, uri)
    errors = [trial.user_attrs["error"] for trial in study.get_trials()]
    assert errors == [INTERRUPTED] * 2
    assert {run.status for run in runs_by_uid(uri).values()} == {"KILLED"}
    goes_on_to_exact_totals(uri)


@pytest.mark.slow
def test_ctrl_c_twice_kills_and_is_mended_at_once(parent, uri):
    process, pids = parent()
    for pid in pids:  # who cannot end in peace
        os.kill(pid, signal.SIGSTOP)
    os.killpg(process.pid, INT)
    wait_for(lambda: "Ctrl-C once more" in Path("log").read_text())
    assert process.poll() is None
    os.killpg(process.pid, INT)
    assert process.wait(60) == 130
    study, _ = check_nothing_is_left(process, pids, uri)
    assert len(re.findall("Mended: trial", Path("log").read_text())) >= 2
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert {trial.user_attrs["retry_of"] for trial in waiting} == {0, 1}
    goes_on_to_exact_totals(uri)


@pytest.mark.slow
def test_sigterm_lets_trials_end_and_the_parent_writes_the_page(parent, uri):
    process, pids = parent()
    process.send_signal(TERM)
    assert process.wait(240) == 0
    said = Path("log").read_text()
    assert "take no more" in said
    assert "Its page: runs/many-study" in said
    assert [pid for pid in pids if alive(pid)] == []
    study, tickets = opened()
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE] * 2
    assert tickets.counts() == {"free": 1, "taken": 0, "spent": 2}
    (line,) = [line for line in said.splitlines() if "wants 1 trials more" in line]
    ran(*shlex.split(line.rpartition("more:")[2])[2:], storage=STORAGE)
    assert tickets.counts() == {"free": 0, "taken": 0, "spent": WANTED}
    assert len(counted(study.get_trials())) == WANTED
    check_both_stores(study, uri)


@pytest.mark.parametrize(
    ("told", "level"),
    [
        ([], 0),
        ([TERM], DRAIN),
        ([TERM, TERM], INTERRUPT),
        ([INT], INTERRUPT),
        ([TERM, INT], INTERRUPT),
        ([INT, TERM], KILL),
        ([INT, INT], KILL),
        ([TERM, TERM, TERM], KILL),
        ([INT, INT, INT, TERM], KILL),
    ],
)
def test_what_signals_ask_for_together(told, level):
    assert urgency(told) == level
