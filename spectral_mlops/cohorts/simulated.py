"""Loader ``simulated``: makes the cohort if it is absent, then reads it from disk."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from spectral_mlops.cohorts import layout
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.fnc import FncSettings, load_fnc
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.simulator import Preset, simulate
from spectral_mlops.cohorts.space import FeatureSpace
from spectral_mlops.cohorts.tables import read_people
from spectral_mlops.cohorts.volumes import read_volumes
from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError

POSITIVE = "patient"


class SimulatedSettings(Settings):
    """Settings of the loader ``simulated``."""

    preset: Preset = Field("realistic", description="size of the group effect")
    people: int = Field(146, ge=4, description="74 controls to 72 patients")
    seed: int = Field(0, ge=0, description="of the people")
    folder: Path | None = Field(
        None, description="cohort/<preset>-<people>-<seed> if not given"
    )
    modality: Literal["fnc", "volume"] = Field("fnc", description="which features")
    volumes: bool = Field(True, description="whether grey matter is simulated at all")
    components: int = Field(53, ge=7, description="networks of the connectivity")
    voxel_mm: float = Field(4.5, ge=2, le=20, description="grid of the volumes")
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
        Features ``[people, C(C-1)/2]`` (``fnc``) or ``[people, x, y, z]``.

    Raises:
        InputError: If volumes are asked for and not simulated.
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
