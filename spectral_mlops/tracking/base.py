"""The contract of all trackers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import (
    Literal,
    Protocol,
    Self,
    SupportsFloat,
    SupportsIndex,
    runtime_checkable,
)

import pandas as pd

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.records import CohortSummary, EpochRecord
from spectral_mlops.tracking.checks import (
    PARAM_LIMIT,
    TAG_LIMIT,
    Scalar,
    check_image,
    check_key,
    check_metrics,
    check_name,
    check_step,
    check_table,
    check_texts,
    finite_only,
)
from spectral_mlops.tracking.metrics import KeyNames, record_metrics
from spectral_mlops.tracking.profiles import PROFILES, STANDARD

Status = Literal["FINISHED", "FAILED", "KILLED"]
STATUSES: tuple[Status, ...] = ("FINISHED", "FAILED", "KILLED")


@runtime_checkable
class Recordable(Protocol):
    """What one epoch left behind; nothing else is known of it."""

    def to_records(self) -> list[EpochRecord]:
        """Return the epoch's records, all of one epoch number."""


@runtime_checkable
class Releasable(Protocol):
    """A `Recordable` that holds something large until it has been logged."""

    def release(self) -> None:
        """Free what was kept; called once its records were taken."""


class Tracker(ABC):
    """Takes what a run produces and puts it where it can be found again.

    *Life cycle.* ``start``, any number of ``log…``, ``close``. Logging without
    ``start`` makes a nameless run on first use. After ``close`` every call but
    ``close`` itself raises `TrackingError`; closing again does nothing, so the
    first status stands. As a context manager a tracker closes itself: FINISHED,
    KILLED after a keyboard interrupt, FAILED after any other exception, which
    goes on its way.

    *Threads.* A tracker belongs to one thread at a time. Different trackers may
    be used in different threads at once and never see one another.

    *Ownership.* Records, mappings and frames are read during the call, never
    changed, and may be changed by the caller afterwards. Files are read during
    the call, or kept aside, so they may be deleted afterwards.

    *What is raised.* Input that no store could take raises `InputError` before
    anything is written. ``start`` raises `TrackingError` if the store cannot be
    used. Once started, a store that goes away raises nothing: training goes on,
    what could not be delivered is kept, tried again at the next call, counted in
    ``undelivered`` and written to disk by ``close``.

    *What is stored.* The step of everything is the epoch number. Of the records,
    the spectra are kept in full and the few scalars of `record_metrics` become
    metrics. The run's profile (`tracking.profiles`) says how many keys and points
    there may be; the caller's metrics go first, and the tag
    ``spectral.dropped_keys`` names what there was no room for. A value that is not
    finite never becomes a metric; how many of the caller's were left out stands in
    ``nonfinite/metrics``.

    Subclasses write the private methods; the public ones hold the checks and are
    not overridden.

    Attributes:
        seconds: Time that ``log`` and ``durable`` took of the thread that called them,
            so far; waiting for a disk that is behind included.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._stage: Literal["new", "started", "closed"] = "new"
        self._names = KeyNames()
        self._tables: set[str] = set()
        self._dropped = 0

    @property
    @abstractmethod
    def run_id(self) -> str:
        """Name of the run in its store; `TrackingError` while there is none."""

    @property
    @abstractmethod
    def where(self) -> str:
        """One line that says how to look at the run."""

    @property
    @abstractmethod
    def undelivered(self) -> int:
        """How many points and files have not reached the store."""

    @property
    def durable(self) -> bool:
        """Whether all that was logged would outlive this process.

        Waits until what is still being written is, or cannot be.
        """
        return True

    @abstractmethod
    def _start(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        cohort: CohortSummary | None,
    ) -> None:
        """Make or attach the run. Raises `TrackingError`, then nothing is left."""

    @abstractmethod
    def _log(
        self, records: list[EpochRecord], metrics: dict[str, float], step: int
    ) -> None:
        """Store records (maybe none) and finite metrics of one step."""

    @abstractmethod
    def _log_table(self, frame: pd.DataFrame, name: str) -> None:
        """Store one table."""

    @abstractmethod
    def _log_file(self, path: Path, folder: str) -> None:
        """Store one file that exists."""

    @abstractmethod
    def _log_text(self, text: str, name: str) -> None:
        """Store one text under a relative path."""

    @abstractmethod
    def _log_image(self, path: Path, key: str, step: int) -> None:
        """Store one picture of a step."""

    @abstractmethod
    def _log_tags(self, tags: dict[str, str]) -> None:
        """Add tags, or write others over them."""

    @abstractmethod
    def _close(self, status: Status) -> None:
        """Deliver what is left and end the run; a store that is away is no error."""

    def start(
        self,
        name: str = "",
        params: Mapping[str, Scalar] | None = None,
        tags: Mapping[str, str] | None = None,
        cohort: CohortSummary | None = None,
        *,
        profile: str = STANDARD.name,
        epochs: int | None = None,
    ) -> None:
        """Begin the run.

        Args:
            name: Shown in lists; the store chooses one if empty.
            params: Settings, flat; texts up to 6000 characters.
            tags: What runs are found and grouped by; up to 8000 characters.
            cohort: The people the run is trained on.
            profile: How many metrics and points there may be: ``sweep``, ``standard``
                or ``full``.
            epochs: How long the run will be, if that is known: points are then evenly
                spaced, the last epoch among them.

        Raises:
            InputError: If a parameter or tag cannot be kept as it is, or there is no
                such profile.
            TrackingError: If the run has begun or ended, or the store cannot be
                used.
        """
        if self._stage != "new":
            raise TrackingError(
                f"This tracker has {self._stage} already: start it once, before "
                "anything is logged."
            )
        self._names = KeyNames(PROFILES.get(profile), epochs)
        self._start(
            name,
            check_texts(params or {}, "Parameter", PARAM_LIMIT),
            check_texts(tags or {}, "Tag", TAG_LIMIT),
            cohort,
        )
        self._stage = "started"

    def log(
        self, epoch: Recordable, metrics: Mapping[str, SupportsFloat] | None = None
    ) -> None:
        """Store one epoch: its records, and scalars beside them.

        Args:
            epoch: Anything with ``to_records()``; if it has ``release()`` too,
                that is called when the records were taken.
            metrics: Names such as ``train/loss`` and numbers.

        Raises:
            InputError: If the records are of several epochs, or a metric has no
                usable name or value, or a name that the records' own have.
        """
        self._begin()
        began = time.perf_counter()
        given = check_metrics(metrics or {})
        records = epoch.to_records()
        epochs = sorted({record.epoch for record in records})
        if len(epochs) != 1:
            raise InputError(
                f"log() takes the records of one epoch, and got those of {epochs}: "
                "log epoch by epoch (log_metrics takes numbers alone)."
            )
        derived = record_metrics(records, self._names)
        if clash := sorted(derived.keys() & given.keys()):
            raise InputError(
                f"Metric '{clash[0]}' is computed from the records: choose another "
                "name for yours."
            )
        own = self._names.budget.fit("own", finite_only(given))
        self._log(records, self._names.budget.due(own | derived, epochs[0]), epochs[0])
        self._note_dropped()
        if isinstance(epoch, Releasable):
            epoch.release()
        self.seconds += time.perf_counter() - began

    def log_metrics(
        self, metrics: Mapping[str, SupportsFloat], step: SupportsIndex = 0
    ) -> None:
        """Store numbers alone, such as ``final/accuracy`` at the end.

        Raises:
            InputError: If a name, a value or the step is unusable.
        """
        self._begin()
        step, budget = check_step(step), self._names.budget
        own = budget.fit("own", finite_only(check_metrics(metrics)))
        self._log([], budget.due(own, step), step)
        self._note_dropped()

    def log_table(self, frame: pd.DataFrame, name: str) -> None:
        """Store one small table at the end of a run, to be compared across runs.

        Args:
            frame: Texts and numbers; a copy is taken.
            name: Without an ending, such as ``layers``.

        Raises:
            InputError: If the name is unusable or was used before (appending
                would read and write the whole table again), or if the frame
                cannot be written as JSON.
        """
        self._begin()
        if check_name(name, "Table") in self._tables:
            raise InputError(f"Table '{name}' is written already; a table is final.")
        self._log_table(check_table(frame, name), name)
        self._tables.add(name)

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Store a file under its own name, in ``folder`` of the run's files.

        Raises:
            InputError: If there is no such file, or the folder is unusable.
        """
        self._begin()
        if not Path(path).is_file():
            raise InputError(f"There is no file {path} to log.")
        self._log_file(Path(path), check_name(folder, "Folder") if folder else "")

    def log_text(self, text: str, name: str) -> None:
        """Store a text as a file, such as ``config.toml``.

        Raises:
            InputError: If the name is unusable.
        """
        self._begin()
        self._log_text(text, check_name(name, "File"))

    def log_image(self, path: str | Path, key: str, step: SupportsIndex = 0) -> None:
        """Store a picture of one step; those of one key are shown with a slider.

        Args:
            path: A PNG; a few hundred pixels wide, as many are shown at once.
            key: Such as ``maps/erank``: letters, digits, ``_ . / - space``.
            step: The epoch.

        Raises:
            InputError: If it is no PNG, or key or step are unusable.
        """
        self._begin()
        self._log_image(check_image(Path(path)), check_key(key), check_step(step))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run, or write others over them.

        Raises:
            InputError: If a tag cannot be kept as it is.
        """
        self._begin()
        self._log_tags(check_texts(tags, "Tag", TAG_LIMIT))

    def close(self, status: Status = "FINISHED") -> None:
        """End the run and deliver what is left; again and again does nothing.

        Raises:
            InputError: If the status is not one of the three.
        """
        if status not in STATUSES:
            raise InputError(f"status='{status}': choose one of {', '.join(STATUSES)}.")
        if self._stage == "closed":
            return
        started, self._stage = self._stage == "started", "closed"
        if started:
            self._close(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    @property
    def names(self) -> KeyNames:
        """Which groups, layers and keys the run's metrics have."""
        return self._names

    def _note_dropped(self) -> None:
        budget = self._names.budget
        if len(budget.dropped) > self._dropped:
            self._dropped = len(budget.dropped)
            self._log_tags({"spectral.dropped_keys": budget.note()})

    def _begin(self) -> None:
        if self._stage == "closed":
            raise TrackingError("This tracker is closed: nothing more can be logged.")
        if self._stage == "new":
            self.start()
