"""A real MLflow server on sqlite: the suite, and what can happen to a server."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import __version__ as mlflow_version

from spectral_mlops import cli
from spectral_mlops.errors import TrackingError
from spectral_mlops.tracking import (
    MlflowTracker,
    Store,
    load_run,
    open_store,
    sync_run,
    view_experiment,
)
from spectral_mlops.tracking import view as view_module
from spectral_mlops.tracking.view import TAG
from tests.conformance import COHORT, TrackerSuite
from tests.conftest import ROOT
from tests.tracking.factory import epoch
from tests.tracking.readers import MlflowReader
from tests.tracking.servers import Server
from tests.tracking.test_faults import check_complete

PATHS = os.environ | {"PYTHONPATH": str(ROOT)}

pytestmark = pytest.mark.slow


class TestMlflowServer(TrackerSuite):
    @pytest.fixture
    def tracker(self, address: str) -> MlflowTracker:
        return MlflowTracker(tracking_uri=address)

    @pytest.fixture
    def reader(self, tracker: MlflowTracker, address: str) -> MlflowReader:
        return MlflowReader(tracker, address)


def test_prints_nothing_and_says_where(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with MlflowTracker(tracking_uri=address) as tracker:
        tracker.log(epoch())
    assert tracker.where.startswith(f"{address}/#/experiments/")
    assert capfd.readouterr() == ("", "")


def test_experiment_on_anothers_disk_is_refused(address: str) -> None:
    store = open_store(address)
    store.client.create_experiment("elsewhere", "file:///absent/a/b/c")
    with pytest.raises(TrackingError, match="on the server's disk"):
        MlflowTracker(tracking_uri=address, experiment="elsewhere").start("one")


def test_a_server_that_goes_while_a_run_is_made_stops_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    find = Store._find

    def gone(self: Store, *words: object) -> object:
        server.kill()
        return find(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "_find", gone)
    told: list[str] = []
    tracker = MlflowTracker(
        tracking_uri=server.address, folder=tmp_path / "run", notice=told.append
    )
    with tracker:
        tracker.log_metrics({"train/loss": 0.5})
    assert tracker.undelivered
    assert "Training goes on" in told[0]
    monkeypatch.undo()
    server.start()
    assert sync_run(tmp_path / "run").undelivered == 0


def test_view_asks_the_server_for_its_version(address: str) -> None:
    store = open_store(address)
    store.experiment("looked at")
    assert view_module._version(store) == mlflow_version
    view = view_experiment("looked at", address)
    assert view.where.startswith(f"{address}/#/experiments/")
    assert TAG in store.experiment("looked at").tags


@pytest.fixture
def worker(tmp_path: Path, server: Server) -> Iterator[subprocess.Popen[str]]:
    """Another process that logs a run of 100 epochs to the server."""
    server.start()
    folder = tmp_path / "run"
    words = [folder, server.address, 100, folder.with_suffix(".checkpoint"), 0]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.tracking.worker", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield process


def test_killed_in_the_middle_of_an_epoch_and_brought_back(server: Server) -> None:
    server.start()
    uri = server.address
    with MlflowTracker(tracking_uri=uri, folder="run") as tracker:
        tracker.start("one", {"depth": 3}, cohort=COHORT)
        for number in range(40):
            begun = time.perf_counter()
            tracker.log(epoch(number), {"train/loss": 1 / (1 + number)})
            assert time.perf_counter() - begun < 2.0  # no wait for the server
            if number == 12:
                server.kill()
            if number == 30:
                assert tracker.flush(1.0) > 0
                server.start()
        tracker.log_text("end", "notes.txt")
    assert tracker.undelivered == 0
    check_complete(Path("run"), uri, 40)


def test_killed_under_another_process(
    server: Server, worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    for _ in range(2):
        time.sleep(0.7)
        server.kill()
        server.start()
    assert worker.stdout is not None
    worker.stdout.read()
    words = [sys.executable, "-m", "spectral_mlops.cli", "sync"]
    done = subprocess.run(words, cwd=tmp_path, env=PATHS, check=False)
    assert done.returncode == 0
    check_complete(tmp_path / "run", server.address, 100)


def test_never_there_then_brought_up(
    server: Server,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    uri = server.address
    with MlflowTracker(tracking_uri=uri, folder="run", notice=said.append) as tracker:
        for number in range(4):
            tracker.log(epoch(number), {"train/loss": 1 / (1 + number)})
        tracker.log_text("end", "notes.txt")
    left = tracker.undelivered
    assert left > 4
    assert "Training goes on" in said[0]
    assert f"({left} undelivered: spectral-mlops sync " in tracker.where
    assert len(load_run("run")) == 4 * 54

    code, out, _ = command("sync")
    assert code == cli.UNDELIVERED
    assert re.search(rf"0 delivered, {left} undelivered \(.*cannot be used", out)
    server.start()
    code, out, _ = command("sync")
    assert code == 0
    assert f"run: {left} delivered" in out
    assert f"{uri}/#/experiments/1/runs/" in out
    check_complete(Path("run"), uri, 4)
    assert "Nothing waits" in command("sync")[1]


def test_comes_up_while_training_goes_on(server: Server) -> None:
    with MlflowTracker(tracking_uri=server.address, folder="run") as tracker:
        tracker.log(epoch(0), {"train/loss": 1.0})
        server.start()
        tracker.log(epoch(1), {"train/loss": 0.5})
        tracker.log_text("end", "notes.txt")
        assert tracker.flush(60.0) == 0
        assert tracker.where.startswith(server.address + "/#/")
    assert tracker.undelivered == 0
    check_complete(Path("run"), server.address, 2)


def test_run_that_another_process_writes_is_refused(
    server: Server, worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match=rf"another process \({worker.pid}\)"):
        MlflowTracker(tracking_uri=server.address, folder=tmp_path / "run").start()
    store = open_store(server.address)
    (run,) = store.client.search_runs([store.experiment().experiment_id])
    mine = MlflowTracker(run.info.run_id, tracking_uri=server.address)
    with pytest.raises(TrackingError, match=rf"by process {worker.pid} from .*/run:"):
        mine.start()
    assert worker.stdout is not None
    assert worker.stdout.read().splitlines() == ["undelivered 0"]
    check_complete(tmp_path / "run", server.address, 100)
