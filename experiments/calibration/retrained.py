"""The test by retraining, where inputs know no class: the package's own batches."""

from pathlib import Path

import pandas as pd
from pydantic import Field

from experiments.calibration.joint import PACKAGE, Found
from experiments.calibration.networks import (
    BATCH,
    EPOCHS,
    HELD_OUT,
    LEARNING_RATE,
    SHAPE,
    TRAINED_ON,
    plain,
)
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.config import RunConfig, Settings, validate
from spectral_mlops.training.plan import Plan, make_plan
from spectral_mlops.training.retrain import MEAN, compare_with_null
from spectral_mlops.training.retrain_batched import measure_batch
from spectral_mlops.training.retrain_permute import shuffle_of

FOLDS = 2
VALID = {
    "train": "training batches of the last epoch, classes as groups, retrained",
    "probe": "held-out people at the chosen checkpoint, retrained",
}


class NoiseSettings(Settings):
    """Settings of the loader ``noise``."""

    seed: int = Field(0, ge=0, description="of the people")


@register_cohort("noise", NoiseSettings)
def load_noise(
    settings: NoiseSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """People whose inputs know nothing of their class."""
    del workdir, progress
    drawn = plain(settings.seed)
    ids = pd.Index([f"s{i:03d}" for i in range(len(drawn.classes))])
    people = pd.DataFrame({"group": [f"c{k}" for k in drawn.classes.tolist()]}, ids)
    features = drawn.inputs.numpy()
    return Cohort(people, features, "fnc", "group", "c1", f"noise {settings.seed}")


def plan_of(seed: int) -> Plan:
    """A run on 80 people in two folds and 40 held out."""
    settings = {
        "cohort": {"name": "noise", "settings": {"seed": seed}},
        "model": {"settings": SHAPE.model_dump(mode="json")},
        "training": {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "folds": FOLDS,
            "learning_rate": LEARNING_RATE,
            "seed": seed,
        },
        "spectra": {"batches_per_epoch": 1},
        "comparison": {
            "seed": seed,
            "probe_seed": seed,
            "probe_fraction": HELD_OUT / (TRAINED_ON + HELD_OUT),
        },
    }
    return make_plan(validate(RunConfig, settings, "retrained"), Path())


def p_of_one_run(seed: int, permutations: int) -> dict[str, Found]:
    """P of the mean over layers, by source."""
    shuffle = shuffle_of(plan_of(seed))
    plans = [shuffle.permuted(number) for number in range(permutations + 1)]
    observed, *null = measure_batch(plans)
    table = compare_with_null(observed, null, {})
    means = table[table["layer"] == MEAN]
    return {
        source: {
            (PACKAGE, str(row.quantity)): float(row.p)
            for row in means[means["source"] == source].itertuples()
        }
        for source in VALID
    }
