"""What is on its way to a run, kept until the store has taken it.

A later version puts a spool on disk and an uploader thread behind the same two
calls, ``put`` and ``deliver``.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Metric

BATCH = 1000  # more metrics in one request are refused by servers
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")


class Item(Protocol):
    """Something that can be sent, or saved instead."""

    @property
    def points(self) -> int:
        """How many points or files it is."""

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Hand it to the store; sending it twice leaves it there once."""

    def save(self, folder: Path) -> None:
        """Write it under a folder on this machine."""


@dataclass(frozen=True)
class Points:
    """Metrics with the time they were logged at, which makes a resend harmless."""

    metrics: tuple[Metric, ...]

    @property
    def points(self) -> int:
        """Number of metrics."""
        return len(self.metrics)

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Send them in one request, or in pieces of 1000."""
        for start in range(0, len(self.metrics), BATCH):
            piece = self.metrics[start : start + BATCH]
            client.log_batch(run_id, metrics=piece, synchronous=True)

    def save(self, folder: Path) -> None:
        """Append one line of JSON per metric to ``metrics.jsonl``."""
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            for m in self.metrics:
                line = {"key": m.key, "value": m.value, "step": m.step}
                stream.write(json.dumps(line | {"timestamp": m.timestamp}) + "\n")


@dataclass(frozen=True)
class File:
    """A file for a folder of the run."""

    path: Path
    folder: str
    points: int = 1

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Upload it under its own name; again overwrites it with itself."""
        client.log_artifact(run_id, str(self.path), self.folder or None)

    def save(self, folder: Path) -> None:
        """Copy it to where it would stand in the run."""
        target = folder / self.folder / self.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, target)


@dataclass(frozen=True, eq=False)
class Table:
    """A table that the user interface compares across runs."""

    frame: pd.DataFrame
    path: str
    points: int = 1

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Write it, unless an attempt that seemed to fail has."""
        parent = str(Path(self.path).parent)
        there = client.list_artifacts(run_id, None if parent == "." else parent)
        if self.path not in [item.path for item in there]:
            # NOTE: MLflow 3.17 warns on pandas 3 text columns; objects are the same.
            frame = self.frame.copy()
            for column in frame.columns:
                if isinstance(frame[column].dtype, pd.StringDtype):
                    frame[column] = frame[column].astype(object)
            client.log_table(run_id, frame, self.path)

    def save(self, folder: Path) -> None:
        """Write the same JSON."""
        target = folder / self.path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.frame.to_json(target, orient="split", index=False, date_format="iso")


class Outbox:
    """Sends items to one run in order and keeps those that did not arrive.

    Args:
        client: Talks to the store.
        run_id: The run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self._run_id = run_id
        self._waiting: list[Item] = []
        self._refused: list[Item] = []
        self._staging = tempfile.TemporaryDirectory(prefix="spectral-")

    @property
    def staging(self) -> Path:
        """A folder for files on their way; gone after `discard`."""
        return Path(self._staging.name)

    @property
    def waiting(self) -> int:
        """How many points and files wait, or were refused."""
        return sum(item.points for item in self._refused + self._waiting)

    def put(self, item: Item) -> None:
        """Add an item; a file outside the staging folder is sent or copied now."""
        self._waiting.append(item)
        self.deliver()
        for queue in (self._waiting, self._refused):
            if queue and queue[-1] is item and isinstance(item, File):
                queue[-1] = self._kept(item)

    def _kept(self, item: File) -> File:
        """Return a file that its owner may delete, by a copy if need be."""
        if item.path.is_relative_to(self.staging):
            return item
        copy = Path(tempfile.mkdtemp(dir=self.staging)) / item.path.name
        shutil.copyfile(item.path, copy)
        return File(copy, item.folder)

    def deliver(self) -> bool:
        """Send what waits, in order; return whether the store was there.

        What the store refuses for good is set aside, so it cannot hold up the
        rest. At any other failure the store counts as away until the next call.
        """
        with quiet():
            while self._waiting:
                try:
                    self._waiting[0].send(self.client, self._run_id)
                except Exception as error:  # each file store raises its own kinds
                    if getattr(error, "error_code", "") not in _REFUSALS:
                        return False
                    self._refused.append(self._waiting[0])
                del self._waiting[0]
        return True

    def save(self, folder: Path) -> None:
        """Write what waits under a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for item in self._refused + self._waiting:
            item.save(folder)

    def discard(self) -> None:
        """Remove the staging folder."""
        self._staging.cleanup()
