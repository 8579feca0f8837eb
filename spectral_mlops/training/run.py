"""One complete run: trained, tracked, and left in a folder of its own."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectral_mlops.cohorts import write_splits
from spectral_mlops.report import layer_table
from spectral_mlops.tracking import Tracker
from spectral_mlops.training.directions import leave_directions
from spectral_mlops.training.loop import OnEpoch, Progress, RunResult, train
from spectral_mlops.training.plan import Plan

LEFT = ("predictions.tsv", "layers.tsv", "epochs.tsv", "controls.tsv", "verdict.txt")
"""Tables of a run's folder that are logged where they were made."""
PACKAGES = ("spectral-mlops", "torch", "numpy", "mlflow", "optuna", "nibabel")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that went to its end.

    Attributes:
        result: What was found.
        layers: The end-of-run table per layer (`report.layer_table`).
        folder: Where settings, splits and checkpoints lie.
        page: The run's page, if it was drawn.
        trouble: Why it was not.
    """

    result: RunResult
    layers: pd.DataFrame
    folder: Path
    page: Path | None = None
    trouble: str = ""


def run(
    plan: Plan,
    tracker: Tracker,
    folder: Path,
    *,
    name: str,
    tags: Mapping[str, str] | None = None,
    on_epoch: OnEpoch | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    figures: bool = True,
) -> FinishedRun:
    """Start the tracker, train, and log everything a reader will ask for.

    Nothing is left behind if the tracker cannot start. The tracker is not closed
    here, so that the caller says how the run ended.

    Args:
        plan: The run.
        tracker: Not started yet.
        folder: Made here; must not exist.
        name: Of the run.
        tags: Beside those of the run itself.
        on_epoch: See `train`.
        device: Where tensors live.
        progress: See `train`.
        figures: Whether directions and the page are drawn; it takes seconds.

    Returns:
        The finished run.
    """
    probe = plan.probe.digest if plan.probe else "none"
    own = {
        "spectral.kind": "train",
        "spectral.groups": ", ".join(plan.groupings),
        "spectral.probe": probe,
        "spectral.machine": platform.machine(),
        "spectral.threads": str(torch.get_num_threads()),
        "spectral.device": device,
    }
    summary = plan.cohort.summary()
    made = _make(folder)
    try:
        tracker.start(name, plan.config.flat(), {**own, **(tags or {})}, summary)
    except BaseException:
        for empty in made:
            empty.rmdir()
        raise
    settings = folder / "config.json"
    settings.write_text(plan.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    versions = folder / "environment.txt"
    versions.write_text(_environment(), encoding="utf-8")
    write_splits(folder / "splits", plan.probe, plan.folds)
    for path in (settings, versions):
        tracker.log_file(path)
    for path in sorted((folder / "splits").rglob("*.tsv")):
        inside = path.parent.relative_to(folder)
        tracker.log_file(path, inside.as_posix())
    result = train(plan, tracker, on_epoch, device, progress)
    layers = layer_table(result.last_epoch, result.divergences, plan.primary)
    tracker.log_table(layers, "layers")
    if result.controls is not None:
        tracker.log_table(result.controls, "controls")
    if len(result.trajectories):
        tracker.log_table(result.trajectories, "epochs")
    _leave_results(folder, result, layers)
    for path in sorted((folder / "checkpoints").iterdir()):
        tracker.log_file(path, "checkpoints")
    for left in LEFT:
        if (folder / left).exists():
            tracker.log_file(folder / left)
    for path in leave_directions(
        folder, plan, result.scalers, result.directions, result.influence, figures
    ):
        tracker.log_file(path, "" if path.parent == folder else path.parent.name)
    page, trouble = _leave_page(folder) if figures else (None, "")
    if page is not None:
        tracker.log_file(page)
    return FinishedRun(result, layers, folder, page, trouble)


def _leave_page(folder: Path) -> tuple[Path | None, str]:
    """Draw the run's page; whatever goes wrong, the run is worth more than it."""
    # Imported here: reading runs imports MLflow, which takes seconds.
    from spectral_mlops.report.html import write_report
    from spectral_mlops.report.stored import read_stored

    try:
        return write_report(read_stored(folder), folder / "report.html"), ""
    except Exception as error:
        return None, f"The page report.html was not drawn: {error}"


def _make(folder: Path) -> list[Path]:
    """Make a folder and the parents it lacks; return those made, innermost first."""
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True)
    return made


def _leave_results(folder: Path, result: RunResult, layers: pd.DataFrame) -> None:
    """Write checkpoints, predictions and final numbers into the run's folder."""
    (folder / "checkpoints").mkdir()
    for fold, weights in enumerate(result.weights):
        torch.save(weights, folder / "checkpoints" / f"fold-{fold}.pt")
        scaler: dict[str, Any] = {**result.scalers[fold].to_arrays()}
        np.savez(folder / "checkpoints" / f"fold-{fold}-scaler.npz", **scaler)
    said = result.validation
    columns = {
        f"p_{k}": said.probabilities[:, k] for k in range(said.probabilities.shape[1])
    }
    pd.DataFrame(
        {"participant_id": said.ids, "target": said.targets, **columns}
    ).to_csv(folder / "predictions.tsv", sep="\t", index=False)
    layers.to_csv(folder / "layers.tsv", sep="\t", index=False)
    if result.controls is not None:
        result.controls.to_csv(folder / "controls.tsv", sep="\t", index=False)
    if len(result.trajectories):
        result.trajectories.to_csv(folder / "epochs.tsv", sep="\t", index=False)
    if result.verdict:
        (folder / "verdict.txt").write_text(result.verdict + "\n", encoding="utf-8")
    final = {name: value for name, value in result.metrics.items() if value == value}
    text = json.dumps(final, indent=2) + "\n"
    (folder / "final.json").write_text(text, encoding="utf-8")


def _environment() -> str:
    lines = [f"python=={platform.python_version()} ({platform.platform()})"]
    lines += [f"{package}=={metadata.version(package)}" for package in PACKAGES]
    return "\n".join(lines) + "\n"
