"""A tracker that writes to the run's own folder: the spool, and nothing else.

What `MlflowTracker` sends comes from here too. The training thread hands what it logs
to one writer (`Writer`), which alone makes tables, writes files and waits for the disk.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from spectral_mlops.errors import TrackingError
from spectral_mlops.records import CohortSummary, EpochRecord
from spectral_mlops.tracking.base import Status, Tracker
from spectral_mlops.tracking.entries import (
    Entry,
    File,
    Plain,
    Records,
    aside,
    record_id,
    write_entries,
)
from spectral_mlops.tracking.metrics import KeyNames
from spectral_mlops.tracking.pending import (
    build_part,
    remove_unrecorded,
)
from spectral_mlops.tracking.shards import KINDS, SCHEMA_VERSION
from spectral_mlops.tracking.spool import FOLDER, Event, Spool, read_info
from spectral_mlops.tracking.writer import Writer

PART = 10
"""Logged epochs in one parquet part."""
BUDGET = 0.02
"""Largest share of an epoch's time that the training thread gives to tracking."""
SLOWEST = 16
"""At least every so many epochs are written, however much time it takes."""

Notice = Callable[[str], None]


@dataclass
class _Past:
    """What is in the spool, of this process and of earlier ones.

    Attributes:
        begun: Whether an earlier process began the run.
        status: How it ended, if it did; what comes after makes it go on.
        people: Digest of the cohort.
        points: Metrics that an earlier process logged, by name and step.
        ids: Records that an earlier process logged, by epoch, source, fold
            and seed.
        tables: Names of tables that an earlier process logged.
        images: Keys and steps of images that an earlier process logged.
        names: State of the keys' names.
        count: How many epochs' records there are, or would be had all parts ten.
        built: How many of them are in a part.
        undelivered: Points and files after the last one that the store took.
    """

    begun: bool = False
    status: str = ""
    people: str = ""
    points: set[tuple[str, int]] = field(default_factory=set)
    ids: set[tuple[Any, ...]] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    images: set[tuple[str, int]] = field(default_factory=set)
    names: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    built: int = 0
    undelivered: int = 0

    @classmethod
    def of(cls, spool: Spool) -> "_Past":
        """Read a spool."""
        past, acked = cls(), spool.acked
        for event in spool.events():
            past.begun = True
            past._take(event)
            past.undelivered += event.points * (event.seq > acked)
        return past

    def _take(self, event: Event) -> None:
        body = event.body
        match event.kind:
            case "start" | "resume":
                self.status = ""
                self.people = (body["cohort"] or {}).get("digest", "")
            case "end":
                self.status = body["status"]
            case "metrics":
                self.points |= {(key, body["step"]) for key in body["metrics"]}
            case "records":
                self.ids |= {(*each,) for each in body["records"]}
                self.count += 1
            case "part":
                self.count += -self.count % PART
                self.built = self.count
            case "table":
                self.tables.add(body["name"].removesuffix(".json"))
            case "image":
                self.images.add((body["key"], body["step"]))
            case "names":
                self.names = body["names"]


class _Pace:
    """How often epochs are written, so that it costs little of their time."""

    def __init__(self) -> None:
        self.every = 1
        self._since = 0
        self._marks: list[tuple[float, float]] = []

    def costs(self, spent: float) -> float:
        """Return the seconds of tracking since the last epoch.

        Args:
            spent: Seconds of tracking since the start.
        """
        self._marks.append((time.perf_counter(), spent))
        self._since += 1
        return spent - (self._marks[-2][1] if len(self._marks) > 1 else 0.0)

    def due(self) -> bool:
        """Return whether it is time to write; then the count begins again."""
        if self._since < self.every:
            return False
        self._since = 0
        return True

    def too_much(self) -> float | None:
        """Return tracking's share of the time, if it is over the budget.

        Shares of less than a second in all, and of fewer than four epochs, are none.
        """
        if len(self._marks) < 4 or self.every >= SLOWEST:
            return None
        (began, before), (now, spent) = self._marks[0], self._marks[-1]
        share = (spent - before) / (now - began)
        if spent - before < 1.0 or share <= BUDGET:
            return None
        self.every *= 2
        self._marks = self._marks[-1:]
        return share


def remove_empty(folder: Path) -> None:
    """Remove an empty folder ``runs/spool/<unique>``, and those around it if empty."""
    for each in (folder, *folder.parents[:2]):
        if any(each.iterdir()):
            return
        each.rmdir()


