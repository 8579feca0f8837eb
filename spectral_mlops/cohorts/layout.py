"""Files and folders of a simulated cohort: BIDS names, byte-for-byte repeatable.

Text has fixed decimals and line ends of one character; compressed images carry no time.
"""

import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts.defects import CLEAN, Defects
from spectral_mlops.errors import InputError

PEOPLE = "participants.tsv"
CONNECTIVITY = "fnc.csv"
TIMESERIES = "task-rest_desc-ica_timeseries"
TRUTH = "ground_truth"
ORDER = "upper"
SPACE = "MNI152NLin2009cAsym"

DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "group": {
        "Description": "simulated diagnosis",
        "Levels": {"control": "unaffected", "patient": "carries the planted effect"},
    },
    "age": {"Description": "age", "Units": "years"},
    "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "scanner, balanced within groups"},
    "fd": {"Description": "mean framewise displacement", "Units": "mm"},
}


def volume_path(folder: Path, who: str) -> Path:
    """Return where a person's grey-matter map stands."""
    return folder / who / "anat" / f"{who}_space-{SPACE}_label-GM_probseg.nii.gz"


def timecourse_path(folder: Path, who: str) -> Path:
    """Return where a person's time courses stand."""
    return folder / who / "func" / f"{who}_{TIMESERIES}.tsv"


def write_people(
    folder: Path,
    people: pd.DataFrame,
    spec: Mapping[str, Any],
    defects: Defects = CLEAN,
) -> None:
    """Write the table of people, what its columns mean, and the data set's card."""
    table = people
    if defects.twice:
        again = people.loc[[defects.twice]]
        table = pd.concat([people, again.assign(age=(again["age"] + 1.5).round(1))])
    text = table.to_csv(sep="\t", lineterminator="\n")
    (folder / PEOPLE).write_text(text, encoding="utf-8")
    described = dict(DESCRIPTIONS)
    if spec.get("site_group_corr"):
        described["site"] = {"Description": "scanner, nearly the same as group"}
    _write_json(folder / "participants.json", described)
    generator = spec["generator"]
    card = {
        "Name": f"Simulated cohort '{spec['preset']}', seed {spec['seed']}",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": generator["name"], "Version": str(generator["version"])}
        ],
    }
    _write_json(folder / "dataset_description.json", card)
    (folder / "README").write_text(
        "Simulated people: no row, map or number here belongs to anyone.\n"
        f"What was planted stands in {TRUTH}/.\n",
        encoding="utf-8",
    )


def write_connectivity(
    folder: Path,
    ids: Iterable[str],
    networks: Sequence[str],
    correlations: NDArray[np.float64],
    defects: Defects = CLEAN,
) -> None:
    """Write the row-major upper triangles, six decimals, one row a person.

    Args:
        folder: Of the cohort.
        ids: One a person.
        networks: One name a network.
        correlations: Shape ``[people, C, C]``.
        defects: Who has no row, and whose connections of a network are ``n/a``.
    """
    rows, columns = np.triu_indices(len(networks), 1)
    names = [f"{first}-{second}" for first, second in combinations(networks, 2)]
    lines = [",".join(["participant_id", *names])]
    lacking = (rows == defects.network) | (columns == defects.network)
    for who, matrix in zip(ids, correlations, strict=True):
        values = [f"{value:.6f}" for value in matrix[rows, columns]]
        if who in (defects.nan, defects.dead):
            values = [
                "n/a" if gone else value
                for value, gone in zip(values, lacking, strict=True)
            ]
        if who != defects.missing:
            lines.append(",".join([who, *values]))
    (folder / CONNECTIVITY).write_text("\n".join(lines) + "\n", encoding="utf-8")
    described = {
        "Description": "functional network connectivity, population value",
        "Measure": "Pearson correlation",
        "Order": f"row-major {ORDER} triangle without diagonal",
        "Networks": list(networks),
    }
    _write_json(folder / "fnc.json", described)


