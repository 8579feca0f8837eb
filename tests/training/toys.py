"""People of every modality in an instant, for runs of seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from spectral_mlops.cohorts import Cohort, FeatureSpace, register_cohort
from spectral_mlops.config import RunConfig, Settings, merge, validate

STEPS, COMPONENTS = 12, 5


class ToySettings(Settings):
    modality: Literal["fnc", "timecourses", "windows", "volume"] = "timecourses"
    people: int = 60
    unequal: bool = True


@dataclass(frozen=True, eq=False)
class ToyCohort(Cohort):
    lengths: np.ndarray | None = None


@register_cohort("toy", ToySettings)
def load_toy(settings: ToySettings, workdir: Path, progress=None) -> Cohort:
    rng = np.random.default_rng(5)
    n = settings.people
    people = pd.DataFrame(
        {
            "group": np.where(np.arange(n) % 2, "patient", "control"),
            "sex": np.where(rng.random(n) < 0.5, "F", "M"),
            "age": rng.uniform(20, 60, n).round(),
        },
        index=[f"sub-{i:03}" for i in range(n)],
    )
    patient = (people["group"] == "patient").to_numpy()
    shape = {
        "fnc": (10,),
        "timecourses": (STEPS, COMPONENTS),
        "windows": (4, 3, COMPONENTS),
        "volume": (6, 7, 5),
    }[settings.modality]
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    if settings.modality == "volume":
        x = np.abs(x) * 0.2 + 0.3
    x[patient, ..., :2] *= 1.8
    lengths = None
    if settings.modality == "timecourses" and settings.unequal:
        lengths = rng.integers(STEPS // 2, STEPS + 1, n)
        x[np.arange(STEPS) >= lengths[:, None]] = 0
    modality = settings.modality
    space = FeatureSpace(order="upper") if modality == "fnc" else FeatureSpace()
    known = ("group", "patient", "toy", (), space)
    return ToyCohort(people, x, modality, *known, lengths=lengths)


def toy(modality="timecourses", **changes):
    """Settings of a run on toy people."""
    base = {
        "cohort": {"name": "toy", "settings": {"modality": modality}},
        "training": {"epochs": 2, "folds": 2, "batch_size": 9, "learning_rate": 3e-3},
        "comparison": {"permutations": 19, "null_epochs": 1, "probe_fraction": 0.4},
    }
    return validate(RunConfig, merge(base, changes), "test")
