"""Optuna's storage, made ready by one process before workers start."""

import weakref

import optuna
from sqlalchemy.exc import SQLAlchemyError

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.sqlite import connection_settings
from spectral_mlops.sweeps.tickets import make_table
from spectral_mlops.tracking.store import redacted


def open_storage(storage: str) -> optuna.storages.RDBStorage:
    """Open a database, so that others may use it at the same time."""
    opened = optuna.storages.RDBStorage(
        storage, engine_kwargs=connection_settings(storage)
    )
    weakref.finalize(opened, opened.engine.dispose)  # also when the process ends
    return opened


def prepare_storage(storage: str) -> str:
    """Make the tables of a storage, or bring them to the installed Optuna's form.

    Workers that make them at the same time fail: on PostgreSQL three of four did.

    Args:
        storage: Address of a database, ``sqlite:///optuna.db`` for a file here.

    Returns:
        ``upgraded`` or ``ready``.

    Raises:
        InputError: If Optuna cannot use it.
    """
    try:
        opened = optuna.storages.RDBStorage(storage, skip_compatibility_check=True)
        try:
            make_table(opened.engine)
            return _up_to_date(opened)
        finally:
            opened.remove_session()
            opened.engine.dispose()  # workers have connections of their own
    except (SQLAlchemyError, ValueError, ImportError) as error:
        reason = redacted(str(error).strip().splitlines()[0][:300])
        raise InputError(
            f"--storage {redacted(storage)}: Optuna cannot use it ({reason}); a file "
            "here is sqlite:///optuna.db."
        ) from error


def _up_to_date(storage: optuna.storages.RDBStorage) -> str:
    version = storage.get_current_version()
    if version not in storage.get_all_versions():
        raise ValueError(f"a newer Optuna made it, version {version} of its tables")
    if version == storage.get_head_version():
        return "ready"
    storage.upgrade()
    return "upgraded"