def write_timecourses(
    folder: Path,
    who: str,
    networks: Sequence[str],
    signals: NDArray[np.float64],
    defects: Defects = CLEAN,
) -> None:
    """Write one person's time courses, four decimals, one column a network.

    Args:
        folder: Of the cohort.
        who: The person.
        networks: One name a network.
        signals: Shape ``[T, C]``.
        defects: Whose network is ``n/a`` or never changes, and who was scanned shorter.
    """
    kept = signals[: defects.length(who, len(signals))]
    if who == defects.dead:
        kept = kept.copy()
        kept[:, defects.network] = 0.0
    columns = np.char.mod("%.4f", kept)
    if who == defects.nan:
        columns[:, defects.network] = "n/a"
    lines = ["\t".join(networks), *("\t".join(row) for row in columns)]
    path = timecourse_path(folder, who)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, "\n".join(lines) + "\n")


def write_timecourses_card(folder: Path, networks: Sequence[str], **facts: Any) -> None:
    """Say what the time courses are; stands there once all of them do.

    Args:
        folder: Of the cohort.
        networks: One name a network.
        facts: BIDS's own keys and others.
    """
    card = {
        "Description": "simulated time courses of independent components, z units",
        "Networks": list(networks),
        **facts,
    }
    text = json.dumps(card, indent=2, ensure_ascii=False)
    _replace(folder / f"{TIMESERIES}.json", text + "\n")


def read_timecourses_card(folder: Path) -> dict[str, Any] | None:
    """Return what `write_timecourses_card` wrote, or None if it has not yet.

    Raises:
        InputError: If it is damaged.
    """
    return _read_json(folder, folder / f"{TIMESERIES}.json")


def write_volume(
    folder: Path,
    who: str,
    grey: NDArray[np.float64],
    affine: NDArray[np.float64],
    defects: Defects = CLEAN,
) -> None:
    """Write one map as uint8 with slope 1/255, compressed without a time stamp.

    Args:
        folder: Of the cohort.
        who: The person.
        grey: Shape ``[X, Y, Z]``, between 0 and 1.
        affine: Voxel to mm, shape ``[4, 4]``.
        defects: Whose map is stored right to left, and whose as big-endian floats:
            the same map in the same place, written otherwise.
    """
    import nibabel

    voxels: NDArray[Any] = np.round(grey * 255).astype(np.uint8)
    if who in defects.flipped:
        turn = np.diag([-1.0, 1.0, 1.0, 1.0])
        turn[0, 3] = len(voxels) - 1
        voxels, affine = voxels[::-1], affine @ turn
    header: Any = None
    if who == defects.big_endian:
        header = nibabel.Nifti1Header(endianness=">")  # type: ignore[no-untyped-call]
        header.set_data_dtype(">f4")
        voxels = (voxels / np.float32(255)).astype(">f4")
    image: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        voxels, affine, header
    )
    if header is None:
        image.header.set_slope_inter(1 / 255, 0)
    image.header.set_xyzt_units("mm")
    for place in (image.set_sform, image.set_qform):
        place(affine, code=4)  # MNI 152
    path = volume_path(folder, who)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as stream,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0) as packed,
    ):
        packed.write(image.to_bytes())


def write_truth(
    folder: Path, truth: Mapping[str, NDArray[Any]], spec: Mapping[str, Any]
) -> None:
    """Write what was planted as float32 arrays, and the specification."""
    (folder / TRUTH).mkdir()
    arrays = {name: array.astype(np.float32) for name, array in truth.items()}
    np.savez(folder / TRUTH / "truth.npz", **arrays)  # type: ignore[arg-type]
    _write_json(folder / TRUTH / "spec.json", spec)


def write_defects(folder: Path, told: Mapping[str, Any]) -> None:
    """Write what is wrong with whom."""
    _write_json(folder / TRUTH / "defects.json", told)


def read_spec(folder: Path) -> dict[str, Any] | None:
    """Return a folder's specification, or None if it is no simulated cohort.

    Raises:
        InputError: If the specification is damaged.
    """
    return _read_json(folder, folder / TRUTH / "spec.json")


def _read_json(folder: Path, path: Path) -> dict[str, Any] | None:
    """Return a file's content; None if there is no such file, or no mapping in it."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove {folder} to simulate it anew."
        ) from error
    return content if isinstance(content, dict) else None


def _replace(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON with a final line end."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
