"""Studies of tiny trials whose workers are jobs of a SLURM."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from spectral_mlops.sweeps import Sweep
from spectral_mlops.sweeps.cluster import Array, Worker
from spectral_mlops.sweeps.space_file import space_of
from spectral_mlops.sweeps.stale import INTERRUPTED, counted
from spectral_mlops.sweeps.tickets import Tickets
from spectral_mlops.tracking import open_store
from tests.conftest import ROOT

STORAGE = "sqlite:///optuna.db"
PATIENCE = 480


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

    def make(trials, workers, epochs=1, space=None):
        settings = config.model_copy(
            update={"training": config.training.model_copy(update={"epochs": epochs})}
        )
        sweep = Sweep(
            settings,
            study="tiny",
            storage=STORAGE,
            runs=Path("runs"),
            pruner="none",
            heartbeat=2.0,
            space=space_of(space, "test"),
        )
        sweep.want(trials)
        return begun(sweep, workers)

    def begun(sweep, workers):
        worker = Worker("tiny", STORAGE, Path("runs"), trust=True)
        array = Array(sweep, worker, workers, {})
        request.addfinalizer(array.interrupt)
        array.start()
        return array

    make.again = lambda array: begun(array.sweep, array.size)
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


def check_totals(study, uri, wanted):
    """Each ticket is spent on one trial that ended, and none is left behind."""
    assert Tickets(study, STORAGE).counts() == {"free": 0, "taken": 0, "spent": wanted}
    ended = counted(trials())
    assert len(ended) == wanted
    assert {trial.state for trial in ended} == {TrialState.COMPLETE}
    assert trials(TrialState.RUNNING, TrialState.WAITING) == []
    client = open_store(uri).client
    for trial in trials():
        run = client.get_run(trial.user_attrs["mlflow.run_id"])
        failed = trial.state == TrialState.FAIL
        stopped = trial.user_attrs.get("error") == INTERRUPTED
        status = "KILLED" if stopped else "FAILED" if failed else "FINISHED"
        assert run.info.status == status
