"""Everything a run left behind, read back for reports; nothing is executed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from spectral_mlops.errors import InputError
from spectral_mlops.records import Direction, Influence
from spectral_mlops.report.input_maps import InputMaps, read_maps
from spectral_mlops.tracking import fetch_run, load_metrics, load_run
from spectral_mlops.tracking.details import read_directions, read_influence
from spectral_mlops.tracking.shards import Kind, table_of

TABLES = (
    "layers",
    "epochs",
    "trends",
    "controls",
    "coverage",
    "additivity",
    "effects",
    "predictions",
    "groups",
)
"""Tables of a run's folder, ``<name>.tsv``; a run has those that it made."""
FINAL = ("final/", "controls/")
"""How the keys of final numbers begin."""
_TEXT = dict.fromkeys(
    ("layer", "quantity", "grouping", "group", "group_a", "group_b", "pair"), str
)
"""Columns that stay text: a group may be called ``1`` or ``NA``."""


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run, as it lies in its folder or in MLflow.

    Attributes:
        name: Of the folder or the MLflow run id.
        config: Settings, nested, as ``config.json`` has them; empty if there are none.
        spectra: One row per spectrum (`load_run`).
        divergences: One row per pair of groups (`load_run`).
        metrics: One row per point (`load_metrics`).
        final: Final numbers by name.
        tables: Those of `TABLES` that there are.
        verdict: What the primary outcome means; empty if there is none.
        directions: Of the first layer at chosen epochs.
        influence: Of groups' steps on groups.
        maps: Directions brought back to the places of the features, if kept.
        pictures: PNG files of directions by name, without the ending.
    """

    name: str
    config: Mapping[str, Any]
    spectra: pd.DataFrame
    divergences: pd.DataFrame
    metrics: pd.DataFrame
    final: Mapping[str, float]
    tables: Mapping[str, pd.DataFrame]
    verdict: str
    directions: list[Direction]
    influence: list[Influence]
    maps: InputMaps | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@contextmanager
def run_folder(run: str | Path, tracking_uri: str | None = None) -> Iterator[Path]:
    """Give a run's folder; of a run in MLflow a copy, which is removed afterwards.

    Args:
        run: The run's folder, or the id of an MLflow run.
        tracking_uri: Where that is; not used for a folder.

    Raises:
        InputError: If it is the path of no folder.
        TrackingError: If there is no such run or the store cannot be used.
    """
    if Path(run).is_dir():
        yield Path(run)
        return
    if len(Path(run).parts) != 1:
        raise InputError(f"{run} is no run: there is no such folder.")
    with TemporaryDirectory(prefix="spectral-") as folder:
        fetch_run(str(run), Path(folder), tracking_uri)
        yield Path(folder)


def read_stored(
    run: str | Path, tracking_uri: str | None = None, *, files: Path | None = None
) -> StoredRun:
    """Read a run.

    Args:
        run: The run's folder, finished or not, or the id of an MLflow run.
        tracking_uri: Where that is; not used for a folder.
        files: What `run_folder` gave, if it is open already.

    Raises:
        InputError: If it is no run, or a file in it is damaged.
        TrackingError: If there is no such run or the store cannot be used.
    """
    if Path(run).is_dir():
        return _read(Path(run), Path(run).resolve().name, _metrics(Path(run)))
    with nullcontext(files) if files else run_folder(run, tracking_uri) as folder:
        return _read(folder, str(run), load_metrics(run, tracking_uri))


def _metrics(folder: Path) -> pd.DataFrame:
    """Read a folder's metrics; none of a run that kept none in its folder."""
    if (folder / "config.json").exists() and not (folder / "spool").exists():
        return pd.DataFrame(columns=["key", "step", "value", "time"])
    return load_metrics(folder)


def _records(folder: Path, kind: Kind) -> pd.DataFrame:
    """Read a folder's records; none of a run that kept none in its folder."""
    if any((folder / name).exists() for name in ("spool", "spectra")):
        return load_run(folder, kind=kind)
    frame: pd.DataFrame = table_of([], kind).to_pandas()
    return frame


def _read(folder: Path, name: str, metrics: pd.DataFrame) -> StoredRun:
    tables = {
        table: pd.read_csv(
            path, sep="\t", dtype=_TEXT, keep_default_na=False, na_values=[""]
        )
        for table in TABLES
        if (path := folder / f"{table}.tsv").exists()
    }
    verdict = folder / "verdict.txt"
    directions, influence = (
        folder / f"{kind}.parquet" for kind in ("directions", "influence")
    )
    maps = folder / "directions" / "maps.npz"
    return StoredRun(
        name=name,
        config=_json(folder / "config.json"),
        spectra=_records(folder, "spectra"),
        divergences=_records(folder, "divergences"),
        metrics=metrics,
        final=_json(folder / "final.json") or _final(metrics),
        tables=tables,
        verdict=verdict.read_text(encoding="utf-8").strip() if verdict.exists() else "",
        directions=read_directions(directions) if directions.exists() else [],
        influence=read_influence(influence) if influence.exists() else [],
        maps=read_maps(maps) if maps.exists() else None,
        pictures={
            path.stem: path.read_bytes()
            for path in sorted((folder / "directions").glob("*.png"))
        },
    )


def _final(metrics: pd.DataFrame) -> dict[str, float]:
    """Take final numbers from the metrics: MLflow has them nowhere else."""
    rows = metrics[metrics["key"].astype(str).str.startswith(FINAL)]
    return {str(k): float(v) for k, v in zip(rows["key"], rows["value"], strict=True)}


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return dict(read)
