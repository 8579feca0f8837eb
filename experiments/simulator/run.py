"""Do simulated cohorts look like real ones?

Run from the project's root:

    python -m experiments.simulator.run
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from experiments.benchmarks.results import describe, fill, markdown, read, write
from experiments.simulator import measures
from spectral_mlops.cohorts import Cohort, load_cohort
from spectral_mlops.config import Component
from spectral_mlops.training.baselines import correlations_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 2.0
PRESETS = ("null", "realistic", "easy", "confounded")
COBRE = {
    "SD of z between people, median": 0.365,
    "mean z": 0.262,
    "r, percentile 1": -0.74,
    "r, percentile 25": -0.02,
    "r, percentile 50": 0.24,
    "r, percentile 75": 0.50,
    "r, percentile 99": 0.88,
    "size of d, percentile 50": 0.16,
    "size of d, percentile 90": 0.39,
    "size of d, percentile 99": 0.60,
    "size of d, groups permuted, percentile 50": 0.12,
    "size of d, groups permuted, percentile 90": 0.28,
    "size of d, groups permuted, percentile 99": 0.44,
    "participation ratio": 19.0,
    "leading eigenvalue, mean of controls": 24.1,
    "leading eigenvalue, mean of patients": 22.6,
    "AUC": 0.665,
}
"""COBRE, 146 people, measured once on published connectomes that are not passed on."""
MCIC = {
    "grey matter, patients less controls, %": -5.5,
    "d of a voxel, mean": -0.245,
    "size of d, percentile 99": 0.71,
    "FWHM of residuals, mm": 12.0,
    "variance of a voxel between sites, median %": 7.0,
    "AUC": 0.73,
}
"""MCIC, 306 people, measured once: FWHM 11 to 13 mm, AUC 0.71 to 0.75."""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, and fill the README's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="cohorts per preset")
    parser.add_argument("--maps", type=int, default=1, help="of them, with volumes")
    parser.add_argument("--people", type=int, default=146)
    parser.add_argument("--voxel-mm", type=float, default=4.5)
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args(words)
    found = measure(chosen.seeds, chosen.maps, chosen.people, chosen.voxel_mm)
    command = "python -m experiments.simulator.run " + " ".join(
        sys.argv[1:] if words is None else words
    )
    about = describe([1], command.strip()) | {
        "seeds": chosen.seeds,
        "maps": chosen.maps,
        "people": chosen.people,
    }
    write(chosen.out / "results", "measured", about, [found])
    readme = chosen.out / "README.md"
    if readme.exists():
        stored = read(chosen.out / "results", "measured") or {}
        readme.write_text(fill(readme.read_text(), tables(stored)))


def measure(seeds: int, maps: int, people: int, voxel_mm: float) -> dict[str, Any]:
    """Measure every preset and what real data are at hand."""
    vectors: dict[str, dict[str, float]] = {}
    courses: dict[str, dict[str, float]] = {}
    volumes: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for preset in PRESETS:
            parts: dict[str, list[dict[str, float]]] = {
                "fnc": [],
                "signals": [],
                "map": [],
            }
            for seed in range(seeds):
                settings = {"preset": preset, "people": people, "seed": seed}
                settings |= {"voxel_mm": voxel_mm, "coarsen": 1, "volumes": seed < maps}
                for name, found in _cohort(settings, Path(folder), voxel_mm).items():
                    parts[name].append(found)
            vectors[preset] = _mean(parts["fnc"])
            if preset == "realistic":
                vectors["realistic, from 150 time points"] = _mean(
                    [x["connectivity"] for x in parts["signals"]]
                )
                courses[preset] = _mean([x["signals"] for x in parts["signals"]])
            if parts["map"]:
                volumes[preset] = _mean(parts["map"])
    _add_real(vectors, courses)
    return {"connectivity": vectors, "signals": courses, "maps": volumes}


def _cohort(settings: dict[str, Any], folder: Path, voxel_mm: float) -> dict[str, Any]:
    """Measure one simulated cohort in every modality it has."""

    def load(modality: str) -> Cohort:
        chosen = settings | {"modality": modality}
        return load_cohort(Component(name="simulated", settings=chosen), folder)

    cohort = load("fnc")
    patients = cohort.labels == "patient"
    sites = cohort.people["site"].to_numpy(dtype=np.str_)
    r = cohort.features.astype(np.float64)
    found: dict[str, Any] = {"fnc": measures.connectivity(r, patients, [0])}
    found["fnc"]["AUC of the site"] = measures.auc(np.arctanh(r), sites == "B", [0])
    if settings["preset"] == "realistic":
        signals = load("timecourses").features.astype(np.float64)
        estimated = correlations_of(signals).astype(np.float64)
        found["signals"] = {
            "connectivity": measures.connectivity(estimated, patients, [0]),
            "signals": measures.signals(list(signals), SECONDS),
        }
    if settings["volumes"]:
        maps = load("volume").features
        found["map"] = measures.volumes(maps, voxel_mm, patients, sites, [0])
    return found


def _add_real(vectors: dict[str, Any], courses: dict[str, Any]) -> None:
    """Measure the real data that this machine has; put them beside the simulated."""
    data = Path(os.environ.get("SPECTRAL_MLOPS_DATA", ROOT.parent / "shared" / "data"))
    mlsp, abide = data / "mlsp2014_fnc", data / "abide_cc200_timecourses"
    if mlsp.is_dir():
        table = pd.read_csv(mlsp / "train_FNC.csv", index_col=0)
        labels = pd.read_csv(mlsp / "train_labels.csv", index_col=0)["Class"]
        patients = labels.loc[table.index].to_numpy() == 1
        r = table.to_numpy(np.float64)
        vectors["MLSP 2014"] = measures.connectivity(r, patients, range(5))
    if abide.is_dir():
        with np.load(abide / "timecourses_float16.npz", allow_pickle=False) as stored:
            real = [stored[name].astype(np.float64) for name in stored]
        courses["ABIDE"] = measures.signals(real, SECONDS)


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    """Average what was measured over cohorts."""
    return {name: float(np.mean([x[name] for x in found])) for name in found[0]}


def tables(stored: dict[str, Any]) -> dict[str, str]:
    """The README's tables by name."""
    about = stored["about"]
    machine = about["machine"]
    heading = (
        f"{about['date'][:10]}; {machine['cpu']}, {machine['cores']} cores; numpy "
        f"{about['versions']['numpy']}; {about['people']} people; means of "
        f"{about['seeds']} cohorts ({about['maps']} with maps); `{about['command']}`"
    )
    (found,) = stored["rows"]
    connectivity = found["connectivity"] | {"COBRE (quoted)": COBRE}
    maps = found["maps"] | {"MCIC (quoted)": MCIC}
    return {
        "connectivity": f"{heading}\n\n{_table(connectivity)}",
        "signals": _table(found["signals"]),
        "maps": _table(maps),
    }


def _table(columns: dict[str, dict[str, float]]) -> str:
    """One row per number, one column per cohort."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        {"": name} | {c: _text(columns[c].get(name)) for c in columns} for name in names
    ]
    return markdown(rows, {name: _cell(name) for name in ["", *columns]})


def _cell(name: str) -> Any:
    return lambda row: row[name]


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) >= 4 else f"{value:.2f}"


if __name__ == "__main__":
    main()
