"""One process that makes everything ready in MLflow before others start.

Two processes that make the tables of one database at once both fail, and so do
workers that start on a database of an older MLflow.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from spectral_mlops.errors import TrackingError
from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow
from spectral_mlops.tracking.store import (
    Store,
    open_store,
    redacted,
    resolve_uri,
    sqlite_path,
    unusable,
)
from spectral_mlops.tracking.view import View, install_view

# isort: split
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from mlflow.db import upgrade
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

_OLD = "out-of-date database schema"


@dataclass(frozen=True)
class Prepared:
    """What is ready.

    Attributes:
        store: Address of the store, without a password.
        done: ``made``, ``upgraded``, or ``ready`` if it was.
        experiment: Name.
        files: Where the files of its runs go.
        view: The installed chart view.
    """

    store: str
    done: str
    experiment: str
    files: str
    view: View


def prepare_store(
    tracking_uri: str | None = None, experiment: str | None = None
) -> Prepared:
    """Make or upgrade a store, an experiment in it, and its chart view.

    Whatever is there already stays as it is; doing it again changes nothing.

    Args:
        tracking_uri: See `open_store`. A server upgrades its database itself.
        experiment: See `Store.experiment`.

    Raises:
        TrackingError: If the store or the experiment cannot be used.
    """
    uri = resolve_uri(tracking_uri)
    before = _revision(uri)
    store = _open(uri)
    after = _revision(uri)
    found = store.experiment(experiment)
    return Prepared(
        redacted(store.uri),
        "ready" if after == before else "upgraded" if before else "made",
        found.name,
        found.artifact_location,
        install_view(store, found),
    )


def _open(uri: str) -> Store:
    """Open a store, upgraded if need be.

    MLflow itself upgrades a database that lacks tables, but not one that has all of
    them in an older form.
    """
    try:
        return open_store(uri)
    except TrackingError as error:
        if _OLD not in str(error.__cause__):
            raise
    with quiet():
        try:
            upgrade.callback(uri)  # what `mlflow db upgrade` does
        except CommandError as error:
            raise TrackingError(
                f"The MLflow store {redacted(uri)} was made by a newer MLflow than "
                "the one installed here: install that one."
            ) from error
        except (MlflowException, OSError) as error:
            raise unusable(uri, error) from error
    return open_store(uri)


def _revision(uri: str) -> str | None:
    """Return which form a database's tables have; None for none, or a server's.

    Raises:
        TrackingError: If there is no such database.
    """
    database = sqlite_path(uri)
    kind = urlsplit(uri).scheme.partition("+")[0]  # postgresql+psycopg
    if kind not in DATABASE_ENGINES or (database and not database.exists()):
        return None
    try:
        engine = create_engine(uri)
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise unusable(uri, error) from error
    return found
