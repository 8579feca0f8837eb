"""A tracker that writes to MLflow."""

import getpass
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

import pandas as pd

from spectral_mlops.errors import TrackingError
from spectral_mlops.records import CohortSummary, EpochRecord
from spectral_mlops.tracking.base import Status, Tracker
from spectral_mlops.tracking.outbox import File, Outbox, Points, Table
from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow
from spectral_mlops.tracking.shards import SCHEMA_VERSION, write_shards
from spectral_mlops.tracking.store import Store, open_store, resolve_uri, unusable

# isort: split
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

FLUSH_EVERY = 10  # logged epochs in one parquet part
_DIGEST = 12  # characters shown; the whole digest stands in the profile


class MlflowTracker(Tracker):
    """Writes one MLflow run, by explicit run id.

    A run that this tracker makes is ended by ``close``. A run that was given
    stays the user's: its name, its status and its end are never touched.

    Metrics of an epoch go out in one request, with the time they were logged at.
    Records wait in memory and are written as parquet parts every 10 logged epochs
    and by ``close``. What the store has not taken when the tracker closes is
    written to ``undelivered_folder``.

    Args:
        run_id: A run to attach to; if not given, ``MLFLOW_RUN_ID``, else a new
            run is made.
        experiment: Where a new run is made; made too if there is none of that
            name (see `Store.experiment`).
        tracking_uri: See `open_store`.
        undelivered_folder: ``runs/undelivered/<run_id>`` in the working folder
            if not given.

    Example:
        >>> with MlflowTracker(experiment="demo") as tracker:  # doctest: +SKIP
        ...     tracker.start("first", params={"depth": 3})
        ...     tracker.log(monitor.collect(), metrics={"train/loss": 0.4})
    """

    def __init__(
        self,
        run_id: str | None = None,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        *,
        undelivered_folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._given = run_id or os.environ.get("MLFLOW_RUN_ID")
        self._experiment = experiment
        self._uri = resolve_uri(tracking_uri)
        self._folder = Path(undelivered_folder or "runs/undelivered").absolute()
        self._folder_given = undelivered_folder is not None
        self._run: Run | None = None
        self._store: Store | None = None
        self._outbox: Outbox | None = None
        self._records: list[EpochRecord] = []
        self._epochs = 0
        self._part = 0
        self._unended = 0

    @property
    def run_id(self) -> str:
        """Id of the MLflow run; `TrackingError` while there is none."""
        if self._run is not None:
            return str(self._run.info.run_id)
        if self._given:
            return self._given
        raise TrackingError("There is no run yet: start the tracker or log something.")

    @property
    def where(self) -> str:
        """The command that opens the user interface, and the run's address."""
        if self._store is None or self._run is None:
            return f"{self._uri} (not started)"
        address = self._store.address(self._run.info.experiment_id, self.run_id)
        command = self._store.ui_command
        look = address if command.startswith("http") else f"{command}  then  {address}"
        if self._stage == "closed" and self.undelivered:
            look += f"  ({self.undelivered} undelivered, in {self._folder})"
        return look

    @property
    def undelivered(self) -> int:
        """Points, files and a final status that MLflow has not taken."""
        waiting = self._outbox.waiting if self._outbox else 0
        return waiting + self._unended

    def _start(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        cohort: CohortSummary | None,
    ) -> None:
        store = open_store(self._uri)
        run = self._attach(store) if self._given else self._make(store, name)
        with quiet():
            try:
                _describe(store, run, params, tags, cohort)
                parts = store.client.list_artifacts(run.info.run_id, "spectra")
            except (MlflowException, OSError) as error:
                if not self._given:
                    with suppress(MlflowException, OSError):
                        store.client.set_terminated(run.info.run_id, "FAILED")
                raise unusable(self._uri, error) from error
        self._store, self._run = store, run
        self._part = 1 + max((_part_of(item.path) for item in parts), default=-1)
        self._outbox = Outbox(store.client, run.info.run_id)
        known = json.loads(run.data.tags.get("mlflow.loggedArtifacts", "[]"))
        self._tables |= {item["path"].removesuffix(".json") for item in known}
        self._folder = _unused(
            self._folder if self._folder_given else self._folder / run.info.run_id
        )

    def _attach(self, store: Store) -> Run:
        """Return the given run, if it can be written to."""
        with quiet():
            try:
                run = store.client.get_run(self._given)
            except (MlflowException, OSError) as error:
                raise unusable(self._uri, error) from error
        if run.info.lifecycle_stage != "active":
            raise TrackingError(f"Run {self._given} was deleted: restore it first.")
        store.check_files(run.info.artifact_uri, f"Run {self._given}")
        return run

    def _make(self, store: Store, name: str) -> Run:
        """Make a run, tagged as MLflow itself would."""
        experiment = store.experiment(self._experiment)
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": sys.argv[0] or "interactive",
            "mlflow.source.type": "LOCAL",
        }
        if commit := _commit():
            tags["mlflow.source.git.commit"] = commit
        with quiet():
            try:
                return store.client.create_run(
                    experiment.experiment_id, tags=tags, run_name=name or None
                )
            except (MlflowException, OSError) as error:
                raise unusable(self._uri, error) from error

    def _log(
        self, records: list[EpochRecord], metrics: dict[str, float], step: int
    ) -> None:
        now = int(time.time() * 1000)
        self._records += records
        self._epochs += bool(records)
        points = [Metric(key, value, now, step) for key, value in metrics.items()]
        if points:
            self._out.put(Points(tuple(points)))
        if self._epochs >= FLUSH_EVERY:
            self._flush()

    def _log_table(self, frame: pd.DataFrame, name: str) -> None:
        self._out.put(Table(frame, f"{name}.json"))

    def _log_file(self, path: Path, folder: str) -> None:
        self._out.put(File(path, folder))

    def _log_text(self, text: str, name: str) -> None:
        path = self._out.staging / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        folder = str(Path(name).parent)
        self._out.put(File(path, "" if folder == "." else folder))

    def _close(self, status: Status) -> None:
        self._flush()
        arrived = self._out.deliver()
        if not self._given and not (arrived and self._end(status)):
            self._unended = 1
        if self.undelivered:
            self._out.save(self._folder)
            left = {"run_id": self.run_id, "tracking_uri": self._uri}
            left |= {"status": status} if self._unended else {}
            (self._folder / "run.json").write_text(json.dumps(left), encoding="utf-8")
        self._out.discard()

    def _end(self, status: Status) -> bool:
        with quiet():
            try:
                self._out.client.set_terminated(self.run_id, status)
            except (MlflowException, OSError):
                return False
        return True

    def _flush(self) -> None:
        """Write the buffered records as one part and send it."""
        if self._records:
            for path in write_shards(self._records, self._out.staging, self._part):
                self._out.put(File(path, path.parent.name))
            self._part += 1
        self._records, self._epochs = [], 0

    @property
    def _out(self) -> Outbox:
        if self._outbox is None:
            raise TrackingError("This tracker has not been started.")
        return self._outbox


