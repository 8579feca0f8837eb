"""How a network learned, and whether it learned differently from different people.

The public names are resolved on first use, so that reading records, asking for
help or drawing a report never waits for torch or MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectral_mlops.hooks import capture as capture
    from spectral_mlops.hooks import group_influence as group_influence
    from spectral_mlops.hooks import leading_directions as leading_directions
    from spectral_mlops.hooks import register_rows as register_rows
    from spectral_mlops.monitor import EpochSpectra as EpochSpectra
    from spectral_mlops.monitor import SpectralMonitor as SpectralMonitor
    from spectral_mlops.tracking import MemoryTracker as MemoryTracker
    from spectral_mlops.tracking import MlflowTracker as MlflowTracker
    from spectral_mlops.tracking import load_run as load_run

_HOMES = {
    # watching
    "SpectralMonitor": "monitor",
    "EpochSpectra": "monitor",
    "capture": "hooks",
    "group_influence": "hooks",
    "leading_directions": "hooks",
    "register_rows": "hooks",
    # tracking
    "MlflowTracker": "tracking",
    "MemoryTracker": "tracking",
    "load_run": "tracking",
}

__all__ = [
    "EpochSpectra",
    "MemoryTracker",
    "MlflowTracker",
    "SpectralMonitor",
    "capture",
    "group_influence",
    "leading_directions",
    "load_run",
    "register_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
