"""What workers on a real SLURM do when they are told to end, at any moment."""

import os
from importlib import import_module
from pathlib import Path

import pytest
from optuna.trial import TrialState

from spectral_mlops.sweeps.stale import DIED, INTERRUPTED, why_failed
from spectral_mlops.sweeps.tickets import Tickets
from tests.sweeps.jobs import (
    STORAGE,
    check_totals,
    running,
    said,
    trials,
    wait_for,
    wait_for_the_end,
)
from tests.sweeps.slurm import called

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
HOLD, HERE = Path("hold"), Path("here")
WAITING = f"""
from pathlib import Path
from time import sleep

if Path("{HOLD}").exists():
    Path("{HERE}").touch()
while Path("{HOLD}").exists():
    sleep(0.1)
"""
DRAW = """
def draw(trial):
    return {"training.learning_rate": trial.suggest_float("rate", 0.001, 0.01)}
"""


def usr1(job):
    called("scancel", "--signal=USR1", job)


def usr2(job):
    called("scancel", "--signal=USR2", job)


def requeue(job):
    called("scontrol", "requeue", job)


def log_of(array):
    """Return what its first worker said."""
    job = array.job if array.size == 1 else f"{array.job}_0"  # one is no array
    return (array.logs / f"{job}_0_log.out").read_text()


def counts(array):
    return Tickets(array.sweep.study, STORAGE).counts()


@pytest.mark.parametrize("tell", [usr1, requeue])
def test_a_worker_that_is_taken_off_gives_its_ticket_back_and_comes_again(
    made, cluster, tell
):
    array = made(trials=3, workers=2, epochs=25)
    wait_for(array, lambda: len(running()) == 2)
    tell(f"{array.job}_0")
    stopped = wait_for(
        array,
        lambda: [t for t in trials() if t.user_attrs.get("error") == INTERRUPTED],
    )
    assert len(stopped) == 1
    wait_for_the_end(array)
    check_totals(array.sweep.study, array.sweep.config.tracking.uri, 3)
    assert not array.undelivered
    assert log_of(array).count("worker 0 of study 'tiny'") == 2
    assert len(trials()) == 4


@pytest.fixture
def held(made, monkeypatch):
    """A job that waits as Python begins, or as it loads what its study is about."""

    def hold(moment):
        folder = Path("held").absolute()
        folder.mkdir()
        (folder / "held_space.py").write_text(DRAW)
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ['PYTHONPATH']}")
        monkeypatch.syspath_prepend(folder)
        import_module("held_space")  # only the job is to wait
        name = {"begins": "sitecustomize", "loads": "held_space"}[moment]
        with (folder / f"{name}.py").open("a") as module:
            module.write(WAITING)
        HOLD.touch()
        array = made(trials=2, workers=1, space="held_space:draw")
        wait_for(array, HERE.exists)
        return array

    return hold


@pytest.mark.parametrize(
    ("moment", "tell", "begun"),
    [("begins", usr1, 1), ("loads", usr1, 2), ("loads", requeue, 2)],
)
def test_a_worker_told_before_its_first_ticket_takes_none_and_comes_again(
    held, cluster, moment, tell, begun
):
    array = held(moment)
    tell(array.job)
    HOLD.unlink()
    wait_for_the_end(array)
    check_totals(array.sweep.study, array.sweep.config.tracking.uri, 2)
    assert len(trials()) == 2
    assert log_of(array).count("worker 0 of study 'tiny'") == begun, said(array)


@pytest.mark.parametrize("moment", ["begins", "loads"])
def test_a_worker_drained_before_its_first_ticket_takes_none_and_ends(
    held, cluster, moment
):
    array = held(moment)
    array.drain()
    HOLD.unlink()
    wait_for_the_end(array)
    assert (array.died, array.ended()) == (False, [])
    assert counts(array) == {"free": 2, "taken": 0, "spent": 0}
    assert trials() == []


def test_drained_workers_end_their_trials_and_the_study_goes_on(made, cluster):
    """The node has room for three: the fourth job waits, and is called off."""
    array = made(trials=5, workers=4, epochs=25)
    wait_for(array, lambda: len(running()) == 3)
    array.drain()
    wait_for_the_end(array)
    done = counts(array)
    assert (done["taken"], done["free"] + done["spent"]) == (0, 5)
    assert {t.state for t in trials()} == {TrialState.COMPLETE}
    assert len(trials()) == done["spent"] < 5
    assert not array.died
    again = made.again(array)
    wait_for_the_end(again)
    check_totals(array.sweep.study, array.sweep.config.tracking.uri, 5)
    assert len(trials()) == 5


def test_killed_workers_are_mended_and_the_study_goes_on(made, cluster):
    array = made(trials=3, workers=2, epochs=25)
    wait_for(
        array,
        lambda: ["mlflow.run_id" in t.user_attrs for t in running()] == [True] * 2,
    )
    array.kill()
    wait_for_the_end(array)
    assert counts(array) == {"free": 1, "taken": 2, "spent": 0}
    tickets = Tickets(array.sweep.study, STORAGE)
    wait_for(array, lambda: len(tickets.silent(tickets.grace)) == 2)
    assert len(array.sweep.reconcile().mended) >= 2
    assert counts(array) == {"free": 3, "taken": 0, "spent": 0}
    assert [why_failed(t) for t in trials(TrialState.FAIL)] == [DIED] * 2
    wait_for_the_end(made.again(array))
    check_totals(array.sweep.study, array.sweep.config.tracking.uri, 3)
    assert array.sweep.reconcile().mended == []
