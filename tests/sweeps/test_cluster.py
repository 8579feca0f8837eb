"""Workers as jobs of a real SLURM: exact totals, also when jobs are taken off."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.sweeps import Sweep
from spectral_mlops.sweeps.cluster import Array, Worker
from spectral_mlops.sweeps.stale import INTERRUPTED, counted
from spectral_mlops.tracking import open_store
from tests.conftest import ROOT
from tests.sweeps.slurm import called, cluster

__all__ = ["cluster"]  # a fixture, found here by name
slurm = [pytest.mark.slow, pytest.mark.slurm]
STORAGE = "sqlite:///optuna.db"
PATIENCE = 240


@pytest.fixture
def made(small, uri, monkeypatch, request):
    """A study of tiny trials, and a call that hands its workers to SLURM."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # jobs run this tree
    config = small(
        training={"epochs": 1},
        comparison={"null_epochs": 1},
        spectra={"directions": 0, "influence": False},
        tracking={"uri": uri},
    )

    def make(trials, workers, epochs=1):
        settings = config.model_copy(
            update={"training": config.training.model_copy(update={"epochs": epochs})}
        )
        sweep = Sweep(
            settings,
            study="tiny",
            storage=STORAGE,
            runs=Path("runs"),
            prune=False,
            heartbeat=2.0,
        )
        sweep.want(trials)
        array = Array(sweep, Worker("tiny", STORAGE, Path("runs")), workers, {})
        request.addfinalizer(array.interrupt)
        array.start()
        return array

    return make


def said(array):
    return "\n".join(
        f"{path.name}:\n{path.read_text()[-2000:]}"
        for path in sorted(array.logs.glob("*_log.*"))
    )


def wait_for(array, condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, said(array)
        time.sleep(0.2)
    return found


def trials(*states):
    study = optuna.load_study(study_name="tiny", storage=STORAGE)
    return study.get_trials(states=states or None)


def running():
    return [trial for trial in trials(TrialState.RUNNING) if "uid" in trial.user_attrs]


def wait_for_the_end(array):
    assert wait_for(array, lambda: (array.ended(), not array.living)[1])


def check_totals(array, wanted):
    """Each ticket is spent on one trial that ended, and none is left behind."""
    assert array.sweep.tickets.counts() == {"free": 0, "taken": 0, "spent": wanted}
    ended = counted(trials())
    assert len(ended) == wanted, said(array)
    assert {trial.state for trial in ended} == {TrialState.COMPLETE}, said(array)
    assert trials(TrialState.RUNNING, TrialState.WAITING) == []
    client = open_store(array.sweep.config.tracking.uri).client
    for trial in trials():
        run = client.get_run(trial.user_attrs["mlflow.run_id"])
        stopped = trial.user_attrs.get("error") == INTERRUPTED
        assert run.info.status == ("KILLED" if stopped else "FINISHED")
    assert not array.undelivered


@pytest.mark.slow
@pytest.mark.slurm
def test_an_array_of_three_runs_what_a_study_wants(made, cluster):
    array = made(trials=6, workers=3)
    wait_for_the_end(array)
    check_totals(array, 6)
    assert all(f"worker {number} of" in said(array) for number in range(3))
    assert array.logs.stat().st_mode & 0o777 == 0o700


def told_by_slurm(job):
    called("scancel", "--signal=USR1", job)


def taken_by_slurm(job):
    called("scontrol", "requeue", job)


@pytest.mark.parametrize(
    "stop",
    [pytest.param(stop, marks=slurm) for stop in (told_by_slurm, taken_by_slurm)],
)
def test_a_worker_that_is_taken_off_gives_its_ticket_back_and_comes_again(
    made,
    cluster,
    stop,
):
    array = made(trials=4, workers=2, epochs=40)
    wait_for(array, lambda: len(running()) == 2)
    first = f"{array.job}_0"
    stop(first)
    stopped = wait_for(
        array,
        lambda: [t for t in trials() if t.user_attrs.get("error") == INTERRUPTED],
    )
    assert len(stopped) == 1
    wait_for_the_end(array)
    check_totals(array, 4)
    log = (array.logs / f"{first}_0_log.out").read_text()
    assert log.count("worker 0 of study 'tiny'") == 2
    assert len(trials()) == 5
