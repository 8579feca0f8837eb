"""Studies over architectures and settings; the only place that imports Optuna."""

from spectral_mlops.sweeps.storage import prepare_storage
from spectral_mlops.sweeps.sweep import Sweep

__all__ = ["Sweep", "prepare_storage"]
