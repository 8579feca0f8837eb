"""What more than one machine needs: PostgreSQL below a server, files in S3."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps import prepare_storage
from spectral_mlops.tracking import MlflowTracker, load_run, open_store
from tests.conformance import TrackerSuite
from tests.conftest import ROOT
from tests.tracking.factory import epoch
from tests.tracking.readers import MlflowReader
from tests.tracking.servers import (
    S3_KEYS,
    make_databases,
    mlflow_server,
    postgres,
    running,
    s3,
    s3_client,
)

psycopg = pytest.importorskip("psycopg", reason="no psycopg here")
pytestmark = [pytest.mark.slow, pytest.mark.postgres]
BUCKET = "files"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as server:
        make_databases(server, "mlflow", "direct", "optuna")
        yield server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3(tmp_path_factory.mktemp("s3"), BUCKET) as address:
        yield address


@pytest.fixture(scope="module")
def address(
    database: str, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    server = mlflow_server(
        tmp_path_factory.mktemp("server"),
        f"{database}/mlflow",
        f"s3://{BUCKET}/proxied",
        environment=S3_KEYS | {"MLFLOW_S3_ENDPOINT_URL": bucket},
    )
    with running(server):
        yield server.address


def names_in(bucket: str, prefix: str) -> list[str]:
    listed = s3_client(bucket).list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for item in listed.get("Contents", [])]


class TestMlflowServerOnPostgres(TrackerSuite):
    @pytest.fixture
    def tracker(self, address: str) -> MlflowTracker:
        return MlflowTracker(tracking_uri=address)

    @pytest.fixture
    def reader(self, tracker: MlflowTracker, address: str) -> MlflowReader:
        return MlflowReader(tracker, address)


def test_files_go_through_the_server_into_the_bucket(address: str, bucket: str) -> None:
    with MlflowTracker(tracking_uri=address, experiment="proxied") as tracker:
        tracker.log(epoch(0))
        tracker.log_text("text", "notes.txt")
    kept = names_in(bucket, "proxied/")
    mine = [name for name in kept if tracker.run_id in name]
    assert any(name.endswith("artifacts/notes.txt") for name in mine)
    assert any("/spectra/" in name for name in mine)


def test_files_go_to_the_bucket_directly(
    address: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", bucket)
    client = open_store(address).client
    client.create_experiment("direct", f"s3://{BUCKET}/direct")
    with MlflowTracker(tracking_uri=address, experiment="direct") as tracker:
        tracker.log(epoch(0))
        tracker.log_text("text", "notes.txt")
    assert tracker.undelivered == 0
    assert f"direct/{tracker.run_id}/artifacts/notes.txt" in names_in(bucket, "direct/")
    assert len(load_run(tracker.run_id, address)) == 54


def test_init_makes_a_database_ready_once(database: str, tmp_path: Path) -> None:
    """In processes of their own: MLflow's engines stay open as long as they do."""
    uri = f"{database}/direct"
    code = (
        "from spectral_mlops.tracking import MlflowTracker, prepare_store\n"
        f"print([prepare_store({uri!r}, 'one').done for _ in range(2)])\n"
        f"with MlflowTracker(tracking_uri={uri!r}, experiment='one') as tracker:\n"
        "    tracker.log_metrics({'train/loss': 0.5})\n"
        "print(tracker.undelivered)"
    )
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.splitlines() == ["['made', 'ready']", "0"]
    with psycopg.connect(uri) as connection:
        cursor = connection.execute("SELECT key, value FROM metrics ORDER BY key")
        assert ("train/loss", 0.5) in cursor.fetchall()
        cursor = connection.execute("SELECT status FROM runs")
        assert cursor.fetchall() == [("FINISHED",)]


def test_four_workers_at_once_on_a_storage_that_init_made(database: str) -> None:
    """Without it three of four fail, each at making the same type."""
    storage = f"{database}/optuna"
    assert prepare_storage(storage) == "ready"
    code = (
        "import optuna; optuna.logging.set_verbosity(optuna.logging.ERROR)\n"
        f"study = optuna.create_study(study_name='s', storage={storage!r}, "
        "load_if_exists=True)\n"
        "study.optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=3)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    workers = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    with psycopg.connect(storage) as connection:
        cursor = connection.execute("SELECT state, count(*) FROM trials GROUP BY state")
        assert cursor.fetchall() == [("COMPLETE", 12)]


def test_a_database_that_is_not_there_gets_one_sentence(database: str) -> None:
    with pytest.raises(InputError, match="Optuna cannot use it") as caught:
        prepare_storage(f"{database}/absent")
    assert "\n" not in str(caught.value)
