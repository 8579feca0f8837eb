"""SQLite as a study uses it: many small writes, each a wait for the disk.

On a disk of this machine the database keeps a write-ahead log (WAL): a write then waits
for no disk, and nobody who reads waits for one who writes. A process that is killed
loses nothing. A machine that loses its power may lose the latest writes of a study,
and never the file: trials whose runs are in MLflow already are then orphans that
`reconcile` tags. The log lies beside the database as ``-wal`` until the last process
closes it, and belongs to it.

The log works within one machine only, so a disk that others may share is left with
SQLite's own journal.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

WAIT = 60
"""Seconds that SQLite waits for others to have written."""
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs")
"""File systems of one machine; what is not listed may be shared."""
_MOUNTS = Path("/proc/self/mountinfo")


def connection_settings(storage: str) -> dict[str, Any]:
    """Return what an engine needs where several processes use one database."""
    if make_url(storage).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": WAIT, "factory": Connection}}
    return {"pool_pre_ping": True}


class Connection(sqlite3.Connection):
    """A connection that has seen to the journal of its database."""

    def __init__(self, database: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(database, *args, **kwargs)
        if database.startswith("file:"):  # whoever says how it is opened knows
            return
        mode = self._journal()
        wanted = "wal" if is_local(Path(database).resolve().parent) else "delete"
        if mode in ("wal", "delete") and mode != wanted:
            with suppress(sqlite3.OperationalError):  # in use, or not to be written
                mode = self._journal(f"={wanted}")
        if mode == "wal":
            self.execute("PRAGMA synchronous=NORMAL")

    def _journal(self, change: str = "") -> str:
        return str(self.execute(f"PRAGMA journal_mode{change}").fetchone()[0])


@cache
def is_local(folder: Path) -> bool:
    """Tell whether a folder is certainly on a disk of this machine alone."""
    mounts = [(m, kind) for m, kind in _mounts() if folder.is_relative_to(m)]
    # The last one on a place lies over those before it.
    deepest = max(mounts, key=lambda mount: len(mount[0].parts), default=None)
    return deepest is not None and deepest[1] in LOCAL


def _mounts() -> Iterator[tuple[Path, str]]:
    """Give places and kinds of file systems, the latest first; none if unknown."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):  # no Linux
        return
    for line in reversed(lines):
        place, kind = line.split()[4], line.partition(" - ")[2].split()[0]
        yield Path(place.replace("\\040", " ")), kind
