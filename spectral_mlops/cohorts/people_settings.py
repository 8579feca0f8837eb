"""Settings that every loader with a table of people shares, and how they are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from spectral_mlops.cohorts.joining import Unmatched
from spectral_mlops.cohorts.labels import choose_positive
from spectral_mlops.cohorts.tables import People, read_people
from spectral_mlops.config import Settings


class PeopleSettings(Settings):
    """Which people, what they are called, and which of them count."""

    id_column: str | None = Field(None, description="found by alias if not given")
    label_column: str | None = Field(None, description="found by alias if not given")
    label_names: dict[str, str] | None = Field(None, description="0 = 'control', …")
    keep: tuple[str, ...] | None = Field(None, description="labels to keep, all if not")
    positive: str | None = Field(None, description="label counted as positive")
    unlabelled: Literal["raise", "drop"] = Field(
        "raise", description="what to do about people without a label"
    )
    unmatched: Unmatched = Field(
        "raise", description="what to do about people without files, and the reverse"
    )
    pool_pipelines: bool = Field(
        False, description="accept people whose files were made differently"
    )


def read_labelled(settings: PeopleSettings, path: Path) -> People:
    """Read a table of people as the settings say."""
    return read_people(
        path,
        settings.id_column,
        settings.label_column,
        settings.label_names,
        settings.keep,
        settings.unlabelled == "drop",
    )


def positive_of(
    settings: PeopleSettings, people: People, ids: Iterable[str], path: Path
) -> tuple[str, str]:
    """Return the positive label of some people, and a note on how it was chosen."""
    labels = [str(label) for label in people.frame.loc[list(ids), people.target]]
    return choose_positive(labels, settings.positive, people.label_column, path)
