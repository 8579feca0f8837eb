"""Studies over architectures and settings; the only place that imports Optuna."""

from spectral_mlops.sweeps.sweep import Sweep

__all__ = ["Sweep"]
