"""People whose features tell their age, for runs of seconds."""

from pathlib import Path

import numpy as np
import pandas as pd

from spectral_mlops.cohorts import Cohort, FeatureSpace, register_cohort
from spectral_mlops.config import RunConfig, Settings, merge, validate

EDGES = 15


class AgedSettings(Settings):
    people: int = 80
    ages: str = "spread"


@register_cohort("aged", AgedSettings)
def load_aged(settings: AgedSettings, workdir: Path, progress=None) -> Cohort:
    """Connectivity that rises and falls with age; ``ages`` says what is wrong."""
    rng = np.random.default_rng(11)
    n = settings.people
    age = rng.uniform(20, 80, n).round(1)
    x = rng.normal(size=(n, EDGES)).astype(np.float32)
    x[:, :4] += (age[:, None] - 50) / 15
    people = pd.DataFrame(
        {
            "group": np.where(np.arange(n) % 2, "patient", "control"),
            "sex": np.where(rng.random(n) < 0.5, "F", "M"),
            "site": np.where(np.arange(n) // 2 % 2, "A", "B"),
            "age": age,
            "fd": rng.gamma(2, 0.1, n),
            "note": ["89+" if i == 3 else f"{a}" for i, a in enumerate(age)],
        },
        index=[f"sub-{i:03}" for i in range(n)],
    )
    if settings.ages == "missing":
        people.loc[["sub-004", "sub-017"], "age"] = np.nan
    if settings.ages == "constant":
        people["age"] = 40.0
    space = FeatureSpace(order="upper")
    return Cohort(people, x, "fnc", "group", "patient", "aged", (), space)


def aged(**changes) -> RunConfig:
    """Settings of a regression on them; keywords are laid over."""
    base = {
        "cohort": {"name": "aged"},
        "model": {"settings": {"hidden": [8], "dropout": 0.0}},
        "training": {
            "task": "regression",
            "target": "age",
            "epochs": 3,
            "folds": 2,
            "batch_size": 10,
            "learning_rate": 1e-2,
        },
        "comparison": {"permutations": 19, "null_epochs": 1, "probe_fraction": 0.4},
        "baselines": {"draws": 100},
    }
    return validate(RunConfig, merge(base, changes), "test")
