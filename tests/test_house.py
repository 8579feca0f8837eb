"""The house's own rules: style, types, and imports that go one way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=" ".join,
)
def test_tools_have_nothing_to_say(command):
    words = [str(BIN / command[0]), *command[1:]]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("spectral_mlops", ["torch", "mlflow", "pandas"]),
        ("spectral_mlops.hooks", ["mlflow", "scipy", "pandas", "optuna", "pydantic"]),
        ("spectral_mlops.records", ["torch", "pandas"]),
        ("spectral_mlops.tracking", ["torch", "mlflow"]),
        ("spectral_mlops.report", ["torch", "mlflow"]),
        ("spectral_mlops.inference", ["torch"]),
        ("spectral_mlops.config", ["torch"]),
    ],
)
def test_what_an_import_does_not_bring(package, heavy):
    code = f"import sys, {package}; print([m for m in {heavy!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "[]"


def test_the_public_names_resolve():
    import spectral_mlops

    for name in spectral_mlops.__all__:
        assert getattr(spectral_mlops, name).__name__ == name
    assert set(spectral_mlops.__all__) <= set(dir(spectral_mlops))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spectral_mlops.nothing
