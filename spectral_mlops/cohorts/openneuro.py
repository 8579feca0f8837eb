"""Loader ``openneuro``: a data set by its accession number, from a data folder.

What lies in the folder is read as any BIDS folder. nilearn has an index of ds000030
alone, so only that one can be downloaded, in the release that the index is of.
"""

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from pydantic import Field

from spectral_mlops.cohorts.bids import (
    SUFFIX,
    BidsFiles,
    BidsSettings,
    load_bids,
    read_bids_people,
)
from spectral_mlops.cohorts.cohort import Cohort, listed
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.public import FetchSettings, data_folder, named
from spectral_mlops.cohorts.tables import People
from spectral_mlops.errors import InputError

INDEXED = "ds000030_R1.0.4"
"""The one release of which nilearn knows what files there are."""
TABLE = "participants.tsv"


class OpenneuroSettings(BidsFiles, FetchSettings):
    """Settings of the loader ``openneuro``."""

    dataset: str = Field(pattern=r"^ds\d{6}$", description="such as ds000030")
    derivatives: Path = Field(
        Path("fmriprep"), description="below derivatives/, or a folder elsewhere"
    )


@register_cohort("openneuro", OpenneuroSettings)
def load_openneuro(
    settings: OpenneuroSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load a data set of OpenNeuro that lies in ``<data_dir>/dsNNNNNN``.

    Args:
        settings: Which data set and derivatives, and what is done with them.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        As `bids.load_bids`.

    Raises:
        InputError: If the folder, its table or its derivatives are missing, or a
            download is asked for that nilearn cannot do.
    """
    name = settings.dataset
    if settings.download and name != INDEXED.partition("_")[0]:
        raise InputError(
            f"{name} cannot be downloaded: nilearn knows the files of "
            f"{INDEXED.partition('_')[0]} alone; fetch it as its page on OpenNeuro "
            f"says (Download), into a folder {name} of data_dir."
        )

    def fetch(datasets: Any, folder: str | None) -> None:
        place, urls = _index(datasets, folder)
        tables = [url for url in urls if "/sub-" not in url and _is_table(url)]
        datasets.fetch_openneuro_dataset(tables, folder, INDEXED, verbose=0)
        people = read_bids_people(_bids(settings, place), workdir)[0]
        chosen = _chosen(people, settings.n_subjects)
        files = [
            url
            for filters in _filters(settings)
            for url in datasets.select_from_index(urls, inclusion_filters=filters)
            if any(f"/{who}/" in url for who in chosen)
        ]
        if not files:
            raise InputError(
                f"{INDEXED} has no file of derivatives '{settings.derivatives}' with "
                f"{settings.entities} for {listed(chosen)}; change derivatives=, "
                "suffix= or entities=."
            )
        datasets.fetch_openneuro_dataset(sorted({*files}), folder, INDEXED, verbose=0)

    found = data_folder(settings, workdir, name, fetch if settings.download else None)
    root = _release(found.absolute(), name)
    cohort = load_bids(_bids(settings, root, workdir), workdir, progress)
    return named(cohort, f"openneuro ({root.relative_to(found.absolute().parent)})")


def _index(datasets: Any, folder: str | None) -> tuple[Path, list[str]]:
    """Return where nilearn puts the data set, and the addresses of all of its files."""
    place, urls = datasets.fetch_ds000030_urls(data_dir=folder, verbose=0)
    return Path(place).parent.absolute(), urls


def _is_table(url: str) -> bool:
    """Tell whether a file is small and about people or pipelines."""
    return "/stimuli/" not in url and url.endswith((".tsv", ".json"))


def _chosen(people: People, number: int | None) -> list[str]:
    """Take people of all groups in turn: ids are often sorted by group."""
    groups = people.frame.groupby(people.target, sort=True).groups.values()
    turns: Iterator[Any] = chain.from_iterable(zip_longest(*groups))
    return [str(who) for who in turns if who is not None][:number]


def _filters(settings: OpenneuroSettings) -> list[list[str]]:
    """Return nilearn's filters of the files that are read, and of their confounds.

    By values of entities: names of this release are older than their names in BIDS.
    """
    below = f"*/derivatives/{settings.derivatives}/sub-*"
    suffix = settings.suffix or SUFFIX[settings.modality]
    values = [f"*{value}*" for value in settings.entities.values() if value]
    filters = [[below, f"*{suffix}*", *values]]
    if settings.confounds:
        tasks = [f"*{x}*" for name, x in settings.entities.items() if name == "task"]
        filters.append([below, "*confounds*", *tasks])
    return filters


def _release(folder: Path, name: str) -> Path:
    """Return the folder with the table: this one, or that of a release below it.

    Raises:
        InputError: If there is none, or several.
    """
    places = [folder, *sorted(folder.glob(f"{name}_*/uncompressed"))]
    found = [place for place in places if (place / TABLE).is_file()]
    if len(found) != 1:
        shown = listed(place.parent.name for place in found)
        raise InputError(
            f"{folder} has {f'several releases ({shown})' if found else f'no {TABLE}'}"
            "; put one release of the data set there."
        )
    return found[0]


def _bids(
    settings: OpenneuroSettings, root: Path, workdir: Path | None = None
) -> BidsSettings:
    """Return the settings of the BIDS folder; find its derivatives if ``workdir``."""
    inside = root / "derivatives" / settings.derivatives
    if workdir is not None and not inside.is_dir():
        elsewhere = (workdir / settings.derivatives).absolute()
        if not elsewhere.is_dir():
            known = sorted(x.name for x in (root / "derivatives").glob("*/"))
            raise InputError(
                f"{root} has no derivatives '{settings.derivatives}' (there are "
                f"{', '.join(known) or 'none'}), and there is no folder {elsewhere}; "
                "set derivatives=."
            )
        inside = elsewhere
    given = settings.model_dump(include={*BidsFiles.model_fields}, exclude_unset=True)
    return BidsSettings(**given | {"folder": root, "derivatives": inside})
