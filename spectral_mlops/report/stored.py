"""Everything a run left behind, read back for reports; nothing is executed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from spectral_mlops.errors import InputError
from spectral_mlops.records import Direction, Influence
from spectral_mlops.tracking import fetch_run, load_metrics, load_run
from spectral_mlops.tracking.details import read_directions, read_influence

TABLES = (
    "layers",
    "epochs",
    "controls",
    "coverage",
    "additivity",
    "effects",
    "predictions",
    "groups",
)
"""Tables of a run's folder, ``<name>.tsv``; a run has those that it made."""


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


def read_stored(run: str | Path, tracking_uri: str | None = None) -> StoredRun:
    """Read a run.

    Args:
        run: The run's folder, finished or not, or the id of an MLflow run.
        tracking_uri: Where that is; not used for a folder.

    Raises:
        InputError: If it is no run, or a file in it is damaged.
        TrackingError: If there is no such run or the store cannot be used.
    """
    if Path(run).is_dir():
        return _read(Path(run), Path(run).name, load_metrics(run))
    metrics = load_metrics(run, tracking_uri)
    with TemporaryDirectory(prefix="spectral-") as folder:
        fetch_run(str(run), Path(folder), tracking_uri)
        return _read(Path(folder), str(run), metrics)


def _read(folder: Path, name: str, metrics: pd.DataFrame) -> StoredRun:
    tables = {
        table: pd.read_csv(path, sep="\t")
        for table in TABLES
        if (path := folder / f"{table}.tsv").exists()
    }
    verdict = folder / "verdict.txt"
    directions, influence = (
        folder / f"{kind}.parquet" for kind in ("directions", "influence")
    )
    return StoredRun(
        name=name,
        config=_json(folder / "config.json"),
        spectra=load_run(folder),
        divergences=load_run(folder, kind="divergences"),
        metrics=metrics,
        final=_json(folder / "final.json"),
        tables=tables,
        verdict=verdict.read_text(encoding="utf-8").strip() if verdict.exists() else "",
        directions=read_directions(directions) if directions.exists() else [],
        influence=read_influence(influence) if influence.exists() else [],
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return dict(read)