def _describe(
    store: Store,
    run: Run,
    params: dict[str, str],
    tags: dict[str, str],
    cohort: CohortSummary | None,
) -> None:
    """Send parameters and tags in one batch, and the cohort as a dataset."""
    tags = {"spectral.schema_version": SCHEMA_VERSION} | tags
    store.client.log_batch(
        run.info.run_id,
        params=[Param(key, value) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
        synchronous=True,
    )
    if cohort is not None:
        store.client.log_inputs(run.info.run_id, [_dataset(cohort)])


def _dataset(cohort: CohortSummary) -> DatasetInput:
    """Return a cohort as MLflow describes data: name, digest, counts."""
    profile = {
        "num_rows": cohort.n,
        "groups": dict(cohort.groups),
        "sha256": cohort.digest,
    }
    dataset = Dataset(
        name=Path(cohort.source).name or cohort.source or "cohort",
        digest=cohort.digest[:_DIGEST],
        source_type="local",
        source=json.dumps({"uri": cohort.source}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])


def _unused(folder: Path) -> Path:
    """Return a folder that does not exist, so nothing saved before is replaced."""
    numbered = (folder.with_name(f"{folder.name}.{n}") for n in count(2))
    return next(path for path in chain([folder], numbered) if not path.exists())


def _part_of(path: str) -> int:
    """Return the number in ``spectra/part-00012.parquet``, -1 for other files."""
    number = Path(path).stem.removeprefix("part-")
    return int(number) if number.isdigit() else -1


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _commit() -> str | None:
    """Return the commit that the running script, else this package, stands in."""
    for folder in (Path(sys.argv[0]).absolute().parent, Path(__file__).parent):
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), "rev-parse", "HEAD"],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return answer.stdout.strip()
    return None
