import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with nothing about MLflow in the environment."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        if "HTTP" not in name and "TELEMETRY" not in name:
            monkeypatch.delenv(name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


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
