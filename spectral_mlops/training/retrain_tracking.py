"""The test by retraining, beside everything else of the run that was retrained."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from spectral_mlops.errors import TrackingError
from spectral_mlops.tracking import Tracker, safe_name
from spectral_mlops.tracking.spool import FOLDER, read_info
from spectral_mlops.training.retrain import MEAN, RESULTS, Retrained

LOGGED = "logged.json"
"""What was delivered, and to which run, so that nothing is sent twice."""


class Delivery(NamedTuple):
    """What became of a result.

    Attributes:
        arrived: Whether MLflow has it.
        said: Where to look at it, or why it did not arrive.
    """

    arrived: bool
    said: str


def headline_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return p and z of the means over layers, as ``retrain/p_probe_gradient``.

    Args:
        table: See `Retrained`.

    Returns:
        Finite ones. The names of groupings after the first, and of pairs of groups
        where a grouping has several, stand behind.
    """
    means = table[table["layer"] == MEAN]
    found: dict[str, float] = {}
    for row in means.to_dict("records"):
        words = [str(row["source"]), str(row["quantity"])]
        own = means[means["grouping"] == row["grouping"]]
        if row["grouping"] != table["grouping"].iloc[0]:
            words.append(safe_name(str(row["grouping"])))
        if len(own[["group_a", "group_b"]].drop_duplicates()) > 1:
            words.append(safe_name(f"{row['group_a']}-{row['group_b']}"))
        for kind in ("p", "z"):
            if row[kind] == row[kind]:
                found[f"retrain/{'_'.join([kind, *words])}"] = float(row[kind])
    return found


def log_retrained(result: Retrained, tracker: Tracker, step: int) -> None:
    """Log numbers and files of a test.

    A test with more retrainings, logged later, takes the place of the one before.

    Args:
        result: The test.
        tracker: Of the run that was retrained; not closed here.
        step: Last epoch of the run, counted from 0.
    """
    numbers = {"retrain/permutations": float(result.permutations)}
    tracker.log_metrics(numbers | headline_metrics(result.table), step)
    for name in RESULTS:
        tracker.log_file(result.folder / name, result.folder.name)


def deliver(result: Retrained, run: Path, uri: str | None) -> Delivery:
    """Log a test to the MLflow run that a folder belongs to; its status stays.

    Args:
        result: The test.
        run: The folder of the run.
        uri: The store; that of the run's settings if not given.

    Returns:
        What became of it; a store that is away is no error.
    """
    info = read_info(run)
    if not info.get("run_id"):
        why = f"{run} does not say which MLflow run this is (spectral-mlops sync first)"
        return Delivery(False, f"Not logged to MLflow: {why}.")
    from spectral_mlops.tracking import MlflowTracker, sync_run

    run_id = str(info["run_id"])
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    known = str(info["tracking_uri"])
    uri = uri or (None if "***" in known else known)  # a password is never kept
    wanted = {"run_id": run_id, "uri": uri or "", "sha256": _digest(result)}
    marker = result.folder / LOGGED
    if marker.is_file() and json.loads(marker.read_text("utf-8")) == wanted:
        return Delivery(True, f"Logged before to MLflow run {run_id}.")
    folder = result.folder / f"delivery-{wanted['sha256'][:12]}"
    try:
        if (folder / FOLDER).exists():  # an earlier call got no further
            synced = sync_run(folder, uri)
            left, where = synced.undelivered, synced.where
        else:
            tracker = MlflowTracker(run_id, tracking_uri=uri, folder=folder)
            with tracker:
                tracker.start()
                log_retrained(result, tracker, config["training"]["epochs"] - 1)
            left, where = tracker.undelivered, tracker.where
    except TrackingError as error:
        return Delivery(False, f"Not logged to MLflow: {error}")
    if left:
        return Delivery(False, f"Not all of it is logged: {where}")
    shutil.rmtree(folder)
    marker.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    return Delivery(True, f"Look at it:  {where}")


def _digest(result: Retrained) -> str:
    state = hashlib.sha256()
    for name in RESULTS:
        state.update((result.folder / name).read_bytes())
    return state.hexdigest()
