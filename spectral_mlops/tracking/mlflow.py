"""A tracker that writes to MLflow, by way of the run's own folder."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from spectral_mlops.errors import StoreAway, TrackingError
from spectral_mlops.records import CohortSummary
from spectral_mlops.tracking.delivery import Delivery, known_uri
from spectral_mlops.tracking.entries import write_entries
from spectral_mlops.tracking.pending import RECORDS
from spectral_mlops.tracking.spool import Spool
from spectral_mlops.tracking.spooled import (
    Notice,
    SpoolTracker,
    remove_empty,
)
from spectral_mlops.tracking.store import experiment_name, redacted, resolve_uri
from spectral_mlops.tracking.uploader import Uploader


class MlflowTracker(SpoolTracker):
    """Writes one MLflow run, by explicit run id.

    What is logged goes to the spool of the run's folder (see `SpoolTracker`), and from
    there to MLflow, sent by one background thread: the thread that trains never waits
    for the store. A store on a server that is away, also from the beginning, stops
    nothing; what it has not taken when the tracker closes stays in the folder, and
    ``spectral-mlops sync`` delivers it.

    A run that this tracker makes is ended by ``close``. A run that was given stays the
    user's: its name, its status and its end are never touched.

    Args:
        run_id: A run to attach to; if not given, ``MLFLOW_RUN_ID``, else a new
            run is made.
        experiment: Where a new run is made; made too if there is none of that
            name (see `Store.experiment`).
        tracking_uri: See `open_store`.
        folder: The run's; if not given, one that is removed when everything has been
            delivered. On the folder of a run that did not finish, the run goes on.
        notice: See `SpoolTracker`.

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
        folder: str | Path | None = None,
        notice: Notice | None = None,
    ) -> None:
        super().__init__(folder, notice=notice)
        self._given = run_id or os.environ.get("MLFLOW_RUN_ID")
        self._experiment = experiment
        self._asked = tracking_uri
        self._uri = resolve_uri(tracking_uri)
        self._delivery: Delivery | None = None
        self._uploader: Uploader | None = None
        self._tried = False

    @property
    def run_id(self) -> str:
        """Id of the MLflow run; `TrackingError` while there is none."""
        if self._delivery is not None and self._delivery.run is not None:
            return str(self._delivery.run.info.run_id)
        if self._given:
            return self._given
        if self._delivery is not None:
            raise TrackingError(
                f"The run has no id yet: {redacted(self._uri)} does not answer."
            )
        raise TrackingError("There is no run yet: start the tracker or log something.")

    @property
    def where(self) -> str:
        """The command that opens the user interface, and the run's address."""
        delivery = self._delivery
        if delivery is None:
            return f"{redacted(self._uri)} (not started)"
        if delivery.store is None or delivery.run is None:
            look = redacted(self._uri)
        else:
            store, info = delivery.store, delivery.run.info
            look = store.look(info.experiment_id, info.run_id)
        if self._stage == "closed" and self.undelivered:
            look += (
                f"  ({self.undelivered} undelivered: spectral-mlops sync {self.folder})"
            )
        return look

    @property
    def undelivered(self) -> int:
        """Points, files and a final status that MLflow has not taken."""
        delivery = self._delivery
        there = delivery.delivered if delivery else 0
        written, waiting = self._writer.points
        return self._appended + written - there + waiting

    def flush(self, timeout: float = 30.0) -> int:
        """Wait until what was logged is delivered, or an attempt to do so failed.

        Args:
            timeout: Longest wait, seconds.

        Returns:
            `undelivered`.
        """
        if self._uploader is not None:
            self._settle()
            self._uploader.flush(timeout)
        return self.undelivered

    def _start(
        self,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        cohort: CohortSummary | None,
    ) -> None:
        super()._start(name, params, tags, cohort)
        self._settle_where()
        about = (self.spool, self._uri, self._experiment, self._given)
        fresh = not (self.spool.existed or self._tried)
        self._tried = True
        self._delivery = Delivery(*about, fresh=fresh)
        try:
            self._connect(self._delivery)
        except BaseException:
            self._delivery = None
            self._forget()
            raise
        self._uploader = Uploader(self._delivery)

    def _connect(self, delivery: Delivery) -> None:
        """Find or make the run, unless the store is away."""
        try:
            delivery.connect()
            if not self.resumed:
                delivery.describe()
        except StoreAway as error:
            self._notice(
                f"{error} Training goes on; what is recorded is kept in "
                f"{self.folder} and sent when the store answers, or by "
                f"'spectral-mlops sync {self.folder}'."
            )
        self._tables |= delivery.tables - self._past.tables

    def _settle_where(self) -> None:
        """Write down where the run goes, or go on where it went before."""
        info = self.spool.info
        if self.resumed and "tracking_uri" in info:
            self._given = info["run_id"] if info["given"] else None
            self._experiment = info["experiment"]
            self._uri = known_uri(self.spool, self._asked)
            return
        if self._given:  # others may have left parts there
            self.spool.write_info(parts=f"part-{time.time_ns() // 1_000_000}-")
            self._parts = self.spool.info["parts"]
        self.spool.write_info(
            tracking_uri=redacted(self._uri),
            experiment=self._experiment or experiment_name(),
            run_id=self._given,
            given=bool(self._given),
            temporary=not self._folder_given,
        )

    def _wrote(self) -> None:
        if self._uploader is not None:
            self._uploader.wake()

    def _deliver(self) -> None:
        """Send what is left, then leave the folder as little as possible."""
        delivery, uploader = self._delivery, self._uploader
        if delivery is None or uploader is None:
            return
        uploader.end()
        if self._writer.waiting and delivery.run is not None:
            self._deliver_unwritten(delivery)
        delivery.release()
        if not self.undelivered and not self._folder_given:
            for each in self.folder.iterdir():
                shutil.rmtree(each)
            remove_empty(self.folder)

    def _deliver_unwritten(self, delivery: Delivery) -> None:
        """Send what the disk has not taken from another one, if that takes it."""
        records = self.folder / RECORDS
        with tempfile.TemporaryDirectory(prefix="spectral-") as folder:
            try:
                elsewhere = Spool(folder)
                if records.exists():  # of the part that the rest belongs to
                    shutil.copytree(records, Path(folder) / RECORDS)
                write_entries(self._writer.waiting, elsewhere)
            except OSError:
                return
            rest = Delivery(elsewhere, self._uri, self._experiment, None)
            rest.run, rest.store = delivery.run, delivery.store
            if rest.deliver() and not rest.refused:
                shutil.rmtree(records, ignore_errors=True)
                self._writer.drop()
            elsewhere.close()
