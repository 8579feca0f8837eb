"""Where records go: one contract, a tracker in memory, a tracker in MLflow.

MLflow is imported when `MlflowTracker`, `load_run` or `open_store` is first
asked for, and not before: it takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_mlops.tracking.base import Recordable, Releasable, Tracker
from spectral_mlops.tracking.memory import MemoryTracker
from spectral_mlops.tracking.metrics import KeyNames, record_metrics, safe_name

if TYPE_CHECKING:
    from spectral_mlops.tracking.load import load_run
    from spectral_mlops.tracking.mlflow import MlflowTracker
    from spectral_mlops.tracking.store import Store, open_store

__all__ = [
    "KeyNames",
    "MemoryTracker",
    "MlflowTracker",
    "Recordable",
    "Releasable",
    "Store",
    "Tracker",
    "load_run",
    "open_store",
    "record_metrics",
    "safe_name",
]

_DEFERRED = {
    "MlflowTracker": "mlflow",
    "Store": "store",
    "load_run": "load",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFERRED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DEFERRED[name]}"), name)
