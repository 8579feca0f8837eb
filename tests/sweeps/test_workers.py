"""Workers as processes: some on SQLite, many on PostgreSQL, killed at random."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.sweeps.reconcile import reconcile_study
from spectral_mlops.sweeps.stale import INTERRUPTED, counted
from spectral_mlops.sweeps.storage import open_storage
from spectral_mlops.sweeps.tickets import Tickets
from spectral_mlops.tracking import sync_run, undelivered_runs
from spectral_mlops.tracking.trials import TrialRuns
from tests.conftest import ROOT
from tests.tracking.servers import make_databases, postgres, running, sqlite_server

STORAGE = "sqlite:///optuna.db"
RUNS = Path("runs")
AWAY = 60
"""Seconds without MLflow's server."""


def start(*words, storage=STORAGE):
    """Start the command as a process of its own."""
    environment = os.environ | {"OPTUNA_STORAGE": storage, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "spectral_mlops.cli", "sweep", *map(str, words)]
    with Path("log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def opened(storage=STORAGE):
    study = optuna.load_study(study_name="many", storage=open_storage(storage))
    return study, Tickets(study, storage)


@contextmanager
def opened_and_closed(storage):
    """Open a database that minds connections that are left open."""
    base = open_storage(storage)
    try:
        study = optuna.load_study(study_name="many", storage=base)
        yield study, Tickets(study, storage)
    finally:
        base.remove_session()
        base.engine.dispose()


def ran(*words, storage):
    """Run the command to its end; give what it wrote."""
    log = Path("log").stat().st_size if Path("log").exists() else 0
    code = start(*words, storage=storage).wait()
    said = Path("log").read_bytes()[log:].decode()
    assert code in (0, 3), said
    return said


def shown():
    """Return what workers said, but for what a store that is away makes them say."""
    lines = Path("log").read_text().splitlines()
    return "\n".join(line[:300] for line in lines if "rror" in line or "died" in line)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, Path("log").read_text()[-3000:]
        time.sleep(0.1)
    return found


def running_trial(study):
    """Return a trial that trains: its run has begun."""
    states = (TrialState.RUNNING,)
    trials = study.get_trials(deepcopy=False, states=states)
    begun = [t for t in trials if list(RUNS.glob(f"many-{t.number:05d}-*/config.json"))]
    return begun[0] if begun else None


def runs_by_uid(uri):
    runs = TrialRuns("many", uri, "spectral_mlops").all()
    by_uid = {run.tags["spectral.uid"]: run for run in runs}
    assert len(by_uid) == len(runs)
    return by_uid


def check_both_stores(study, uri):
    """Every trial's run ended as the trial did, and there is no other run."""
    by_uid = runs_by_uid(uri)
    for trial in study.get_trials():
        run = by_uid.pop(trial.user_attrs.get("uid", ""), None)
        assert run is None or "spectral.orphan" not in run.tags
        if trial.state == TrialState.COMPLETE:
            assert (run.status, run.tags["optuna.state"]) == ("FINISHED", "COMPLETE")
        elif run is not None:
            stopped = trial.user_attrs.get("error") == INTERRUPTED
            assert run.status == ("KILLED" if stopped else "FAILED")
            assert run.tags["optuna.state"] == "FAIL"
            assert run.tags["spectral.error"]
    assert by_uid == {}


@pytest.mark.slow
def test_two_workers_share_a_study_and_leave_one_page(command, cheap, uri):
    words = ["--config", cheap, "--tracking", uri, "--study", "many", "--seed", 4]
    code, out, err = command("sweep", *words, "--trials", 5, "--workers", 2)
    assert (code, err) == (0, ""), [p.read_text() for p in RUNS.glob("*/*.log")]
    study, tickets = opened()
    assert "5 of 5 trials done" in out
    assert "Its page: " in out
    trials = study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 5
    assert len({str(t.params) for t in trials}) == 5
    assert tickets.counts() == {"free": 0, "taken": 0, "spent": 5}
    check_both_stores(study, uri)
    assert reconcile_study("many", STORAGE, None, RUNS).mended == []


@pytest.mark.slow
def test_signals_end_a_worker_after_its_trial_or_at_once(command, cheap, uri):
    words = ["--config", cheap, "--tracking", uri, "--study", "many"]
    words += ["--epochs", 60, "--trials", 3, "--workers", 0]
    assert command("sweep", *words)[0] == 0
    study, tickets = opened()
    worker = start("worker", "--study", "many")
    wait_for(lambda: running_trial(study))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) != 0
    (stopped,) = study.get_trials()
    assert (stopped.state, stopped.user_attrs["error"]) == (
        TrialState.FAIL,
        INTERRUPTED,
    )
    assert tickets.counts() == {"free": 3, "taken": 0, "spent": 0}
    check_both_stores(study, uri)
    worker = start("worker", "--study", "many")
    wait_for(lambda: running_trial(study))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(240) == 0
    assert [t.state.name for t in study.get_trials()] == ["FAIL", "COMPLETE"]
    assert study.get_trials()[1].params == stopped.params  # one ticket, one seed
    assert tickets.counts() == {"free": 2, "taken": 0, "spent": 1}
    assert len(counted(study.get_trials())) == 1
    check_both_stores(study, uri)