class SpoolTracker(Tracker):
    """Writes a run to its folder; ``spectral-mlops sync`` can send it later.

    Epochs are on the disk about a second after they were logged, and when ``durable``
    is asked for, so a checkpoint is never ahead of them; all else is there when the
    call returns. A process may be killed at any time. A tracker on the folder of a run
    that did not finish goes on with it: what is logged a second time (a metric's step,
    a record's epoch, a table) is what was recorded the first time, and is left out.

    A disk that is full stops nothing: what it does not take waits in memory and is
    tried again at every call. If logging takes more than 2 % of the thread's time
    between epochs, every second epoch is handed over, then every fourth, the others
    with it; a notice says so, and nothing is left out.

    Args:
        folder: The run's; made if it is not there. If not given,
            ``runs/spool/<unique>`` in the working folder.
        notice: Takes one sentence at a time about what the user should know; the
            log ``spectral_mlops`` if not given.

    Example:
        >>> with SpoolTracker("runs/first") as tracker:  # doctest: +SKIP
        ...     tracker.log(monitor.collect(), metrics={"train/loss": 0.4})
    """

    def __init__(
        self, folder: str | Path | None = None, *, notice: Notice | None = None
    ) -> None:
        super().__init__()
        self._folder_given = folder is not None
        made = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        self.folder = Path(folder or Path("runs") / FOLDER / made).absolute()
        self._notice = notice or logging.getLogger("spectral_mlops").warning
        self._spool: Spool | None = None
        self._writer: Writer[Entry] = Writer(self._bring, self._wrote)
        self._past = _Past()
        self._pace = _Pace()
        self._parts = "part-"
        self._appended = 0
        self._full = ""

    @property
    def run_id(self) -> str:
        """A name for the run that no other has."""
        uid = read_info(self.folder).get("uid")
        if not uid:
            raise TrackingError(
                "There is no run yet: start the tracker or log something."
            )
        return str(uid)

    @property
    def where(self) -> str:
        """The folder, and how to send it."""
        return f"{self.folder}  (spectral-mlops sync {self.folder} sends it to MLflow)"

    @property
    def undelivered(self) -> int:
        """How many points and files the disk has not taken."""
        return self._writer.points[1]

    @property
    def durable(self) -> bool:
        """Whether all that was logged is on the disk; waits until that is tried."""
        began = time.perf_counter()
        self._settle()
        self.seconds += time.perf_counter() - began
        return not self._writer.waiting

    @property
    def resumed(self) -> bool:
        """Whether this goes on with a run that was begun before."""
        return self._past.begun

    def _start(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        cohort: CohortSummary | None,
    ) -> None:
        self._open()
        if self.resumed and self._past.people != (cohort.digest if cohort else ""):
            self._forget()
            raise TrackingError(
                f"The run in {self.folder} was begun with other people: a run goes on "
                "with those that it began with."
            )
        tags = {"spectral.schema_version": SCHEMA_VERSION} | tags
        body = {
            "name": name,
            "params": params,
            "tags": tags,
            "cohort": None if cohort is None else asdict(cohort),
        }
        try:
            self._put(Plain("resume" if self.resumed else "start", body))
            if self._writer.waiting:
                raise TrackingError(f"{self.folder} cannot be written: {self._full}.")
        except BaseException:
            self._forget()
            raise

    def _open(self) -> None:
        """Take the run's folder, and read what an earlier process left in it."""
        try:
            self._spool = Spool(self.folder)
        except OSError as error:
            raise TrackingError(
                f"{self.folder} cannot be written: {error.strerror}."
            ) from error
        self._past = _Past.of(self._spool)
        if self._past.status == "FINISHED":
            self._spool.close()
            raise TrackingError(
                f"The run in {self.folder} has finished: choose another folder."
            )
        if not self._spool.info:
            self._spool.write_info(version=SCHEMA_VERSION, uid=uuid4().hex)
        if self._past.names:
            self._names = KeyNames.of(self._past.names)
            self._dropped = len(self._names.budget.dropped)
            self._names.budget.count(self._past.points)
        self._parts = self._spool.info.get("parts", self._parts)
        remove_unrecorded(self.folder, self._past.count)
        if self._past.count >= self._past.built + PART:  # the last line was lost
            self._end_part()
        self._appended = self._past.undelivered

    def _forget(self) -> None:
        """Leave nothing of a run that could not start."""
        if self._spool is None:
            return
        self._writer.drop()
        self._writer.end()
        self._spool.close()
        if not self._spool.existed:
            shutil.rmtree(self._spool.folder)
            for empty in (self.folder, *self.folder.parents[:2]):
                if (
                    not self._folder_given
                    and empty.exists()
                    and not any(empty.iterdir())
                ):
                    empty.rmdir()
        self._spool = None

    def _log(
        self, records: list[EpochRecord], metrics: dict[str, float], step: int
    ) -> None:
        past = self._past
        new = [r for r in records if record_id(r) not in past.ids]
        if records:
            metrics = metrics | self._names.budget.due(self._costs(), step)
        fresh = {k: v for k, v in metrics.items() if (k, step) not in past.points}
        if new:
            self._writer.add(Records(new, self._part, past.count))
            past.count += 1
        if fresh:
            self._writer.add(Plain("metrics", {"step": step, "metrics": fresh}))
        if (names := self._names.state()) != past.names:
            self._writer.add(Plain("names", {"names": names}))
            past.names = names
        if past.count >= past.built + PART:
            self._end_part()
        if not records or self._pace.due():
            self._heed(self._writer.hand_over())

    def _costs(self) -> dict[str, float]:
        """Return what tracking cost since the last epoch; slow down if too much."""
        costs = {
            "cost/tracking_s": self._pace.costs(self.seconds),
            "cost/pending": float(self.undelivered),
        }
        if share := self._pace.too_much():
            self._notice(
                f"Tracking takes {share:.0%} of the time between epochs: every "
                f"{self._pace.every} epochs are written together from now on."
            )
        return costs

    @property
    def _part(self) -> str:
        """Name of the part that the next records go into."""
        return f"{self._parts}{self._past.built // PART:05d}"

    def _end_part(self) -> None:
        """Say that a part is whole; the next records open another."""
        kinds = list(KINDS)
        self._writer.add(Plain("part", {"part": self._part, "kinds": kinds}))
        self._past.count += -self._past.count % PART
        self._past.built = self._past.count

    def _log_table(self, frame: pd.DataFrame, name: str) -> None:
        if name in self._past.tables:
            return
        text = frame.to_json(orient="split", index=False, date_format="iso")
        path = f"{FOLDER}/tables/{name}.json"
        self._put(File("table", path, {"name": f"{name}.json"}, text.encode()))

    def _log_file(self, path: Path, folder: str) -> None:
        self._put(self._lying(path, "file", {"folder": folder}))

    def _log_image(self, path: Path, key: str, step: int) -> None:
        if (key, step) not in self._past.images:
            self._put(self._lying(path, "image", {"key": key, "step": step}))

    def _log_tags(self, tags: dict[str, str]) -> None:
        self._writer.add(Plain("tags", {"tags": tags}))
        self._heed(self._writer.hand_over())

    def _log_text(self, text: str, name: str) -> None:
        folder = str(Path(name).parent)
        folder = "" if folder == "." else folder
        content = text.encode()
        self._put(File("file", aside(content, name), {"folder": folder}, content))

    def _lying(self, path: Path, kind: str, body: dict[str, Any]) -> File:
        """Return the entry of a file; one from elsewhere is put aside."""
        own = path.absolute()
        if own.is_relative_to(self.folder):
            return File(kind, own.relative_to(self.folder).as_posix(), body)
        content = path.read_bytes()
        return File(kind, aside(content, path.name), body, content)

    def _put(self, *entries: Entry) -> None:
        self._writer.add(*entries)
        self._settle()

    def _bring(self, entries: list[Entry]) -> int:
        return write_entries(entries, self.spool)

    def _settle(self) -> None:
        """Bring what waits to the disk; what it does not take waits on."""
        self._heed(self._writer.settle())

    def _heed(self, error: OSError | None) -> None:
        """Say that the disk does not take anything, once."""
        if error is not None and not self._full:
            self._notice(
                f"{self.folder} cannot be written ({error.strerror}): what is "
                "logged waits in memory and is tried again at every call."
            )
        self._full = "" if error is None else str(error.strerror)

    def _wrote(self) -> None:
        """Called by the writer's thread when something new is in the spool."""

    def _close(self, status: Status) -> None:
        if self._past.count > self._past.built:
            self._end_part()
        self._put(Plain("end", {"status": status}))
        self._writer.end()
        self._deliver()
        self.spool.close()

    def _deliver(self) -> None:
        """Do with what is in the spool what this tracker does at its end."""
        for event in self.spool.events():
            if event.kind == "part":
                build_part(self.folder, event.body["part"])

    @property
    def spool(self) -> Spool:
        """The open spool; `TrackingError` before ``start``."""
        if self._spool is None:
            raise TrackingError("This tracker has not been started.")
        return self._spool
