"""Who writes, when, and what is left of it if the process is killed: by counting."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spectral_mlops.config import RunConfig
from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking import SpoolTracker, writer
from spectral_mlops.tracking.load import load_records
from spectral_mlops.tracking.pending import RECORDS, write_pending
from spectral_mlops.tracking.spool import Spool, read_events
from spectral_mlops.tracking.writer import DEPTH, Writer
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.checkpoint import Checkpoints
from tests.conftest import ROOT
from tests.tracking.factory import Epoch, divergence, epoch, in_order, record, same


@dataclass(frozen=True)
class Entry:
    name: str
    points: int = 1


class Disk:
    """Takes entries, unless told not to, once it is let."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.fault: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.writer: Writer[Entry] = Writer(self.take, lambda: None)

    def take(self, entries: list[Entry]) -> int:
        self.free.wait()
        if self.fault is not None:
            raise self.fault
        self.taken += [entry.name for entry in entries]
        return len(entries)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(writer, "GATHER", 3600.0)
    return Disk()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written that nobody waits for."""
    monkeypatch.setattr(writer, "GATHER", 3600.0)


def recorded(folder: Path) -> int:
    return sum(event.kind == "records" for event in read_events(folder))


def writers() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "spectral-writer"}


def test_entries_are_written_in_order_and_counted(disk: Disk) -> None:
    others = writers()  # of trackers that other tests left open
    for name in "abc":
        disk.writer.add(Entry(name))
        assert disk.writer.hand_over() is None
    assert disk.taken == []
    assert disk.writer.points == (0, 3)
    assert disk.writer.settle() is None
    assert disk.taken == ["a", "b", "c"]
    assert disk.writer.points == (3, 0)
    disk.writer.add(Entry("d"))
    disk.writer.end()
    assert disk.taken == ["a", "b", "c", "d"]
    assert writers() <= others


def test_what_the_disk_does_not_take_is_kept_and_said(disk: Disk) -> None:
    disk.fault = OSError(28, "No space left on device")
    disk.writer.add(Entry("a"))
    assert disk.writer.settle() is disk.fault
    for _ in range(3 * DEPTH):  # waits for nothing: memory takes it
        disk.writer.add(Entry("b"))
        assert disk.writer.hand_over() is disk.fault
    disk.fault = None
    assert disk.writer.settle() is None
    assert disk.taken == ["a", *"b" * 3 * DEPTH]
    disk.writer.end()


def test_any_other_error_is_raised_where_the_next_call_is_made(disk: Disk) -> None:
    disk.fault = ValueError("a bug")
    disk.writer.add(Entry("a"))
    for _ in range(2):
        with pytest.raises(ValueError, match="a bug"):
            disk.writer.settle()
    with pytest.raises(ValueError, match="a bug"):
        disk.writer.hand_over()
    disk.fault = None
    disk.writer.settle()
    assert disk.taken == ["a"]
    disk.writer.end()


def test_who_is_far_ahead_waits_for_the_disk(disk: Disk) -> None:
    disk.free.clear()
    names = [str(n) for n in range(DEPTH + 1)]
    for name in names[:-1]:
        disk.writer.add(Entry(name))
        disk.writer.hand_over()

    def one_more() -> None:
        disk.writer.add(Entry(names[-1]))
        disk.writer.hand_over()

    ahead = threading.Thread(target=one_more)
    ahead.start()
    ahead.join(0.2)
    assert ahead.is_alive()
    disk.free.set()
    ahead.join()
    disk.writer.end()
    assert disk.taken == names


def test_the_thread_that_trains_neither_writes_nor_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = SpoolTracker("run")
    tracker.start()
    threads: dict[str, list[str]] = {}

    def watched(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **named: object) -> object:
            threads.setdefault(name, []).append(threading.current_thread().name)
            return real(*args, **named)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        *(
            (os, "fsync"),
            (os, "write"),
            (pq, "write_table"),
            (pq.ParquetWriter, "write_table"),
        ),
        ("spectral_mlops.tracking.pending", "table_of"),
    ):
        watched(sys.modules[owner] if isinstance(owner, str) else owner, name)
    for number in range(25):
        tracker.log(epoch(number), {"train/loss": 0.5})
    assert tracker.durable
    assert {name for some in threads.values() for name in some} == {"spectral-writer"}
    assert {"fsync", "write", "write_table", "table_of"} <= threads.keys()
    tracker.close()


@pytest.mark.usefixtures("patient")
def test_epochs_that_wait_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = SpoolTracker("run")
    tracker.start()
    for number in range(3):
        tracker.log(epoch(number))
    assert recorded(tracker.folder) == 0
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (synced.append(n), fsync(n))[1])
    assert tracker.durable
    assert len(synced) == 4  # two files, their folder, the events
    assert recorded(tracker.folder) == 3
    files = [path.name for path in (tracker.folder / RECORDS).glob("*/*")]
    assert sorted(files) == ["000000-divergences.parquet", "000000-spectra.parquet"]
    assert tracker.durable
    assert len(synced) == 4
    tracker.close()
    expected = in_order([r for n in range(3) for r in epoch(n).records])
    assert all(map(same, in_order(load_records(tracker.folder)), expected))


@pytest.mark.usefixtures("patient")
def test_batches_across_the_end_of_a_part_and_a_disk_that_was_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    tracker = SpoolTracker("run", notice=said.append)
    tracker.start()
    append = Spool.append

    def full(self: Spool, events: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    for number in range(7):
        tracker.log(epoch(number))
    assert not tracker.durable
    assert len(said) == 1
    monkeypatch.setattr(Spool, "append", append)
    for number in range(7, 23):
        tracker.log(epoch(number))
    tracker.close()
    assert len(said) == 1
    stored = in_order(load_records(tracker.folder))
    expected = in_order([r for n in range(23) for r in epoch(n).records])
    assert len(stored) == len(expected)
    assert all(map(same, stored, expected))


def test_files_that_a_killed_process_never_spoke_of_are_made_anew() -> None:
    tracker = SpoolTracker("run")
    tracker.start()
    tracker.log(epoch(0))
    assert tracker.durable
    tracker.spool.close()  # as the end of the process does
    written = [r for n in (1, 2) for r in epoch(n).records]
    write_pending(tracker.folder, "part-00000", 1, written)
    write_pending(tracker.folder, "part-00001", 10, epoch(10).records)
    plain = EpochRecord(1, "train", record(1).spectra)  # has no divergences
    with SpoolTracker("run") as again:
        again.log(Epoch([plain]))
        assert again.durable
        again.log(epoch(2))
    expected = in_order([*epoch(0).records, plain, *epoch(2).records])
    stored = in_order(load_records("run"))
    assert len(stored) == len(expected)
    assert all(map(same, stored, expected))


@pytest.mark.usefixtures("patient")
def test_a_checkpoint_is_never_ahead_of_what_is_recorded(
    small: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(small(), Path.cwd())
    saved: list[tuple[int, int]] = []
    save = Checkpoints.save
    folder = tmp_path / "run"

    def watched(self: Checkpoints, number: int, *rest: object) -> None:
        ids = [e.body["records"] for e in read_events(folder) if e.kind == "records"]
        saved.append((number, max(each[0] for some in ids for each in some)))
        save(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoints, "due", lambda _: True)
    monkeypatch.setattr(Checkpoints, "save", watched)
    with SpoolTracker(folder) as tracker:
        run(plan, tracker, folder, name="one")
    epochs = plan.config.training.epochs
    assert saved == [(number, number) for number in range(epochs - 1)]


def test_a_process_that_forgets_to_close_loses_nothing(tmp_path: Path) -> None:
    code = (
        "from spectral_mlops.tracking import SpoolTracker, pending, writer\n"
        "from tests.tracking.factory import epoch\n"
        "writer.GATHER = 3600.0\n"
        f"tracker = SpoolTracker({str(tmp_path / 'run')!r})\n"
        "tracker.log(epoch(0))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert recorded(tmp_path / "run") == 1


def test_a_record_that_cannot_be_written_ends_the_call_that_follows() -> None:
    row = divergence()
    object.__setattr__(row, "n_a", "many")
    tracker = SpoolTracker("run")
    tracker.log(Epoch([EpochRecord(0, "train", (), (row,))]))
    with pytest.raises(Exception, match="many"):
        _ = tracker.durable
    tracker._writer.drop()
    tracker.close()
