"""Studies over architectures and settings; the only place that imports Optuna."""

from spectral_mlops.sweeps.answers import write_study
from spectral_mlops.sweeps.confirm import confirm
from spectral_mlops.sweeps.space_file import read_sweep
from spectral_mlops.sweeps.storage import prepare_storage
from spectral_mlops.sweeps.summary import leave_summary
from spectral_mlops.sweeps.sweep import Sweep
from spectral_mlops.sweeps.worker import draining, work

__all__ = [
    "Sweep",
    "confirm",
    "draining",
    "leave_summary",
    "prepare_storage",
    "read_sweep",
    "work",
    "write_study",
]
