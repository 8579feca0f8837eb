"""Loader ``planted``: the simulator's people with a group effect of any size.

The presets know three sizes only, and write files; this is the same draw in memory,
for a number, rounded as the files are.
"""

from functools import cache
from pathlib import Path

import numpy as np
from pydantic import Field

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.connectivity import (
    Population,
    draw_correlations,
    population,
)
from spectral_mlops.cohorts.demographics import draw_people
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.simulator import CONNECTIVITY_STREAM, PEOPLE_STREAM
from spectral_mlops.config import Settings

DECIMALS = 6
"""Of connections in a simulated cohort's file."""


class PlantedSettings(Settings):
    """Settings of the loader ``planted``."""

    effect: float = Field(1.0, ge=0, description="1 is that of preset 'realistic'")
    people: int = Field(146, ge=4, description="74 controls to 72 patients")
    seed: int = Field(0, ge=0, description="of the people")
    components: int = Field(53, ge=7, description="networks of the connectivity")


@cache
def world_of(components: int) -> Population:
    """The population that everyone is drawn from."""
    return population(components)


@register_cohort("planted", PlantedSettings)
def load_planted(
    settings: PlantedSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Draw a cohort; the same seed gives the same people whatever the effect.

    Args:
        settings: What to draw.
        workdir: Not used.
        progress: Not used.

    Returns:
        Features ``[people, C(C-1)/2]``.
    """
    del workdir, progress
    people = draw_people(
        settings.people, settings.effect, (settings.seed, PEOPLE_STREAM)
    )
    matrices = draw_correlations(
        world_of(settings.components),
        (people["group"] == "patient").to_numpy(),
        settings.effect,
        (settings.seed, CONNECTIVITY_STREAM),
    )
    rows, columns = np.triu_indices(settings.components, 1)
    return Cohort(
        people,
        matrices[:, rows, columns].round(DECIMALS).astype(np.float32),
        "fnc",
        "group",
        "patient",
        f"simulated, effect {settings.effect:g}, seed {settings.seed}",
    )
