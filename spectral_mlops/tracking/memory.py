"""Trackers without a store: one keeps everything in lists, one keeps nothing."""

from pathlib import Path
from uuid import uuid4

import pandas as pd

from spectral_mlops.records import CohortSummary, EpochRecord
from spectral_mlops.tracking.base import Status, Tracker
from spectral_mlops.tracking.shards import Kind, table_of


class MemoryTracker(Tracker):
    """Keeps a run in memory.

    Example:
        >>> tracker = MemoryTracker()
        >>> tracker.log_metrics({"final/accuracy": 0.8})
        >>> tracker.history
        [('final/accuracy', 0, 0.8)]

    Attributes:
        name: Given to ``start``.
        params: Parameters as text.
        tags: Tags.
        cohort: The people, if told.
        history: ``(key, step, value)`` of each metric, in order.
        records: Every record, in order.
        tables: Tables by name.
        files: Contents of files by path.
        images: Contents of PNGs by key and step.
        status: ``RUNNING``, then what ``close`` was told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.cohort: CohortSummary | None = None
        self.history: list[tuple[str, int, float]] = []
        self.records: list[EpochRecord] = []
        self.tables: dict[str, pd.DataFrame] = {}
        self.files: dict[str, bytes] = {}
        self.images: dict[tuple[str, int], bytes] = {}
        self.status = "RUNNING"
        self._run_id = uuid4().hex

    @property
    def run_id(self) -> str:
        """A name for the run that no other has."""
        return self._run_id

    @property
    def where(self) -> str:
        """Where to look: at this object."""
        return "in memory: .history, .records, .to_frame()"

    @property
    def undelivered(self) -> int:
        """Always 0."""
        return 0

    def to_frame(self, kind: Kind = "spectra") -> pd.DataFrame:
        """Return all spectra or divergences as `load_run` would."""
        frame: pd.DataFrame = table_of(self.records, kind).to_pandas()
        return frame

    def _start(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        cohort: CohortSummary | None,
    ) -> None:
        self.name, self.params, self.tags = name, params, tags
        self.cohort = cohort

    def _log(
        self, records: list[EpochRecord], metrics: dict[str, float], step: int
    ) -> None:
        self.records += records
        self.history += [(key, step, value) for key, value in metrics.items()]

    def _log_table(self, frame: pd.DataFrame, name: str) -> None:
        self.tables[name] = frame

    def _log_file(self, path: Path, folder: str) -> None:
        self.files[f"{folder}/{path.name}".lstrip("/")] = path.read_bytes()

    def _log_text(self, text: str, name: str) -> None:
        self.files[name] = text.encode()

    def _log_image(self, path: Path, key: str, step: int) -> None:
        self.images[key, step] = path.read_bytes()

    def _log_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def _close(self, status: Status) -> None:
        self.status = status


class NoTracker(Tracker):
    """Checks what it is given, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._run_id = uuid4().hex

    @property
    def run_id(self) -> str:
        """A name for the run that no other has."""
        return self._run_id

    @property
    def where(self) -> str:
        """Nowhere."""
        return "not tracked"

    @property
    def undelivered(self) -> int:
        """Always 0."""
        return 0

    def _start(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        cohort: CohortSummary | None,
    ) -> None:
        pass

    def _log(
        self, records: list[EpochRecord], metrics: dict[str, float], step: int
    ) -> None:
        pass

    def _log_table(self, frame: pd.DataFrame, name: str) -> None:
        pass

    def _log_file(self, path: Path, folder: str) -> None:
        pass

    def _log_text(self, text: str, name: str) -> None:
        pass

    def _log_image(self, path: Path, key: str, step: int) -> None:
        pass

    def _log_tags(self, tags: dict[str, str]) -> None:
        pass

    def _close(self, status: Status) -> None:
        pass
