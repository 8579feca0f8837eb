"""People in, checked cohorts out: tables, connectivity, volumes, simulation, splits.

Nothing here knows of networks or training. Importing this package files the
loaders that come with it; others register with `register_cohort`.
"""

from spectral_mlops.cohorts import fnc as _fnc
from spectral_mlops.cohorts import simulated as _simulated
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.features import FeatureScaler, kind_of, layout_for
from spectral_mlops.cohorts.loaders import (
    COHORTS,
    CohortLoader,
    Progress,
    check_cohort,
    load_cohort,
    register_cohort,
)
from spectral_mlops.cohorts.simulator import PRESETS, simulate
from spectral_mlops.cohorts.space import FeatureSpace
from spectral_mlops.cohorts.split_files import read_splits, write_splits
from spectral_mlops.cohorts.splits import (
    Fold,
    Probe,
    check_apart,
    crossfit_probes,
    fold_splits,
    set_probe_aside,
)

__all__ = [
    "COHORTS",
    "PRESETS",
    "Cohort",
    "CohortLoader",
    "FeatureScaler",
    "FeatureSpace",
    "Fold",
    "Probe",
    "Progress",
    "check_apart",
    "check_cohort",
    "crossfit_probes",
    "fold_splits",
    "kind_of",
    "layout_for",
    "load_cohort",
    "read_splits",
    "register_cohort",
    "set_probe_aside",
    "simulate",
    "write_splits",
]

del _fnc, _simulated
