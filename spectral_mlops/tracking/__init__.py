"""Where records go: one contract; trackers in memory, in a folder, in MLflow.

MLflow is imported when `MlflowTracker`, `load_run` or `open_store` is first
asked for, and not before: it takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_mlops.tracking.base import Recordable, Releasable, Tracker
from spectral_mlops.tracking.choose import open_tracker
from spectral_mlops.tracking.memory import MemoryTracker, NoTracker
from spectral_mlops.tracking.metrics import KeyNames, record_metrics, safe_name
from spectral_mlops.tracking.spooled import SpoolTracker

if TYPE_CHECKING:
    from spectral_mlops.tracking.initialise import prepare_store
    from spectral_mlops.tracking.load import fetch_run, load_metrics, load_run
    from spectral_mlops.tracking.mlflow import MlflowTracker
    from spectral_mlops.tracking.store import Store, open_store
    from spectral_mlops.tracking.sync import sync_run, undelivered_runs
    from spectral_mlops.tracking.view import view_experiment

__all__ = [
    "KeyNames",
    "MemoryTracker",
    "MlflowTracker",
    "NoTracker",
    "Recordable",
    "Releasable",
    "SpoolTracker",
    "Store",
    "Tracker",
    "fetch_run",
    "load_metrics",
    "load_run",
    "open_store",
    "open_tracker",
    "prepare_store",
    "record_metrics",
    "safe_name",
    "sync_run",
    "undelivered_runs",
    "view_experiment",
]

_DEFERRED = {
    "MlflowTracker": "mlflow",
    "Store": "store",
    "fetch_run": "load",
    "prepare_store": "initialise",
    "load_metrics": "load",
    "load_run": "load",
    "open_store": "store",
    "sync_run": "sync",
    "undelivered_runs": "sync",
    "view_experiment": "view",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFERRED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DEFERRED[name]}"), name)
