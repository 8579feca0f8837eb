"""Read a run's records back, from MLflow or from a folder."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa

from spectral_mlops.errors import InputError
from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking.pending import pending_files
from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow
from spectral_mlops.tracking.shards import (
    KINDS,
    Kind,
    read_shards,
    read_tables,
    records_of,
)
from spectral_mlops.tracking.spool import EVENTS, FOLDER, read_events
from spectral_mlops.tracking.store import Store, open_store, unusable

# isort: split
from mlflow.exceptions import MlflowException


def load_run(
    run: str | Path, tracking_uri: str | None = None, *, kind: Kind = "spectra"
) -> pd.DataFrame:
    """Return all spectra, or all divergences, of a run as one tidy frame.

    Args:
        run: Id of an MLflow run, or the run's folder, finished or not.
        tracking_uri: Where the run is; see `open_store`. Not used for a folder.
        kind: ``spectra`` or ``divergences``.

    Returns:
        One row per spectrum, with the singular values as an array in ``values``
        and each summary as a column; or one row per pair of groups, layer and
        quantity. Rows stand in the order they were logged. ``frame.attrs`` has the
        ``null_epochs``, those in which something was relabelled (-1: the untrained
        network).

    Raises:
        InputError: If the run has no records at all, or ``kind`` is unknown.
        TrackingError: If there is no such run or the store cannot be used.
    """
    if kind not in KINDS:
        raise InputError(f"kind='{kind}': choose one of {', '.join(KINDS)}.")
    tables = _tables(run, tracking_uri)
    frame: pd.DataFrame = tables[kind].to_pandas()
    # null in runs of before there were several
    frame = frame.assign(seed=frame["seed"].fillna(0).astype("int64"))
    frame.attrs["null_epochs"] = _null_epochs(tables["divergences"])
    return frame


def _null_epochs(divergences: pa.Table) -> list[int]:
    """Epochs in which a comparison has a null."""
    epochs, nulls = (divergences[name].to_pylist() for name in ("epoch", "null"))
    pairs = zip(epochs, nulls, strict=True)
    return sorted({epoch for epoch, null in pairs if null not in ("", "none")})


def load_records(run: str | Path, tracking_uri: str | None = None) -> list[EpochRecord]:
    """Return a run's records as they were logged (see `load_run`).

    Raises:
        InputError: If the run has no records at all.
        TrackingError: If there is no such run or the store cannot be used.
    """
    tables = _tables(run, tracking_uri)
    return records_of(tables["spectra"], tables["divergences"])


def load_metrics(run: str | Path, tracking_uri: str | None = None) -> pd.DataFrame:
    """Return every metric of a run, from MLflow or from the run's folder alike.

    Returns:
        One row per point: ``key``, ``step`` (the epoch), ``value``, ``time`` (ms since
        1970), ordered by key, then step.

    Raises:
        InputError: If the folder is no run.
        TrackingError: If there is no such run or the store cannot be used.
    """
    if Path(run).is_dir():
        if not (Path(run) / FOLDER / EVENTS).exists():
            raise InputError(f"{run} has no {FOLDER}/{EVENTS}: it is no run's folder.")
        rows = [
            (key, event.body["step"], value, event.time)
            for event in read_events(Path(run))
            if event.kind == "metrics"
            for key, value in event.body["metrics"].items()
        ]
    else:
        store = open_store(tracking_uri)
        with quiet():
            try:
                keys = store.client.get_run(str(run)).data.metrics
                rows = [
                    (point.key, point.step, point.value, point.timestamp)
                    for key in keys
                    for point in store.client.get_metric_history(str(run), key)
                ]
            except (MlflowException, OSError) as error:
                raise unusable(store.uri, error) from error
    frame = pd.DataFrame(rows, columns=["key", "step", "value", "time"])
    frame = frame.astype({"step": "int64", "value": "float64", "time": "int64"})
    return frame.sort_values(["key", "step"], kind="stable", ignore_index=True)


def fetch_run(run: str, folder: Path, tracking_uri: str | None = None) -> None:
    """Copy all files of an MLflow run into a folder, laid out as a run's folder is.

    Raises:
        TrackingError: If there is no such run or the store cannot be used.
    """
    store = open_store(tracking_uri)
    with quiet():
        try:
            info = store.client.get_run(run).info
            store.check_files(info.artifact_uri, f"Run {run}")
            for item in store.client.list_artifacts(run):
                store.client.download_artifacts(run, item.path, str(folder))
        except (MlflowException, OSError) as error:
            raise unusable(store.uri, error) from error


def _tables(run: str | Path, tracking_uri: str | None) -> dict[Kind, pa.Table]:
    if Path(run).is_dir():
        tables = {kind: _of_folder(Path(run), kind) for kind in KINDS}
    else:
        store = open_store(tracking_uri)
        with TemporaryDirectory(prefix="spectral-") as folder, quiet():
            try:
                _download(store, str(run), Path(folder))
            except (MlflowException, OSError) as error:
                raise unusable(store.uri, error) from error
            tables = {kind: read_shards(Path(folder), kind) for kind in KINDS}
    if not any(table.num_rows for table in tables.values()):
        raise InputError(
            f"Run {run} holds no spectra: there is no spectra/part-00000.parquet."
        )
    return tables


def _of_folder(folder: Path, kind: Kind) -> pa.Table:
    """Read a run's folder: its parts, and what an unfinished run has beside them."""
    parts = sorted((folder / kind).glob("part-*.parquet"))
    return read_tables([*parts, *pending_files(folder, kind)], kind)


def _download(store: Store, run_id: str, folder: Path) -> None:
    """Copy the parts of a run into a folder."""
    info = store.client.get_run(run_id).info
    store.check_files(info.artifact_uri, f"Run {run_id}")
    arrived = folder / "arrived"
    arrived.mkdir()
    for kind in KINDS:
        (folder / kind).mkdir()
        for item in store.client.list_artifacts(run_id, kind):
            # Some file stores put it in a folder of its name below, some do not.
            got = Path(store.client.download_artifacts(run_id, item.path, str(arrived)))
            got.replace(folder / kind / got.name)
