"""How well do the models predict diagnosis in real people, and are spectra exact there?

Run from the project's root, with the folder of the data sets:

    python -m experiments.real.run DATA
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from spectral_mlops.config import RunConfig, merge, read_toml, validate
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import Plan, make_plan, run
from spectral_mlops.training.performance import Predictions

HERE = Path(__file__).parent
DRAWS = 1000
TIMECOURSES = {"lengths": "pad", "dead": "zero"}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mlsp-logistic": ("mlsp", "logistic", {}),
    "mlsp-mlp": ("mlsp", "mlp", {"hidden": [64, 32], "dropout": 0.5}),
    "abide-transformer": (
        "abide",
        "transformer",
        {"width": 32, "heads": 4, "layers": 1, "feedforward": 64, "dropout": 0.3},
    ),
    "abide-lstm": ("abide", "lstm", {"width": 32, "dropout": 0.3}),
}


def people_of(name: str, data: Path) -> dict[str, Any]:
    """Return the settings of a cohort."""
    if name == "mlsp":
        folder = data / "mlsp2014_fnc"
        files = {"features": "train_FNC.csv", "labels": "train_labels.csv"}
        settings = {key: str(folder / file) for key, file in files.items()}
        return {"name": "fnc", "settings": {**settings, "order": "upper"}}
    folder = data / "abide_cc200_timecourses"
    settings = {
        "series": str(folder / "timecourses_float16.npz"),
        "labels": str(folder / "participants.tsv"),
        "positive": "autism",
        **TIMECOURSES,
    }
    return {"name": "timecourses", "settings": settings}


def interval(plan: Plan, said: Predictions) -> tuple[float, float]:
    """Return 2.5 and 97.5 % of the AUC, mean over folds, in people drawn again.

    People are drawn with replacement within fold and class.
    """
    rng = np.random.default_rng(0)
    at = {who: i for i, who in enumerate(said.ids)}
    found = np.zeros((DRAWS, len(plan.folds)))
    for number, fold in enumerate(plan.folds):
        rows = np.array([at[who] for who in fold.validation_ids])
        targets, scores = said.targets[rows], said.probabilities[rows, 1]
        classes = [np.flatnonzero(targets == k) for k in (0, 1)]
        for draw in range(DRAWS):
            again = np.concatenate([rng.choice(one, len(one)) for one in classes])
            found[draw, number] = roc_auc_score(targets[again], scores[again])
    low, high = np.quantile(found.mean(1), [0.025, 0.975])
    return float(low), float(high)


def measure(name: str, data: Path) -> dict[str, Any]:
    """Train one run and return its row of the table."""
    people, model, settings = RUNS[name]
    own = {
        "cohort": people_of(people, data),
        "model": {"name": model, "settings": settings},
    }
    config = HERE / "config.toml"
    merged = validate(RunConfig, merge(read_toml(config), own), str(config))
    with tempfile.TemporaryDirectory() as folder, MemoryTracker() as tracker:
        plan = make_plan(merged, Path(folder))
        result = run(plan, tracker, Path(folder) / "run", name=name).result
    low, high = interval(plan, result.validation[0])
    metrics = result.metrics
    return {
        "run": name,
        "people": len(plan.cohort.people),
        "auc": metrics["final/auc"],
        "auc_low": low,
        "auc_high": high,
        "probe_auc": metrics.get("final/probe_auc", np.nan),
        "z_activation": metrics.get("final/divergence_activation", np.nan),
        "primary_p": metrics.get("final/primary_p", np.nan),
        "additivity": metrics["final/additivity"],
    }


def main() -> None:
    """Train every run, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    given = parser.parse_args()
    rows = []
    for name in given.runs:
        rows.append(measure(name, given.data.resolve()))
        pd.DataFrame(rows).to_csv(given.out, index=False, float_format="%.4g")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
