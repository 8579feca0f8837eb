"""Where cohort loaders are filed: a settings class and a function under one name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.copies import check_copies
from spectral_mlops.config import Component, Settings, validate
from spectral_mlops.registry import Registry

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""
Load = Callable[[Any, Path, Progress | None], Cohort]
Function = TypeVar("Function", bound=Load)


@dataclass(frozen=True)
class CohortLoader:
    """One way to get a cohort.

    Attributes:
        settings: What the user may set, a subclass of `config.Settings`.
        load: ``(settings, workdir, progress) -> Cohort``; relative paths in the
            settings are below ``workdir``.
    """

    settings: type[Settings]
    load: Load


COHORTS: Registry[str, CohortLoader] = Registry("cohort")
"""All loaders, by the name that a config's ``[cohort]`` gives."""


def register_cohort(
    name: str, settings: type[Settings]
) -> Callable[[Function], Function]:
    """Return a decorator that files a loading function under ``name``.

    Args:
        name: What the config calls it.
        settings: The settings class that is validated before the function runs.

    Returns:
        The decorator; it hands the function back unchanged.
    """

    def file(load: Function) -> Function:
        COHORTS.register(name)(CohortLoader(settings, load))
        return load

    return file


def check_cohort(component: Component) -> Settings:
    """Validate a cohort's settings without reading anything.

    Args:
        component: Its name and settings.

    Returns:
        The frozen settings of its loader.
    """
    loader = COHORTS.get(component.name)
    where = f"cohort '{component.name}'"
    return validate(loader.settings, component.settings, where)


def load_cohort(
    component: Component, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load the cohort that a config names.

    Args:
        component: Its name and settings.
        workdir: Folder that relative paths in the settings are below.
        progress: Told about long work, if given.

    Returns:
        The checked cohort.

    Raises:
        InputError: See the loader; and if two people share all features.
    """
    settings = check_cohort(component)
    cohort = COHORTS.get(component.name).load(settings, Path(workdir), progress)
    check_copies(cohort)
    return cohort
