"""MLflow stores: which one is meant, whether it can be used, how to look at it."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from spectral_mlops.errors import InputError, StoreAway, TrackingError
from spectral_mlops.tracking.checks import redacted as redacted
from spectral_mlops.tracking.metrics import safe_name
from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

EXPERIMENT = "spectral_mlops"
UI_ADDRESS = "http://127.0.0.1:5000"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANSWERED: set[str] = set()
"""Stores of this process; a file that has answered is not asked again."""


@dataclass(frozen=True)
class Store:
    """An MLflow store that answered.

    Attributes:
        uri: Its address, absolute.
        client: Talks to it; safe to use in several threads.
    """

    uri: str
    client: MlflowClient

    @property
    def ui_command(self) -> str:
        """The command that shows the store, or the server's own address.

        A password in the address is shown as ``***``.
        """
        shown = redacted(self.uri)
        if shown.startswith("http"):
            return shown
        return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"

    def address(self, experiment_id: str, run_id: str) -> str:
        """Return the web address of a run, while the user interface is up."""
        return self.page(f"experiments/{experiment_id}/runs/{run_id}")

    def page(self, route: str) -> str:
        """Return the web address of a page, while the user interface is up."""
        base = redacted(self.uri) if self.uri.startswith("http") else UI_ADDRESS
        return f"{base.rstrip('/')}/#/{route}"

    def look(self, experiment_id: str, run_id: str) -> str:
        """Return what shows a run: the command, if one is needed, and its address."""
        return self.look_at(self.address(experiment_id, run_id))

    def look_at(self, address: str) -> str:
        """Return what shows an address: the command, if one is needed, and it."""
        command = self.ui_command
        return address if command.startswith("http") else f"{command}  then  {address}"

    def experiment(self, name: str | None = None, *, make: bool = True) -> Experiment:
        """Return an experiment of our own, made if there is none of that name.

        Args:
            name: If not given, the experiment that ``MLFLOW_EXPERIMENT_ID`` or
                ``MLFLOW_EXPERIMENT_NAME`` names, else ``spectral_mlops``.
            make: Whether one may be made, and is written to; else its files are not
                looked for.

        Raises:
            InputError: If there is none and none may be made.
            StoreAway: If the store does not answer any more.
            TrackingError: If it is the store's Default (whose files go wherever
                the store was first opened), was deleted, or keeps its files
                where this process cannot write.
        """
        number = None if name else os.environ.get("MLFLOW_EXPERIMENT_ID")
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        with quiet():
            try:
                found = self._find(number, name, make)
            except (MlflowException, OSError) as error:
                away = may_come_back(self.uri, error)
                raise unusable(self.uri, error, away=away) from error
        if found.experiment_id == "0":
            raise TrackingError(
                "The store's Default experiment is not used, because its files may "
                f"be out of reach: choose another name, such as '{EXPERIMENT}'."
            )
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"Experiment '{found.name}' of {redacted(self.uri)} was deleted: "
                "restore it or choose another name."
            )
        if make:
            self.check_files(found.artifact_location, f"Experiment '{found.name}'")
        return found

    def check_files(self, location: str, what: str) -> None:
        """Check that files can go where a run or an experiment keeps them.

        Raises:
            TrackingError: If a store without a server wants them proxied by one,
                or a server wants them on a disk that is not here.
        """
        served = self.uri.startswith("http")
        scheme = urlsplit(location).scheme
        if scheme == "mlflow-artifacts" and not served:
            raise TrackingError(
                f"{what} was made by an MLflow server and keeps its files there "
                f"({location}), but {redacted(self.uri)} is not a server: give the "
                "server's http address, or choose another experiment."
            )
        if scheme in ("", "file") and served:
            folder = Path(unquote(urlsplit(location).path))
            here = urlsplit(self.uri).hostname in _LOOPBACK
            if not here or not any(p.exists() for p in (folder, *folder.parents[:2])):
                raise TrackingError(
                    f"{what} keeps its files in {location} on the server's disk, "
                    "where this process cannot write: choose another experiment, "
                    "made through the server."
                )

    def _find(self, number: str | None, name: str, make: bool) -> Experiment:
        if number:
            return self.client.get_experiment(number)
        if found := self.client.get_experiment_by_name(name):
            return found
        if not make:
            found = self.client.search_experiments()
            known = sorted(e.name for e in found if e.experiment_id != "0")
            raise InputError(
                f"There is no experiment '{name}' in {redacted(self.uri)}: choose one "
                f"of {', '.join(known)}."
                if known
                else f"There is no experiment in {redacted(self.uri)} yet: train first."
            )
        try:
            made = self.client.create_experiment(name, self._folder(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.client.get_experiment_by_name(name)  # another was faster
        return self.client.get_experiment(made)

    def _folder(self, name: str) -> str | None:
        """Return where a new experiment keeps its files; a server decides itself."""
        if self.uri.startswith("http"):
            return None
        database = sqlite_path(self.uri)
        beside = database.parent if database else Path.cwd()
        return (beside / "mlruns" / safe_name(name)).as_uri()


def open_store(tracking_uri: str | None = None) -> Store:
    """Open a store; a database is made if there is none.

    One process must do this before several start: two that make the same
    database at once both fail.

    Args:
        tracking_uri: If not given, ``MLFLOW_TRACKING_URI``, else a database
            ``mlflow.db`` in the working folder.

    Returns:
        The store, which has answered once.

    Raises:
        StoreAway: If it is on a server that does not answer.
        TrackingError: If it cannot be used, or is a folder of the kind that MLflow
            no longer writes.
    """
    uri = resolve_uri(tracking_uri)
    if urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks"):
        raise TrackingError(
            f"{uri} is a folder store, which MLflow no longer writes: give "
            "sqlite:///mlflow.db (old runs move there with 'mlflow "
            f"migrate-filestore --source {uri} --target sqlite:///mlflow.db')."
        )
    if (database := sqlite_path(uri)) and not database.parent.is_dir():
        raise TrackingError(f"Cannot make {database}: there is no such folder.")
    with quiet():
        try:
            client = MlflowClient(uri)
            if uri not in _ANSWERED or not (database and database.exists()):
                client.search_experiments(max_results=1)
        except (MlflowException, OSError) as error:
            raise unusable(uri, error, away=may_come_back(uri, error)) from error
    _ANSWERED.add(uri)
    return Store(uri, client)


def experiment_name() -> str | None:
    """Return the experiment that the environment names; None if by number."""
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return None
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def resolve_uri(tracking_uri: str | None) -> str:
    """Return the address that is meant, with a sqlite path made absolute.

    Raises:
        InputError: If it is a sqlite database in memory, which no one could read.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:"):
        return uri
    path = uri.partition(":///")[2]
    if not path or path == ":memory:":
        raise InputError(f"tracking_uri='{uri}': give a file, sqlite:///mlflow.db.")
    return f"sqlite:///{Path(path).absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a sqlite store, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


def may_come_back(uri: str, error: Exception) -> bool:
    """Return whether a server is away, rather than an address wrong by its form."""
    answered = getattr(error, "get_http_status_code", lambda: 500)() < 500
    return sqlite_path(uri) is None and not answered


def unusable(uri: str, error: Exception, *, away: bool = False) -> TrackingError:
    """Return one sentence for a store that does not answer as it should."""
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
    kind = StoreAway if away else TrackingError
    return kind(
        f"The MLflow store {redacted(uri)} cannot be used "
        f"({redacted(reason) or type(error).__name__})."
    )
