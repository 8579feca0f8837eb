import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import spectral_mlops.tracking", {"mlflow", "torch"}),
        ("from spectral_mlops.tracking import MlflowTracker, load_run", {"torch"}),
    ],
)
def test_heavy_imports_wait(statement: str, absent: set[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not absent & set(answer.stdout.split())
