"""People in, checked cohorts out: tables, connectivity, volumes, simulation, splits.

Nothing here knows of networks or training. Importing this package files the
loaders that come with it (`bids` brings those of time courses and volumes); others
register with `register_cohort`.
"""

from spectral_mlops.cohorts import bids as _bids
from spectral_mlops.cohorts import fnc as _fnc
from spectral_mlops.cohorts import openneuro as _openneuro
from spectral_mlops.cohorts import public as _public
from spectral_mlops.cohorts import simulated as _simulated
from spectral_mlops.cohorts.adjustment import Adjustment, check_adjustment
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.confounds import site_warning
from spectral_mlops.cohorts.features import (
    FeatureScaler,
    inputs_of,
    kind_of,
    layout_for,
)
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
from spectral_mlops.cohorts.split_files import (
    check_unseen,
    read_splits,
    reuse_splits,
    write_splits,
)
from spectral_mlops.cohorts.splits import (
    Fold,
    Probe,
    check_apart,
    crossfit_probes,
    fold_splits,
    set_probe_aside,
    site_splits,
)

__all__ = [
    "COHORTS",
    "PRESETS",
    "Adjustment",
    "Cohort",
    "CohortLoader",
    "FeatureScaler",
    "FeatureSpace",
    "Fold",
    "Probe",
    "Progress",
    "check_adjustment",
    "check_apart",
    "check_cohort",
    "check_unseen",
    "crossfit_probes",
    "fold_splits",
    "inputs_of",
    "kind_of",
    "layout_for",
    "load_cohort",
    "read_splits",
    "register_cohort",
    "reuse_splits",
    "set_probe_aside",
    "simulate",
    "site_splits",
    "site_warning",
    "write_splits",
]

del _bids, _fnc, _openneuro, _public, _simulated
