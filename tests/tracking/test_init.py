"""What one process makes ready before others start."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from alembic import command as migrations
from alembic.script import ScriptDirectory
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.sweeps import prepare_storage
from spectral_mlops.tracking import MlflowTracker, open_store, prepare_store
from spectral_mlops.tracking import initialise as module
from spectral_mlops.tracking.store import Store
from spectral_mlops.tracking.view import TAG
from tests.conftest import ROOT
from tests.tracking.factory import epoch


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A database as the MLflow before left it."""
    uri = f"sqlite:///{tmp_path / 'old.db'}"
    engine = create_engine(uri)
    Base.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    revisions = [*ScriptDirectory.from_config(config).walk_revisions()]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        migrations.upgrade(config, revisions[1].revision)
    engine.dispose()
    return uri


def execute(uri: str, statement: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        connection.execute(statement)
        connection.commit()


def test_makes_store_experiment_and_view_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    first = prepare_store(uri, "study A")
    again = prepare_store(uri, "study A")
    assert (first.done, again.done) == ("made", "ready")
    assert first.files == again.files == (tmp_path / "mlruns/study_A").as_uri()
    assert first.view == again.view
    found = open_store(uri).client.search_experiments()
    assert sorted(e.name for e in found) == ["Default", "study A"]
    assert TAG in open_store(uri).experiment("study A").tags


def test_leaves_runs_alone(uri: str) -> None:
    with MlflowTracker(tracking_uri=uri) as tracker:
        tracker.log(epoch(0), {"train/loss": 0.5})
    before = open_store(uri).client.get_run(tracker.run_id).to_dictionary()
    assert prepare_store(uri).done == "ready"
    assert open_store(uri).client.get_run(tracker.run_id).to_dictionary() == before


def test_upgrades_an_old_database(old: str) -> None:
    assert prepare_store(old).done == "upgraded"
    assert prepare_store(old).done == "ready"
    with MlflowTracker(tracking_uri=old) as tracker:
        tracker.log(epoch(0), {"train/loss": 0.5})
    assert tracker.undelivered == 0


def test_unusable_stores_and_experiments_get_one_sentence(uri: str) -> None:
    with pytest.raises(TrackingError, match="no such folder"):
        prepare_store("sqlite:////absent/folder/mlflow.db")
    with pytest.raises(TrackingError, match="cannot be used") as caught:
        prepare_store("postgresql://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value)
    with pytest.raises(TrackingError, match="folder store"):
        prepare_store("mlruns")
    with pytest.raises(TrackingError, match="Default experiment is not used"):
        prepare_store(uri, "Default")
    open_store(uri).client.create_experiment("served", "mlflow-artifacts:/7")
    with pytest.raises(TrackingError, match="not a server"):
        prepare_store(uri, "served")


def test_upgrades_what_mlflow_itself_would_not(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = MlflowException("Detected out-of-date database schema (found version x")
    real, calls = module.open_store, []

    def refuses_once(uri: str) -> Store:
        calls.append(uri)
        if len(calls) == 1:
            raise TrackingError("cannot be used") from said
        return real(uri)

    monkeypatch.setattr(module, "open_store", refuses_once)
    assert prepare_store(old).done == "upgraded"
    assert calls == [old, old]


def test_a_database_of_a_newer_mlflow_is_refused(uri: str) -> None:
    execute(uri, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(TrackingError, match="made by a newer MLflow"):
        prepare_store(uri)


def test_optuna_storage_is_made_once_and_brought_up_to_date(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    assert [prepare_storage(storage) for _ in range(2)] == ["ready", "ready"]
    optuna.create_study(study_name="s", storage=storage)
    execute(storage, "UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    with pytest.raises(RuntimeError, match="no longer compatible"):
        optuna.load_study(study_name="s", storage=storage)
    assert prepare_storage(storage) == "upgraded"
    assert optuna.load_study(study_name="s", storage=storage).trials == []
    execute(storage, "UPDATE alembic_version SET version_num = 'v99'")
    with pytest.raises(InputError, match="a newer Optuna made it, version v99"):
        prepare_storage(storage)


@pytest.mark.parametrize(
    "storage",
    ["nothing", "postgresql://me:secret@127.0.0.1:9/x", "nodialect://me:secret@h/x"],
)
def test_unusable_optuna_storage_gets_one_sentence(storage: str) -> None:
    with pytest.raises(InputError, match="Optuna cannot use it") as caught:
        prepare_storage(storage)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_processes_that_start_at_once_after_it(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    uri, storage = (f"sqlite:///{tmp_path / name}.db" for name in ("mlflow", "optuna"))
    words = ["init", "--tracking", uri, "--storage", storage, "--experiment", "all"]
    for said in ("made", "ready"):
        status, out, _ = command(*words)
        assert status == 0
        assert f"MLflow store {uri}: {said}" in out
        assert "Experiment 'all': files go to file://" in out
        assert f"Optuna storage {storage}: ready" in out
        assert "viewStateShareKey=spectral" in out
    code = (
        "import optuna; from spectral_mlops.tracking import MlflowTracker\n"
        f"with MlflowTracker(experiment='all', tracking_uri={uri!r}) as tracker:\n"
        "    tracker.log_metrics({'a': 1.0})\n"
        "assert tracker.undelivered == 0\n"
        f"optuna.storages.RDBStorage({storage!r})\n"
    )
    starter = [sys.executable, "-c", code]
    workers = [subprocess.Popen(starter, cwd=ROOT) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    store = open_store(uri)
    runs = store.client.search_runs([store.experiment("all").experiment_id])
    assert [run.data.metrics["a"] for run in runs] == [1.0] * 3
