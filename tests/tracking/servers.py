"""Real servers on the loopback, each ended by its own process id."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

LOOPBACK = "127.0.0.1"
S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Server:
    """A program that answers at a port; it may be killed and started again.

    Args:
        words: The command.
        folder: Where it runs and leaves its log.
        port: Where it answers.
        health: Path that it answers over HTTP; if not given, a connection is enough.
        environment: Laid over this process's.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        port: int,
        health: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.address = f"http://{LOOPBACK}:{port}"
        self._words, self._folder, self._port = words, folder, port
        self._health = health
        self._environment = os.environ | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                self._words,
                env=self._environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(480):
            assert self._process.poll() is None, (self._folder / "log").read_text()
            if self._answers():
                return
            time.sleep(0.25)
        self.stop()
        raise TimeoutError(self._words)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the program and what it started; no harm if it has ended."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, how)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.stop(signal.SIGKILL)

    def _answers(self) -> bool:
        try:
            if self._health is None:
                socket.create_connection((LOOPBACK, self._port), 1).close()
            else:
                urlopen(f"{self.address}{self._health}", timeout=5).close()
        except OSError:
            return False
        return True


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


def mlflow_server(
    folder: Path,
    store: str,
    files: str,
    port: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Return a server of few processes, not started; files go through it."""
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    words += ["--host", LOOPBACK, "--port", str(port), "--backend-store-uri", store]
    words += ["--artifacts-destination", files]
    small = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Server(words, folder, port, "/health", small | dict(environment or {}))


def sqlite_server(folder: Path, migrated: Path) -> Server:
    """Return a server on a sqlite database that has its tables, not started."""
    shutil.copyfile(migrated, folder / "mlflow.db")
    return mlflow_server(
        folder, f"sqlite:///{folder / 'mlflow.db'}", str(folder / "files")
    )


def _postgres_program(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's
    path = os.pathsep.join([*map(str, reversed(places)), os.environ.get("PATH", "")])
    return shutil.which(name, path=path)


def without_postgres() -> str:
    """Return why there can be no PostgreSQL here; empty if there can."""
    missing = [name for name in ("initdb", "postgres") if not _postgres_program(name)]
    missing += [name for name in ("psycopg", "moto", "boto3") if not find_spec(name)]
    if missing:
        return f"no {', '.join(missing)} here"
    if os.geteuid() == 0:
        users = [user.pw_name for user in pwd.getpwall()]
        if "postgres" not in users or not shutil.which("setpriv"):
            return "root, and no user postgres or no setpriv to step down to it with"
    return ""


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL of its own; give the address of it, without a database."""
    if why := without_postgres():
        pytest.skip(why)
    # Not below tmp_path, which is root's alone, and too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="spectral-postgres-"))
    step_down: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        step_down = ["setpriv", "--reuid=postgres", "--regid=postgres"]
        step_down += ["--clear-groups"]
    initdb, program = _postgres_program("initdb"), _postgres_program("postgres")
    assert initdb is not None
    assert program is not None
    data, port = str(folder / "data"), free_port()
    make = [*step_down, initdb, "-D", data, "-U", "tester", "--auth=trust", "--no-sync"]
    words = [*step_down, program, "-D", data, "-p", str(port), "-k", str(folder)]
    words += ["-c", f"listen_addresses={LOOPBACK}", "-c", "fsync=off"]
    try:
        subprocess.run(make, cwd=folder, check=True, capture_output=True)
        with running(Server(words, folder, port)):
            yield f"postgresql://tester@{LOOPBACK}:{port}"
    finally:
        shutil.rmtree(folder)


def make_databases(server: str, *names: str) -> None:
    import psycopg

    for _ in range(40):  # it listens before it lets anybody in
        try:
            connection = psycopg.connect(f"{server}/postgres", autocommit=True)
            break
        except psycopg.OperationalError:
            time.sleep(0.25)
    with connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]


@contextmanager
def s3(folder: Path, bucket: str) -> Iterator[str]:
    """Run a stand-in for S3 with one bucket; give its address."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
    with running(Server(words, folder, port, "/moto-api/", S3_KEYS)) as server:
        s3_client(server.address).create_bucket(Bucket=bucket)
        yield server.address


def s3_client(address: str):  # type: ignore[no-untyped-def]
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name=S3_KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
    )