@pytest.mark.slow
@pytest.mark.postgres
def test_workers_killed_at_random_lose_and_repeat_nothing(cheap, migrated, tmp_path):
    """40 trials, 4 workers on PostgreSQL; MLflow's server is away for a while too."""
    folder = tmp_path / "server"
    folder.mkdir()
    with postgres() as database, running(sqlite_server(folder, migrated)) as server:
        make_databases(database, "optuna")
        storage = f"{database}/optuna"
        words = ["--config", cheap, "--tracking", server.address, "--study", "many"]
        words += ["--heartbeat", 1, "--workers", 0, "--trials", 40]
        ran(*words, storage=storage)
        with opened_and_closed(storage) as (study, tickets):
            codes = killed_at_random(tickets, storage, server, [3, 8, 12, 17, 22, 30])
            assert codes.keys() <= {0, 3, -signal.SIGKILL}, shown()
            assert codes[-signal.SIGKILL] in (5, 6)  # the last may have ended itself
            ran("worker", "--study", "many", storage=storage)  # the last dead's
            assert tickets.counts() == {"free": 0, "taken": 0, "spent": 40}
            for left in undelivered_runs(RUNS):
                sync_run(left)
            first = ran("reconcile", "many", storage=storage)
            again = ran("reconcile", "many", storage=storage)
            assert "Nothing to mend." in again
            assert "undelivered" not in first + again
            trials = study.get_trials()
            assert all(t.state.is_finished() for t in trials)
            assert [
                t.user_attrs["error"] for t in trials if "error" in t.user_attrs
            ] == []
            assert len(counted(trials)) == 40
            check_both_stores(study, server.address)


def killed_at_random(tickets, storage, server, kills):
    """Run four workers; one is killed and replaced at each number of trials done.

    The server goes at the third, for a minute.
    """
    chance = random.Random(8)
    words, killed, back = ("worker", "--study", "many"), 0, None
    workers = [start(*words, storage=storage) for _ in range(4)]
    while (living := [w for w in workers if w.poll() is None]) or back is not None:
        if (
            living
            and killed < len(kills)
            and tickets.counts()["spent"] >= kills[killed]
        ):
            time.sleep(chance.random())
            chance.choice(living).send_signal(signal.SIGKILL)
            workers.append(start(*words, storage=storage))
            killed += 1
            if killed == 3:
                server.kill()
                back = time.monotonic() + AWAY
        if back is not None and time.monotonic() > back:
            server.start()
            back = None
        time.sleep(0.1)
    return Counter(w.wait() for w in workers)
