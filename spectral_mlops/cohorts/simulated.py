"""Loader ``simulated``: makes the cohort if it is absent, then reads it from disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from spectral_mlops.cohorts import layout
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.fnc import FncSettings, load_fnc
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.signals import REPETITION_TIME, TIMEPOINTS
from spectral_mlops.cohorts.simulator import Preset, simulate
from spectral_mlops.cohorts.space import FeatureSpace
from spectral_mlops.cohorts.tables import read_people
from spectral_mlops.cohorts.volumes import read_volumes
from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError

POSITIVE = "patient"


class SimulatedSettings(Settings):
    """Settings of the loader ``simulated``."""

    preset: Preset = Field(
        "realistic", description="size of the group effect, or what is wrong"
    )
    people: int = Field(146, ge=4, description="74 controls to 72 patients")
    seed: int = Field(0, ge=0, description="of the people")
    folder: Path | None = Field(
        None, description="cohort/<preset>-<people>-<seed> if not given"
    )
    modality: Literal["fnc", "timecourses", "volume"] = Field(
        "fnc", description="which features"
    )
    volumes: bool = Field(True, description="whether grey matter is simulated at all")
    components: int = Field(53, ge=7, description="networks of the connectivity")
    voxel_mm: float = Field(4.5, ge=2, le=20, description="grid of the volumes")
    timepoints: int = Field(
        TIMEPOINTS, ge=10, description="of the time courses, 2 s apart"
    )
    coarsen: int = Field(2, ge=1, description="volumes: average blocks of this edge")

    @property
    def place(self) -> Path:
        """Return the folder, below the work folder unless absolute.

        A cohort without volumes is another cohort and gets a folder of its own.
        """
        if self.folder is not None:
            return self.folder
        name = f"{self.preset}-{self.people}-{self.seed}"
        return Path("cohort") / (name if self.volumes else f"{name}-fnc")


@register_cohort("simulated", SimulatedSettings)
def load_simulated(
    settings: SimulatedSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load a simulated cohort, written first if need be.

    Args:
        settings: What to simulate, and which features to read.
        workdir: Folder that the cohort's folder is below.
        progress: Told about simulating and reading.

    Returns:
        Features ``[people, C(C-1)/2]`` (``fnc``), ``[people, T, C]`` (``timecourses``)
        or ``[people, x, y, z]``.

    Raises:
        InputError: If volumes are asked for and not simulated, or files are as broken
            as the preset ``dirty`` has them.
    """
    if settings.modality == "volume" and not settings.volumes:
        raise InputError(
            "modality='volume' needs volumes=true; or choose modality='fnc'."
        )
    folder = simulate(
        workdir / settings.place,
        settings.preset,
        settings.people,
        settings.seed,
        settings.components,
        settings.voxel_mm,
        settings.volumes,
        progress,
        settings.modality == "timecourses",
        settings.timepoints,
    )
    source = f"simulated '{settings.preset}', seed {settings.seed}"
    origin = f"simulated in {settings.place}"
    if settings.modality == "fnc":
        files = FncSettings(
            features=folder / layout.CONNECTIVITY,
            labels=folder / layout.PEOPLE,
            order=layout.ORDER,
            positive=POSITIVE,
        )
        read = load_fnc(files, workdir)
        return Cohort(
            read.people,
            read.features,
            "fnc",
            read.target,
            read.positive,
            source,
            (origin, *read.notes),
            read.space,
        )
    people = read_people(folder / layout.PEOPLE)
    if settings.modality == "timecourses":
        signals, networks = _read_signals(folder, people.frame.index)
        steps = (
            f"time courses of {len(networks)} networks at {signals.shape[1]} time "
            f"points, {REPETITION_TIME:g} s apart"
        )
        return Cohort(
            people.frame,
            signals,
            "timecourses",
            people.target,
            POSITIVE,
            source,
            (origin, *people.notes, f"positive: '{POSITIVE}'", steps),
            FeatureSpace(networks=networks),
        )
    paths = {who: layout.volume_path(folder, who) for who in people.frame.index}
    features, affine = read_volumes(paths, settings.coarsen, progress)
    edges = np.round(np.linalg.norm(affine[:3, :3], axis=0), 2).tolist()
    grid = (
        f"volumes {'x'.join(map(str, features.shape[1:]))}, voxels of {edges} mm "
        f"(coarsen={settings.coarsen})"
    )
    return Cohort(
        people.frame,
        features,
        "volume",
        people.target,
        POSITIVE,
        source,
        (origin, *people.notes, f"positive: '{POSITIVE}'", grid),
        FeatureSpace(affine=affine),
    )


def _read_signals(
    folder: Path, ids: Iterable[str]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Read everyone's time courses, ``[people, T, C]``, and the networks' names."""
    found: list[NDArray[np.float32]] = []
    networks: tuple[str, ...] = ()
    for who in ids:
        path = layout.timecourse_path(folder, who)
        try:
            table = pd.read_csv(path, sep="\t", dtype=np.float32, na_values="n/a")
        except FileNotFoundError as error:
            raise InputError(
                f"{who} stands in {layout.PEOPLE} but {path} is not there; leave the "
                "person out, or simulate the cohort anew."
            ) from error
        networks = networks or tuple(str(name) for name in table.columns)
        if found and table.shape != found[0].shape:
            raise InputError(
                f"{path} has {table.shape[0]} time points of {table.shape[1]} "
                f"networks, those before have {found[0].shape[0]} of "
                f"{found[0].shape[1]}; crop them to one length."
            )
        found.append(table.to_numpy(np.float32))
    return np.stack(found), networks
