"""Runs of a study's trials in MLflow: found by their tags, ended, tagged."""

from collections.abc import Mapping
from dataclasses import dataclass

from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow
from spectral_mlops.tracking.store import open_store, unusable

# isort: split
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

PAGE = 500
"""Runs in one answer of the store."""


@dataclass(frozen=True)
class TrialRun:
    """One trial's run, as the store has it.

    Attributes:
        run_id: Its id.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        tags: All of them.
    """

    run_id: str
    status: str
    tags: Mapping[str, str]


class TrialRuns:
    """The runs of one study's trials.

    Args:
        study: Name, as it stands in the tag ``optuna.study``.
        tracking_uri: See `open_store`.
        experiment: See `Store.experiment`.

    Raises:
        StoreAway: If the store does not answer now.
        TrackingError: If it cannot be used.
        InputError: If there is no such experiment.
    """

    def __init__(
        self, study: str, tracking_uri: str | None = None, experiment: str | None = None
    ) -> None:
        self.study = study
        self._store = open_store(tracking_uri)
        self._experiment = self._store.experiment(experiment, make=False).experiment_id

    def all(self) -> list[TrialRun]:
        """Return them, oldest first.

        Raises:
            TrackingError: If the store cannot be used.
        """
        wanted = "tags.`spectral.kind` = 'trial'"
        if "'" not in self.study:
            wanted += f" and tags.`optuna.study` = '{self.study}'"
        found, token = [], None
        with quiet():
            try:
                while True:
                    page = self._store.client.search_runs(
                        [self._experiment],
                        wanted,
                        max_results=PAGE,
                        order_by=["attributes.start_time ASC"],
                        page_token=token,
                    )
                    found += page
                    if not (token := page.token):
                        break
            except (MlflowException, OSError) as error:
                raise unusable(self._store.uri, error) from error
        return [
            _read(run)
            for run in found
            if run.data.tags.get("optuna.study") == self.study
        ]

    def one(self, run_id: str) -> TrialRun:
        """Return a run as it is now.

        Raises:
            TrackingError: If the store cannot be used.
        """
        with quiet():
            try:
                return _read(self._store.client.get_run(run_id))
            except (MlflowException, OSError) as error:
                raise unusable(self._store.uri, error) from error

    def mend(self, run_id: str, status: str | None, tags: Mapping[str, str]) -> None:
        """End a run, and tag it.

        Args:
            run_id: Which one.
            status: How it ended; as it is if not given.
            tags: Written over those of the same names.

        Raises:
            TrackingError: If the store does not take it.
        """
        with quiet():
            try:
                for name, value in tags.items():
                    self._store.client.set_tag(run_id, name, value)
                if status is not None:
                    self._store.client.set_terminated(run_id, status)
            except (MlflowException, OSError) as error:
                raise unusable(self._store.uri, error) from error


def _read(run: Run) -> TrialRun:
    return TrialRun(run.info.run_id, run.info.status, dict(run.data.tags))
