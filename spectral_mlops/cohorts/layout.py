"""Files and folders of a simulated cohort: BIDS names, byte-for-byte repeatable.

Text has fixed decimals and line ends of one character; compressed images carry no time.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

PEOPLE = "participants.tsv"
CONNECTIVITY = "fnc.csv"
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


def write_people(folder: Path, people: pd.DataFrame, spec: Mapping[str, Any]) -> None:
    """Write the table of people, what its columns mean, and the data set's card."""
    text = people.to_csv(sep="\t", lineterminator="\n")
    (folder / PEOPLE).write_text(text, encoding="utf-8")
    _write_json(folder / "participants.json", DESCRIPTIONS)
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
) -> None:
    """Write the row-major upper triangles, six decimals, one row a person.

    Args:
        folder: Of the cohort.
        ids: One a person.
        networks: One name a network.
        correlations: Shape ``[people, C, C]``.
    """
    rows, columns = np.triu_indices(len(networks), 1)
    names = [f"{first}-{second}" for first, second in combinations(networks, 2)]
    lines = [",".join(["participant_id", *names])]
    for who, matrix in zip(ids, correlations, strict=True):
        values = (f"{value:.6f}" for value in matrix[rows, columns])
        lines.append(",".join([who, *values]))
    (folder / CONNECTIVITY).write_text("\n".join(lines) + "\n", encoding="utf-8")
    described = {
        "Description": "functional network connectivity, population value",
        "Measure": "Pearson correlation",
        "Order": f"row-major {ORDER} triangle without diagonal",
        "Networks": list(networks),
    }
    _write_json(folder / "fnc.json", described)


def write_volume(
    folder: Path, who: str, grey: NDArray[np.float64], affine: NDArray[np.float64]
) -> None:
    """Write one map as uint8 with slope 1/255, compressed without a time stamp.

    Args:
        folder: Of the cohort.
        who: The person.
        grey: Shape ``[X, Y, Z]``, between 0 and 1.
        affine: Voxel to mm, shape ``[4, 4]``.
    """
    import nibabel

    image: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        np.round(grey * 255).astype(np.uint8), affine
    )
    image.header.set_slope_inter(1 / 255, 0)
    image.header.set_xyzt_units("mm")
    for place in (image.set_sform, image.set_qform):
        place(affine, code=4)  # MNI 152
    path = volume_path(folder, who)
    path.parent.mkdir(parents=True)
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


def read_spec(folder: Path) -> dict[str, Any] | None:
    """Return a folder's specification, or None if it is no simulated cohort.

    Raises:
        InputError: If the specification is damaged.
    """
    path = folder / TRUTH / "spec.json"
    if not path.is_file():
        return None
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove {folder} to simulate it anew."
        ) from error
    return spec if isinstance(spec, dict) else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON with a final line end."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
