"""What a run has recorded, on this machine's disk, before anything is sent.

``RUN/spool/events.jsonl`` has one line of JSON per event, in order, each with a
number (``seq``) and the time it was logged at. It is only ever appended to, and on the
disk (fsync) before the call that appended returns. ``RUN/spool/acked`` holds the number
of the last event that the store took. An interrupted process therefore leaves at most
half a line, which the next one cuts off, and a resend of what was sent already.

One process at a time writes a spool; a lock, which ends with the process, says so.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from spectral_mlops.errors import InputError, TrackingError

FOLDER = "spool"
EVENTS = "events.jsonl"
KINDS = (
    "start",
    "resume",
    "metrics",
    "records",
    "part",
    "file",
    "table",
    "image",
    "tags",
    "names",
    "end",
)


class Event(NamedTuple):
    """One thing that was logged.

    Attributes:
        seq: Its number, from 1.
        time: When it was logged, ms since 1970.
        kind: What it is.
        body: What belongs to that kind; plain JSON.
        end: Where its line ends in the file, bytes.
    """

    seq: int
    time: int
    kind: str
    body: dict[str, Any]
    end: int

    @property
    def points(self) -> int:
        """How many metrics or files it carries to the store."""
        if self.kind == "metrics":
            return len(self.body["metrics"])
        if self.kind == "part":
            return len(self.body["kinds"])
        return int(self.kind in ("file", "table", "image", "end"))


class Spool:
    """The spool of one run's folder.

    Args:
        root: The run's folder; ``spool/`` is made in it.
        make: Whether to make it if it is not there.

    Raises:
        TrackingError: If another process writes it.
        InputError: If it is not there, or is damaged.
    """

    def __init__(self, root: str | Path, *, make: bool = True) -> None:
        self.root = Path(root).absolute()
        self.folder = self.root / FOLDER
        self.existed = (self.folder / EVENTS).exists()
        if not (make or self.existed):
            raise InputError(f"{self.root} has no {FOLDER}/{EVENTS}: it is no run.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder / "lock", self.root)
        self._file = os.open(
            self.folder / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644
        )
        self._size = self._repaired()
        last = list(self.events())[-1:]
        self._next = last[0].seq + 1 if last else 1
        sync(self.folder)

    @property
    def info(self) -> dict[str, Any]:
        """What `write_info` wrote; nothing if it has not."""
        return read_info(self.root)

    def write_info(self, **values: Any) -> None:
        """Add to what is known of the run as a whole: store, experiment, run id."""
        self._replace("run.json", json.dumps(self.info | values, indent=2) + "\n")

    @property
    def acked(self) -> int:
        """Number of the last event that the store took; 0 if none."""
        return read_acked(self.root)

    @acked.setter
    def acked(self, seq: int) -> None:
        self._replace("acked", f"{seq}\n")

    def append(self, events: Iterable[tuple[int, str, dict[str, Any]]]) -> int:
        """Write events, all of them or none, and wait until they are on the disk.

        Args:
            events: Time in ms, kind and body of each.

        Returns:
            How many points and files they carry.

        Raises:
            OSError: If the disk did not take them; the file is as it was.
        """
        new = [
            Event(seq, time, kind, body, 0)
            for seq, (time, kind, body) in enumerate(events, start=self._next)
        ]
        lines = [
            json.dumps({"seq": e.seq, "time": e.time, "kind": e.kind} | e.body) + "\n"
            for e in new
        ]
        text = "".join(lines).encode()
        try:
            written = 0
            while written < len(text):
                written += os.write(self._file, text[written:])
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(text)
        self._next += len(new)
        return sum(event.points for event in new)

    def events(self, start: int = 0) -> Iterator[Event]:
        """Read events from a place in the file on (see `Event.end`)."""
        yield from read_events(self.root, start)

    def close(self) -> None:
        """Let others write."""
        os.close(self._file)
        os.close(self._lock)

    def _replace(self, name: str, text: str) -> None:
        """Write a small file at once or not at all."""
        path = self.folder / name
        path.with_suffix(".new").write_text(text, encoding="utf-8")
        path.with_suffix(".new").replace(path)

    def _repaired(self) -> int:
        """Cut off half a line that an interrupted process left; return the size."""
        content = (self.folder / EVENTS).read_bytes()
        size = content.rfind(b"\n") + 1
        if size < len(content):
            os.ftruncate(self._file, size)
        return size


def read_events(root: Path, start: int = 0) -> Iterator[Event]:
    """Read a spool without writing to it; half a line at its end is left out.

    Args:
        root: The run's folder.
        start: Where to begin, bytes: the ``end`` of an event.

    Raises:
        InputError: If a line is no event. Paths that lead out of the run's folder
            are refused too, as a folder may come from a stranger.
    """
    path = root / FOLDER / EVENTS
    with path.open("rb") as stream:
        stream.seek(start)
        end = start
        for line in stream:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield _event(line, end, path)


def read_acked(root: Path) -> int:
    """Return the number of the last event that the store took; 0 if none."""
    path = root / FOLDER / "acked"
    text = path.read_text(encoding="utf-8").strip() if path.exists() else "0"
    if not text.isdigit():
        raise InputError(f"{path} holds {text[:20]!r} where a number should stand.")
    return int(text)


def read_info(root: Path) -> dict[str, Any]:
    """Return what is known of a run as a whole."""
    path = root / FOLDER / "run.json"
    if not path.exists():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if not isinstance(read, dict):
        raise InputError(f"{path} cannot be read: it is no table of settings.")
    return read


def inside(root: Path, path: str) -> Path:
    """Return a path of an event as a path on this machine.

    Raises:
        InputError: If it leads out of the run's folder, also by a link.
    """
    plain = PurePosixPath(path)
    whole = (root / plain).resolve()
    if plain.is_absolute() or not whole.is_relative_to(root.resolve()):
        raise InputError(f"{root / FOLDER / EVENTS} names {path}, outside of the run.")
    return whole


def sync_file(path: Path) -> None:
    """Wait until a file and its name are on the disk."""
    sync(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _locked(path: Path, root: Path) -> int:
    """Return the lock file's number, locked for as long as this process lives."""
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(number, 20).decode(errors="replace").strip() or "unknown"
        os.close(number)
        raise TrackingError(
            f"{root} is being written by another process ({holder}): wait until it "
            "has ended, or choose another folder."
        ) from error
    os.ftruncate(number, 0)
    os.pwrite(number, f"{os.getpid()}\n".encode(), 0)
    return number


def _event(line: bytes, end: int, path: Path) -> Event:
    try:
        body = json.loads(line)
        seq, time, kind = (body.pop(name) for name in ("seq", "time", "kind"))
        if kind not in KINDS:
            raise ValueError(f"'{kind}' is no kind of event")
        return Event(int(seq), int(time), kind, body, end)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}, byte {end}: no event can be read ({error}).") from (
            error
        )
