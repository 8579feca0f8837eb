"""What was logged and is not on the disk yet, and how it gets there."""

import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking.pending import write_pending
from spectral_mlops.tracking.spool import FOLDER, Event, Spool, sync_file


def record_id(record: EpochRecord) -> tuple[int, str, int, int]:
    """Return what tells a record from all others of its run."""
    return record.epoch, record.source, record.fold, record.seed


class Entry(Protocol):
    """Something logged that is not on the disk yet."""

    @property
    def points(self) -> int:
        """How many points and files it is."""

    def write(self, root: Path) -> tuple[int, str, dict[str, Any]]:
        """Write its files, but not those of records, and return its event."""


@dataclass(frozen=True)
class Plain:
    """An event without a file."""

    kind: str
    body: dict[str, Any]
    time: int = field(default_factory=lambda: int(time.time() * 1000))

    @property
    def points(self) -> int:
        """See `Entry`."""
        return Event(0, 0, self.kind, self.body, 0).points

    def write(self, root: Path) -> tuple[int, str, dict[str, Any]]:
        """See `Entry`."""
        return self.time, self.kind, self.body


@dataclass(frozen=True)
class Records:
    """An epoch's records, the ``number``-th that were logged."""

    records: list[EpochRecord]
    part: str
    number: int
    time: int = field(default_factory=lambda: int(time.time() * 1000))

    @property
    def points(self) -> int:
        """See `Entry`."""
        return 1

    def write(self, root: Path) -> tuple[int, str, dict[str, Any]]:
        """See `Entry`."""
        ids = [list(record_id(record)) for record in self.records]
        return self.time, "records", {"part": self.part, "records": ids}


@dataclass(frozen=True)
class File:
    """A file, table or image: one that lies in the run's folder, or is put there."""

    kind: str
    path: str
    body: dict[str, Any]
    content: bytes | None = None
    time: int = field(default_factory=lambda: int(time.time() * 1000))
    points: int = 1

    def write(self, root: Path) -> tuple[int, str, dict[str, Any]]:
        """See `Entry`."""
        if self.content is not None:
            target = root / self.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.content)
            sync_file(target)
        return self.time, self.kind, {"path": self.path} | self.body


def write_entries(entries: list[Entry], spool: Spool) -> int:
    """Bring entries to the disk, in order; records of one part go into one file.

    Returns:
        How many points and files they are.

    Raises:
        OSError: If the disk did not take them; then the spool has none of them.
    """
    parts: dict[str, list[Records]] = {}
    for entry in entries:
        if isinstance(entry, Records):
            parts.setdefault(entry.part, []).append(entry)
    for part, some in parts.items():
        records = [record for entry in some for record in entry.records]
        write_pending(spool.root, part, some[0].number, records)
    return spool.append([entry.write(spool.root) for entry in entries])


def aside(content: bytes, name: str) -> str:
    """Return where in a run's folder a file from elsewhere is kept."""
    return f"{FOLDER}/files/{sha256(content).hexdigest()[:16]}/{Path(name).name}"
