"""A simulated cohort on disk, in the formats and folders of real studies.

``participants.tsv``, ``fnc.csv`` (connectivity, one row a person), time courses
``sub-*/func/*_desc-ica_timeseries.tsv``, grey-matter maps
``sub-*/anat/*_label-GM_probseg.nii.gz``, and under ``ground_truth/`` what was planted.
All are of the same people. The same arguments give the same bytes (on one installation
of the numerical libraries). Time courses may be added to a cohort that stands without.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts import layout
from spectral_mlops.cohorts.anatomy import draw_volumes, load_anatomy
from spectral_mlops.cohorts.connectivity import (
    Population,
    draw_correlations,
    population,
    site_pattern,
)
from spectral_mlops.cohorts.defects import CLEAN, Defects, draw_defects
from spectral_mlops.cohorts.demographics import SITES, draw_people
from spectral_mlops.cohorts.signals import (
    AUTOCORRELATION,
    REPETITION_TIME,
    TIMEPOINTS,
    draw_signals,
)
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest

Progress = Callable[[str, int, int], None]
Preset = Literal["null", "realistic", "easy", "confounded", "dirty"]
PRESETS: dict[str, float] = {
    "null": 0.0,
    "realistic": 1.0,
    "easy": 2.0,
    "confounded": 0.0,
    "dirty": 1.0,
}
"""Size of the group effect: none, as in published cohorts, and twice that.

In ``confounded`` scanners differ, nothing else does, and groups go with scanners: what
is found between groups is not biology. ``dirty`` is ``realistic`` with files as real
studies have them (`defects`); as they are, most loaders refuse them with a sentence.
"""
SITE_GROUP_CORR = {"confounded": 0.8}
"""Correlation of site with group, where it is not 0."""

GENERATOR = {"name": "spectral_mlops.cohorts.simulator", "version": 1}
"""The version goes up whenever the same arguments would give other bytes."""
PEOPLE_STREAM, CONNECTIVITY_STREAM, ANATOMY_STREAM = 0, 1, 2
SIGNALS_STREAM, DEFECTS_STREAM = 3, 4


def simulate(
    folder: Path,
    preset: str = "realistic",
    people: int = 146,
    seed: int = 0,
    components: int = 53,
    voxel_mm: float = 4.5,
    volumes: bool = True,
    progress: Progress | None = None,
    timecourses: bool = False,
    timepoints: int = TIMEPOINTS,
) -> Path:
    """Write a simulated cohort, or find it written already.

    The folder appears complete or not at all: it is filled beside its place and
    then renamed. One with the same specification is left as it is, but for time
    courses, which are added if it has none.

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
        timecourses: Whether to write the networks' time courses.
        timepoints: Of the time courses, two seconds apart, at least 10.

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
    if timepoints < 10:
        raise InputError(f"timepoints={timepoints}: choose 10 or more.")
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
    if preset in SITE_GROUP_CORR:
        spec["site_group_corr"] = SITE_GROUP_CORR[preset]
    folder = Path(folder)
    if not _stands(folder, spec):
        _make(folder, spec, timepoints if timecourses else 0, progress)
    if timecourses and not _has_timecourses(folder, timepoints):
        _write_timecourses(folder, _Drawn(spec), timepoints, progress)
    return folder


class _Drawn:
    """Everything about a cohort that is quick to draw.

    Attributes:
        spec: Of the cohort.
        table: The people.
        world: The population.
        correlations: Shape ``[people, C, C]``.
        defects: Who has which.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        seed, effect = spec["seed"], spec["effect"]
        together = spec.get("site_group_corr", 0.0)
        self.spec = spec
        self.table: pd.DataFrame = draw_people(
            spec["people"], effect, (seed, PEOPLE_STREAM), together
        )
        self.world: Population = population(spec["components"])
        self.correlations: NDArray[np.float64] = draw_correlations(
            self.world,
            (self.table["group"] == "patient").to_numpy(),
            effect,
            (seed, CONNECTIVITY_STREAM),
            self._shift() if together else None,
        )
        self.defects: Defects = CLEAN
        if spec["preset"] == "dirty":
            self.defects = draw_defects(
                self.table, spec["components"], (seed, DEFECTS_STREAM)
            )

    def _shift(self) -> NDArray[np.float64]:
        """Return what each person's scanner adds, shape ``[people, C, C]``."""
        side = np.where(self.table["site"] == SITES[0], -0.5, 0.5)
        return np.asarray(side[:, None, None] * site_pattern(self.spec["components"]))


def _make(
    folder: Path, spec: dict[str, Any], timepoints: int, progress: Progress | None
) -> None:
    """Fill a folder beside the place, and rename it."""
    drawn = _Drawn(spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    partial.chmod(0o755)
    try:
        layout.write_people(partial, drawn.table, spec, drawn.defects)
        layout.write_connectivity(
            partial,
            drawn.table.index,
            drawn.world.networks,
            drawn.correlations,
            drawn.defects,
        )
        truth = {
            "mean_log_covariance": drawn.world.mean,
            "delta": drawn.world.delta,
            "correlations": drawn.correlations,
        }
        if "site_group_corr" in spec:
            truth["site_pattern"] = site_pattern(spec["components"])
        if timepoints:
            _write_timecourses(partial, drawn, timepoints, progress)
        if spec["volumes"]:
            truth |= _write_volumes(partial, drawn, progress)
        layout.write_truth(partial, truth, spec)
        if drawn.defects is not CLEAN:
            layout.write_defects(partial, drawn.defects.told(drawn.world.networks))
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster, or something stands there
            if not _stands(folder, spec):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_timecourses(
    folder: Path, drawn: _Drawn, timepoints: int, progress: Progress | None
) -> None:
    """Write everyone's time courses, and then what they are."""
    networks, people = drawn.world.networks, drawn.table.index
    stream = (drawn.spec["seed"], SIGNALS_STREAM)
    signals = draw_signals(drawn.correlations, timepoints, stream)
    for done, (who, signal) in enumerate(zip(people, signals, strict=True), start=1):
        if who != drawn.defects.missing:
            layout.write_timecourses(folder, who, networks, signal, drawn.defects)
        if progress:
            progress("simulating time courses", done, len(people))
    layout.write_timecourses_card(
        folder,
        networks,
        RepetitionTime=REPETITION_TIME,
        Timepoints=timepoints,
        Autocorrelation=AUTOCORRELATION,
    )


def _has_timecourses(folder: Path, timepoints: int) -> bool:
    """Tell whether time courses stand there; refuse those of another length."""
    card = layout.read_timecourses_card(folder)
    if card is None:
        return False
    if card.get("Timepoints") != timepoints:
        raise InputError(
            f"{folder} holds time courses of {card.get('Timepoints')} time points, "
            f"asked for is timepoints={timepoints}; name another folder or remove this "
            "one."
        )
    return True


def _write_volumes(
    folder: Path, drawn: _Drawn, progress: Progress | None
) -> dict[str, Any]:
    """Write everyone's grey-matter map; return what was planted."""
    spec, table = drawn.spec, drawn.table
    anatomy = load_anatomy(spec["voxel_mm"])
    stream = (spec["seed"], ANATOMY_STREAM)
    maps = draw_volumes(anatomy, table, spec["effect"], stream)
    for done, (who, grey) in enumerate(zip(table.index, maps, strict=True), start=1):
        if who != drawn.defects.missing:
            layout.write_volume(folder, who, grey, anatomy.affine, drawn.defects)
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
