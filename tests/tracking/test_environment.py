import subprocess
import sys

import pytest

from spectral_mlops.tracking import environment


@pytest.fixture(autouse=True)
def ask_anew():
    """Ask git in every test: a process remembers the first answer."""
    environment._git_state.cache_clear()
    yield
    environment._git_state.cache_clear()


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_commit_and_changes_of_the_scripts_repository(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    script = tmp_path / "train.py"
    script.write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(
        sys, "argv", [str(script), "--epochs", "3", "a b", "http://me:secret@x"]
    )
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert environment.git_state() == (commit, "false")
    (tmp_path / "new.txt").write_text("not known to git\n")
    environment._git_state.cache_clear()
    assert environment.git_state() == (commit, "false")
    script.write_text("2\n")
    assert environment.git_state() == (commit, "false")  # what runs was loaded before
    environment._git_state.cache_clear()
    assert environment.git_state() == (commit, "true")
    text = environment.environment_text("cuda:0 (a card)")
    assert f"git commit: {commit}" in text
    assert "git changes: yes, not committed" in text
    assert "command: train.py --epochs 3 'a b' http://me:***@x" in text
    assert "device: cuda:0 (a card)" in text
    assert f"numpy=={__import__('numpy').__version__}" in text
    assert str(tmp_path) not in text
    tags = environment.environment_tags("cpu")
    assert tags["spectral.git_dirty"] == "true"
    assert tags["spectral.device"] == "cpu"
    assert int(tags["spectral.cores"]) >= 1
    assert all(isinstance(x, str) and x and len(x) < 8000 for x in tags.values())


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.git_state() == ("", "")
    assert "spectral.git_commit" not in environment.environment_tags("cpu")
    assert "not in a git repository" in environment.environment_text("cpu")


def test_memory_is_the_systems():
    with open("/proc/meminfo", encoding="ascii") as stream:
        total = int(stream.readline().split()[1]) * 1024
    assert abs(environment.memory_bytes() / total - 1) < 0.01
