"""Does the headline divergence on the probe see a planted effect, and only that?

Trains small simulated cohorts of each preset and compares the final
``divergence/<quantity>`` between presets. Run from the project's root:

    python experiments/presets/run.py --cohorts 20
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import mannwhitneyu

from spectral_mlops.config import RunConfig, merge, read_toml, validate
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, train

HERE = Path(__file__).parent
QUANTITIES = ("activation", "adjoint", "gradient")


def measure(
    preset: str, seed: int, workdir: Path, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train one cohort and return its final numbers.

    Args:
        preset: Of the simulated cohort.
        seed: Of people, folds, weights, probe and relabellings.
        workdir: Folder the cohort is written to.
        changes: Settings laid over the config file.
    """
    config = HERE / "config.toml"
    own = {
        "cohort": {"settings": {"preset": preset, "seed": seed}},
        "training": {"seed": seed},
        "comparison": {"seed": seed, "probe_seed": seed},
    }
    settings = validate(
        RunConfig, merge(merge(read_toml(config), own), changes or {}), str(config)
    )
    result = train(make_plan(settings, workdir), MemoryTracker())
    return {"preset": preset, "seed": seed, **result.metrics}


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Median z per preset, mean z of null, and the one-sided Mann-Whitney p."""
    rows = []
    for quantity in QUANTITIES:
        z = table.pivot_table(
            index="seed", columns="preset", values=f"final/divergence_{quantity}"
        )
        rows.append(
            {
                "quantity": quantity,
                "null_mean": z["null"].mean(),
                "null_sd": z["null"].std(ddof=1),
                "null_median": z["null"].median(),
                "easy_median": z["easy"].median(),
                "p_easy_above_null": mannwhitneyu(
                    z["easy"], z["null"], alternative="greater"
                ).pvalue,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Measure every cohort and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=20, help="per preset")
    parser.add_argument("--presets", nargs="+", default=["null", "realistic", "easy"])
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    parser.add_argument(
        "--stored", action="store_true", help="compare what --out holds; train nothing"
    )
    arguments = parser.parse_args()
    if arguments.stored:
        # "null" is a preset here, not a missing value.
        table = pd.read_csv(arguments.out, keep_default_na=False)
    else:
        table = train_all(arguments.cohorts, arguments.presets)
        table.round(4).to_csv(arguments.out, index=False)
    print(table.groupby("preset").mean(numeric_only=True).round(2).T.to_string())
    print(compare(table).round(4).to_string(index=False))


def train_all(cohorts: int, presets: list[str]) -> pd.DataFrame:
    """Measure every cohort of every preset."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(cohorts):
            for preset in presets:
                rows.append(measure(preset, seed, Path(folder)))
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
