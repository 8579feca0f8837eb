"""The image does the main job, locked down, as a user without rights."""

import os
import time
from pathlib import Path

import pytest

from tests.container.stand_in import LOCKED, UID, Podman

SHORT = ("train", "--people=60", "--epochs=2", "--folds=2")
NOBODY = 4242  # a uid the image has never heard of

# The first test of a session also builds the image.
pytestmark = [pytest.mark.container, pytest.mark.slow]


def test_only_what_is_needed_enters(podman: Podman, image: str) -> None:
    listed = podman("run", "--rm", "--entrypoint=ls", image, "-A", "/src").stdout
    assert set(listed.split()) <= {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "spectral_mlops",
    }
    assert {"README.md", "spectral_mlops"} <= set(listed.split())


def test_help(podman: Podman, image: str) -> None:
    answer = podman("run", "--rm", *LOCKED, image, "--help")
    assert "train" in answer.stdout


def test_trains_locked_down(podman: Podman, image: str, out: Path) -> None:
    podman("run", "--rm", *LOCKED, f"--volume={out}:/out", image, *SHORT, timeout=300)
    assert (out / "mlflow.db").stat().st_uid == UID
    assert list(out.glob("cohort/*/participants.tsv"))
    assert list(out.glob("runs/*/config.json"))
    assert list(out.glob("mlruns/**/*.parquet"))


def test_trains_as_any_user_in_any_folder(
    podman: Podman, image: str, out: Path
) -> None:
    # The folder keeps its own name inside, so that the paths MLflow stores of its
    # artifacts are true on the host too.
    os.chown(out, NOBODY, NOBODY)
    place = (f"--volume={out}:{out}", f"--workdir={out}", f"--user={NOBODY}:{NOBODY}")
    podman("run", "--rm", *LOCKED, *place, image, *SHORT, timeout=300)
    assert {path.stat().st_uid for path in out.rglob("*")} == {NOBODY}


def test_bad_input_is_one_sentence_and_a_2(
    podman: Podman, image: str, out: Path
) -> None:
    job = (*LOCKED, f"--volume={out}:/out", image, "train", "--cohort=nonsense")
    answer = podman("run", "--rm", *job, check=False)
    assert answer.returncode == 2
    assert "nonsense" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(out.iterdir())


def test_stop_is_heard(podman: Podman, image: str, out: Path) -> None:
    job = (*LOCKED, f"--volume={out}:/out", "--name=stopped", image, "train")
    podman("run", "--detach", *job)
    deadline = time.monotonic() + 120
    while not (out / "mlflow.db").exists():
        assert time.monotonic() < deadline, podman("logs", "stopped").stdout
        time.sleep(0.5)
    asked = time.monotonic()
    podman("stop", "--time=60", "stopped")
    took = time.monotonic() - asked
    code = podman("inspect", "--format={{.State.ExitCode}}", "stopped").stdout.strip()
    assert took < 10
    # 130 = an interrupted run that ended itself; 137 would be the kill after the
    # patience of `stop`.
    assert code == "130"
