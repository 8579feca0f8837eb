"""A simulated cohort on disk, in the formats and folders of real studies.

``participants.tsv``, ``fnc.csv`` (connectivity, one row a person), grey-matter
maps ``sub-*/anat/*_label-GM_probseg.nii.gz``, and under ``ground_truth/`` what
was planted. The same arguments give the same bytes (on one installation of the
numerical libraries). Networks' time courses will stand in ``sub-*/func/``.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from spectral_mlops.cohorts import layout
from spectral_mlops.cohorts.anatomy import draw_volumes, load_anatomy
from spectral_mlops.cohorts.connectivity import draw_correlations, population
from spectral_mlops.cohorts.demographics import draw_people
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest

Preset = Literal["null", "realistic", "easy"]
PRESETS: dict[str, float] = {"null": 0.0, "realistic": 1.0, "easy": 2.0}
"""Size of the group effect: none, as in published cohorts, and twice that."""

GENERATOR = {"name": "spectral_mlops.cohorts.simulator", "version": 1}
"""The version goes up whenever the same arguments would give other bytes."""
PEOPLE_STREAM, CONNECTIVITY_STREAM, ANATOMY_STREAM = 0, 1, 2


def simulate(
    folder: Path,
    preset: str = "realistic",
    people: int = 146,
    seed: int = 0,
    components: int = 53,
    voxel_mm: float = 4.5,
    volumes: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a simulated cohort, or find it written already.

    The folder appears complete or not at all: it is filled beside its place and
    then renamed. One with the same specification is left as it is.

    Args:
        folder: Where the cohort is to stand.
        preset: Size of the group effect, one of `PRESETS`.
        people: Number of people, 4 or more; 74 controls to 72 patients.
        seed: Of the people; the population is always the same one, and presets
            of one seed share their random numbers.
        components: Number of networks, at least 7 (one per domain).
        voxel_mm: Edge of a voxel of the grey-matter maps, 2 to 20 mm.
        volumes: Whether to write grey-matter maps.
        progress: Called with what is done, how many are, and how many there are.

    Returns:
        The folder.

    Raises:
        InputError: If a number is impossible, or something else stands there.
        UnknownNameError: If there is no such preset.
    """
    if preset not in PRESETS:
        raise UnknownNameError(
            f"Unknown preset '{preset}': choose one of {', '.join(PRESETS)}."
            f"{nearest(preset, list(PRESETS))}"
        )
    if volumes and not 2 <= voxel_mm <= 20:
        raise InputError(f"voxel_mm={voxel_mm}: choose an edge between 2 and 20 mm.")
    if seed < 0:
        raise InputError(f"seed={seed}: choose 0 or a positive integer.")
    spec: dict[str, Any] = {
        "generator": GENERATOR,
        "preset": preset,
        "effect": PRESETS[preset],
        "people": people,
        "seed": seed,
        "components": components,
        "volumes": volumes,
        "voxel_mm": float(voxel_mm) if volumes else None,
    }
    folder = Path(folder)
    if _stands(folder, spec):
        return folder
    table = draw_people(people, PRESETS[preset], (seed, PEOPLE_STREAM))
    world = population(components)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    partial.chmod(0o755)
    try:
        layout.write_people(partial, table, spec)
        correlations = draw_correlations(
            world,
            (table["group"] == "patient").to_numpy(),
            PRESETS[preset],
            (seed, CONNECTIVITY_STREAM),
        )
        layout.write_connectivity(partial, table.index, world.networks, correlations)
        truth = {
            "mean_log_covariance": world.mean,
            "delta": world.delta,
            "correlations": correlations,
        }
        if volumes:
            truth |= _write_volumes(partial, table, spec, progress)
        layout.write_truth(partial, truth, spec)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster, or something stands there
            if not _stands(folder, spec):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_volumes(
    folder: Path,
    table: pd.DataFrame,
    spec: dict[str, Any],
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    """Write everyone's grey-matter map; return what was planted."""
    anatomy = load_anatomy(spec["voxel_mm"])
    stream = (spec["seed"], ANATOMY_STREAM)
    maps = draw_volumes(anatomy, table, spec["effect"], stream)
    for done, (who, grey) in enumerate(zip(table.index, maps, strict=True), start=1):
        layout.write_volume(folder, who, grey, anatomy.affine)
        if progress:
            progress("simulating grey matter", done, len(table))
    return {
        "template": anatomy.template,
        "atrophy": anatomy.atrophy,
        "affine": anatomy.affine,
    }


def _stands(folder: Path, spec: dict[str, Any]) -> bool:
    """Tell whether the cohort stands there already; refuse anything else.

    An empty folder counts as none.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = layout.read_spec(folder)
    if found is None:
        raise InputError(
            f"{folder} exists and is not a simulated cohort; name another folder."
        )
    other = [key for key in spec if found.get(key) != spec[key]]
    if other:
        there = ", ".join(f"{key}={found.get(key)!r}" for key in other)
        asked = ", ".join(f"{key}={spec[key]!r}" for key in other)
        raise InputError(
            f"{folder} holds a simulated cohort with {there}, asked for is {asked}; "
            "name another folder or remove this one."
        )
    return True
