"""The journal of a study's SQLite file, which decides what its writes wait for."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from spectral_mlops.sweeps import sqlite
from spectral_mlops.sweeps.sqlite import is_local
from spectral_mlops.sweeps.storage import open_storage
from tests.conftest import ROOT

MOUNTS = """\
22 1 0:3 / / rw - ext4 /dev/sda rw
23 22 0:4 / /home rw,relatime shared:1 - nfs4 server:/home rw
24 22 0:5 / /home/me/my\\040disk rw - xfs /dev/sdb rw
25 22 0:6 / /data rw - btrfs /dev/sdc rw
26 22 0:7 / /data rw - fuse.sshfs elsewhere: rw
"""
STORAGE = "sqlite:///optuna.db"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_local.cache_clear()
    yield
    is_local.cache_clear()


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """Let the system say where which file system is."""

    def said(lines):
        path = tmp_path / "mountinfo"
        path.write_text(lines)
        monkeypatch.setattr(sqlite, "_MOUNTS", path)
        is_local.cache_clear()

    return said


def pragma(storage, name):
    with storage.engine.connect() as link:
        return link.execute(text(f"PRAGMA {name}")).scalar()


def in_a_process(*lines):
    """Write two studies, then do as the lines say."""
    program = [
        "import os, optuna, signal",
        "from spectral_mlops.sweeps.storage import open_storage",
        f"storage = open_storage({STORAGE!r})",
        "for name in 'ab':",
        "    optuna.create_study(study_name=name, storage=storage)",
        *lines,
    ]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(program)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    ).returncode


def names_by_plain_sqlite():
    link = sqlite3.connect("optuna.db")
    found = link.execute("SELECT study_name FROM studies ORDER BY 1").fetchall()
    link.close()
    return [name for (name,) in found]


@pytest.mark.parametrize(
    ("folder", "local"),
    [
        ("/", True),
        ("/srv/deep/down", True),
        ("/home", False),
        ("/home/me/my", False),
        ("/home/me/my disk/studies", True),
        ("/homes", True),
        ("/data", False),  # mounted over
    ],
)
def test_only_disks_of_this_machine_are_local(mounts, folder, local):
    mounts(MOUNTS)
    assert is_local(Path(folder)) is local


def test_where_the_system_does_not_say_nothing_is_local(monkeypatch):
    monkeypatch.setattr(sqlite, "_MOUNTS", Path("nowhere"))
    assert not is_local(Path("/"))


def test_a_local_file_has_a_log_and_a_shared_one_has_not(mounts):
    mounts("22 1 0:3 / / rw - xfs /dev/sda rw\n")
    opened = open_storage(STORAGE)
    assert pragma(opened, "journal_mode") == "wal"
    assert pragma(opened, "synchronous") == 1  # NORMAL
    opened.engine.dispose()
    mounts("22 1 0:3 / / rw - nfs server:/ rw\n")  # it was moved there
    opened = open_storage(STORAGE)
    assert pragma(opened, "journal_mode") == "delete"
    assert pragma(opened, "synchronous") == 2  # FULL
    opened.engine.dispose()


def test_a_database_in_memory_is_left_alone():
    assert pragma(open_storage("sqlite:///:memory:"), "journal_mode") == "memory"


def test_a_process_that_ends_leaves_one_whole_file(mounts):
    mounts("22 1 0:3 / / rw - ext4 /dev/sda rw\n")
    assert in_a_process() == 0
    assert sorted(path.name for path in Path().glob("optuna*")) == ["optuna.db"]
    assert names_by_plain_sqlite() == ["a", "b"]


def test_a_killed_process_loses_nothing():
    if not is_local(Path.cwd()):
        pytest.skip("this folder is on no disk that is known to be local")
    assert in_a_process("os.kill(os.getpid(), signal.SIGKILL)") == -9
    assert Path("optuna.db-wal").stat().st_size  # the proof is of the log
    assert names_by_plain_sqlite() == ["a", "b"]
