"""Files of a BIDS folder by their entities: ``sub-01_space-X_label-GM_probseg.nii.gz``.

Names are taken apart at underscores; nothing is guessed from folders.
"""

from collections.abc import Mapping
from pathlib import Path

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.errors import InputError

SHORT = {"subject": "sub", "session": "ses", "acquisition": "acq", "resolution": "res"}
"""Long names of entities to those in file names."""
ABSENT = ""
"""Value of a wanted entity that a file must not have."""


def parse_name(name: str) -> tuple[dict[str, str], str, str]:
    """Take a file name apart.

    Args:
        name: Without folders.

    Returns:
        Entities by short name, the suffix, and the ending with its dot.
    """
    stem, dot, ending = name.partition(".")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return entities, suffix, dot + ending


def wanted_entities(entities: Mapping[str, str], where: str) -> dict[str, str]:
    """Return entities by their short names, values without the name.

    Raises:
        InputError: If ``sub`` is among them: people come from the table.
    """
    wanted = {
        SHORT.get(name, name): value.removeprefix(f"{SHORT.get(name, name)}-")
        for name, value in entities.items()
    }
    if "sub" in wanted:
        raise InputError(
            f"{where}: entities={dict(entities)} names a person; people come from the "
            "table: choose some with keep=."
        )
    return wanted


def find_derivatives(
    root: Path, suffix: str, endings: tuple[str, ...], entities: Mapping[str, str]
) -> dict[str, Path]:
    """Find one file a person.

    Args:
        root: Folder with ``sub-*`` folders below.
        suffix: Last part of the name: ``probseg``, ``timeseries``, ``bold``.
        endings: Allowed ones: ``.nii``, ``.nii.gz``.
        entities: Values that a file must have, by short name; an empty one must be
            absent. Entities not named may be anything.

    Returns:
        Path by ``sub-…``, sorted.

    Raises:
        InputError: If the folder is missing, nothing fits, or a person has more
            than one file that fits.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root} to look for people's files in.")
    found: dict[str, list[Path]] = {}
    near: set[str] = set()
    for path in sorted(root.glob(f"sub-*/**/sub-*_{suffix}.*")):
        own, own_suffix, ending = parse_name(path.name)
        if own_suffix != suffix or ending not in endings:
            continue
        if all(own.get(name, ABSENT) == value for name, value in entities.items()):
            found.setdefault(f"sub-{own['sub']}", []).append(path)
        else:
            near.add(path.name.split("_", 1)[1])
    if not found:
        spelt = " ".join(f"{name}-{value}" for name, value in entities.items())
        seen = f"; there are {listed(sorted(near))}" if near else ""
        raise InputError(
            f"{root}: nobody has a file sub-*/**/sub-*_{suffix} ({' or '.join(endings)}"
            f"){f' with {spelt}' if spelt else ''}{seen}; set suffix= or entities=."
        )
    for who, paths in found.items():
        if len(paths) > 1:
            raise InputError(
                f"{root}: {who} has {len(paths)} files that fit ({paths[0].name}, "
                f"{paths[1].name}); they differ in {_differing(paths)}: name one in "
                "entities=."
            )
    return {who: paths[0] for who, paths in found.items()}


def _differing(paths: list[Path]) -> str:
    """Name the entities in which two files differ."""
    first, second = (parse_name(path.name)[0] for path in paths[:2])
    names = [
        name
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]
    return ", ".join(names) or "their folder or ending only"
