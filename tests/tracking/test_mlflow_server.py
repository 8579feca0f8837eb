import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from spectral_mlops.errors import TrackingError
from spectral_mlops.tracking import MlflowTracker, open_store
from tests.conformance import TrackerSuite
from tests.tracking.factory import epoch
from tests.tracking.readers import MlflowReader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on the loopback, ended by its process group."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "files")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            env=os.environ | quiet | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert server.poll() is None, "the server ended"
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(url)


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
