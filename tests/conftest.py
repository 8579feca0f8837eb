import os

# The tests' networks are tiny: threads that wait for each other cost more than they
# do. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spectral_mlops import cli
from spectral_mlops.cli import terminal
from spectral_mlops.cohorts import simulate
from spectral_mlops.config import RunConfig, merge, validate

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        type=Path,
        metavar="FOLDER",
        help="Where the browser tests leave their pictures (else below --basetemp).",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background command ignores Ctrl-C, and so would what it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _empty_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work in an empty folder, with nothing about MLflow in the environment."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        if "HTTP" not in name and "TELEMETRY" not in name:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that has its tables; making them takes seconds."""
    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    # In a process of its own: the engine would keep the file open.
    code = f"from spectral_mlops.tracking import open_store; open_store('sqlite:///{path}')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return path


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process; gives exit code, output, error output."""
    for console in (terminal.console, terminal.problems):
        monkeypatch.setattr(console, "width", 300)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spectral-mlops", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 people with 12 networks and no volumes, on disk."""
    folder = tmp_path_factory.mktemp("cohorts") / "small"
    return simulate(folder, "easy", 56, 3, components=12, volumes=False)


@pytest.fixture
def small(small_folder: Path) -> Callable[..., RunConfig]:
    """Settings of a run of seconds; keywords are laid over them."""

    def make(**changes: Any) -> RunConfig:
        cohort = {
            "preset": "easy",
            "people": 56,
            "seed": 3,
            "components": 12,
            "volumes": False,
            "folder": str(small_folder),
        }
        base = {
            "cohort": {"settings": cohort},
            "model": {"settings": {"hidden": [9, 5]}},
            "training": {"epochs": 3, "folds": 2, "batch_size": 8},
            "comparison": {
                "permutations": 19,
                "null_epochs": 2,
                "probe_fraction": 0.45,
            },
        }
        return validate(RunConfig, merge(base, changes), "test")

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; of one module, since it keeps an event loop running."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        # Root has no sandbox of the program's own; it sees our own pages alone.
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
