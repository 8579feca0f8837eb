"""One complete run: trained, tracked, and left in a folder of its own."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectral_mlops.cohorts import write_splits
from spectral_mlops.config import RunConfig
from spectral_mlops.report import layer_table
from spectral_mlops.tracking import Tracker
from spectral_mlops.tracking.checks import redacted
from spectral_mlops.tracking.details import write_null
from spectral_mlops.tracking.environment import environment_tags, environment_text
from spectral_mlops.tracking.schema import schema
from spectral_mlops.training.checkpoint import Checkpoints
from spectral_mlops.training.directions import leave_directions
from spectral_mlops.training.distributed import Team
from spectral_mlops.training.images import leave_images
from spectral_mlops.training.loop import OnEpoch, Progress, train
from spectral_mlops.training.optimisation import check_precision
from spectral_mlops.training.performance import Said
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.result import RunResult

LEFT = (
    "predictions.tsv",
    "groups.tsv",
    "layers.tsv",
    "effects.tsv",
    "epochs.tsv",
    "trends.tsv",
    "controls.tsv",
    "coverage.tsv",
    "additivity.tsv",
    "performance.tsv",
    "verdict.txt",
    "null.parquet",
    "null_pairs.parquet",
    "final.json",
    "final.npz",
)
"""What lies in a run's folder at the end, and is logged."""


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
    checkpoints: bool = True,
    resume: bool = False,
    team: Team | None = None,
) -> FinishedRun:
    """Start the tracker, train, and log everything a reader will ask for.

    Nothing is left behind if the tracker cannot start. The tracker is not closed
    here, so that the caller says how the run ended.

    Args:
        plan: The run.
        tracker: Not started yet.
        folder: Made here; must not exist, unless the run is resumed.
        name: Of the run.
        tags: Beside those of the run itself.
        on_epoch: See `train`.
        device: Where tensors live.
        progress: See `train`.
        figures: Whether directions, maps and the page are drawn; it takes seconds.
        checkpoints: Whether what resuming needs is written on the way.
        resume: Whether the run was interrupted, and goes on.
        team: See `train`.

    Returns:
        The finished run.
    """
    check_precision(plan.config.training, device)
    probe = plan.probe.digest if plan.probe else "none"
    own = {
        "spectral.kind": "train",
        "spectral.groups": ", ".join(plan.groupings),
        "spectral.probe": probe,
        "spectral.profile": plan.config.tracking.profile,
        "spectral.threads": str(torch.get_num_threads()),
        **environment_tags(_words(device)),
        **({"spectral.processes": str(team.size)} if team and team.size > 1 else {}),
    }
    summary, recorded = plan.cohort.summary(), _without_password(plan.config)
    made = [] if resume else _make(folder)
    try:
        tracker.start(
            name,
            recorded.flat(),
            {**own, **(tags or {})},
            summary,
            profile=plan.config.tracking.profile,
            epochs=plan.config.training.epochs,
        )
    except BaseException:
        for empty in made:
            empty.rmdir()
        raise
    settings = folder / "config.json"
    settings.write_text(recorded.model_dump_json(indent=2) + "\n", encoding="utf-8")
    versions = folder / "environment.txt"
    versions.write_text(environment_text(_words(device)), encoding="utf-8")
    write_splits(folder / "splits", plan.probe, plan.folds)
    for path in (settings, versions):
        tracker.log_file(path)
    for path in sorted((folder / "splits").rglob("*.*")):
        inside = path.parent.relative_to(folder)
        tracker.log_file(path, inside.as_posix())
    kept = Checkpoints(folder, plan) if checkpoints else None

    def each_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 0:  # an interrupted run has a schema too
            _leave_schema(folder, plan, tracker)
        if on_epoch is not None:
            on_epoch(epoch, metrics)

    result = train(
        plan, tracker, each_epoch, device, progress, checkpoints=kept, team=team
    )
    if resume:
        _clear(folder)
    layers = layer_table(result.last_epoch, result.divergences, plan.primary)
    tracker.log_table(layers, "layers")
    if result.controls is not None:
        tracker.log_table(result.controls, "controls")
    if len(result.effects):
        tracker.log_table(result.effects, "effects")
    if len(result.trajectories):
        tracker.log_table(result.trajectories, "epochs")
    if len(result.trends):
        tracker.log_table(result.trends, "trends")
    if len(result.performance):
        tracker.log_table(result.performance, "performance")
    _leave_results(folder, result, layers)
    for path in sorted((folder / "checkpoints").glob("fold-*")):
        tracker.log_file(path, "checkpoints")
    for left in LEFT:
        if (folder / left).exists():
            tracker.log_file(folder / left)
    for path in leave_directions(
        folder,
        plan,
        result.scalers,
        result.directions,
        result.influence,
        result.angles,
        figures,
    ):
        tracker.log_file(path, "" if path.parent == folder else path.parent.name)
    _leave_schema(folder, plan, tracker)
    page, trouble = _leave_page(folder) if figures else (None, "")
    if page is not None:
        tracker.log_file(page)
    if figures:
        trouble = _leave_images(folder, plan, tracker, result) or trouble
    if kept is not None:
        kept.remove()
    return FinishedRun(result, layers, folder, page, trouble)


def _leave_images(folder: Path, plan: Plan, tracker: Tracker, result: RunResult) -> str:
    """Draw maps by epoch; return what went wrong, which loses no run."""
    try:
        leave_images(folder, plan, tracker, result.history)
    except Exception as error:
        return f"The maps in images/ were not all drawn: {error}"
    return ""


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


def _clear(folder: Path) -> None:
    """Remove results that an interrupted run had begun to write."""
    names = [*LEFT, "directions.parquet", "influence.parquet", "report.html"]
    left = [*(folder / name for name in names), *folder.glob("checkpoints/fold-*")]
    for path in left:
        path.unlink(missing_ok=True)
    for name in ("directions", "images"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _leave_results(folder: Path, result: RunResult, layers: pd.DataFrame) -> None:
    """Write checkpoints, predictions and final numbers into the run's folder."""
    _leave_checkpoints(folder / "checkpoints", result)
    _predictions(result.validation).to_csv(
        folder / "predictions.tsv", sep="\t", index=False
    )
    layers.to_csv(folder / "layers.tsv", sep="\t", index=False)
    if result.controls is not None:
        result.controls.to_csv(folder / "controls.tsv", sep="\t", index=False)
    if len(result.trajectories):
        result.trajectories.to_csv(folder / "epochs.tsv", sep="\t", index=False)
    if len(result.trends):
        result.trends.to_csv(folder / "trends.tsv", sep="\t", index=False)
    if len(result.performance):
        path = folder / "performance.tsv"
        result.performance.to_csv(path, sep="\t", index=False)
    if len(result.effects):
        result.effects.to_csv(folder / "effects.tsv", sep="\t", index=False)
    if result.null:
        write_null(result.null, folder / "null.parquet")
    if result.null_pairs:
        write_null(result.null_pairs, folder / "null_pairs.parquet")
    for name in ("groups", "coverage", "gaps"):
        file = {"gaps": "additivity"}.get(name, name)
        getattr(result, name).to_csv(folder / f"{file}.tsv", sep="\t", index=False)
    result.history.write(folder / "final.npz")
    if result.verdict:
        (folder / "verdict.txt").write_text(result.verdict + "\n", encoding="utf-8")
    final = {name: value for name, value in result.metrics.items() if value == value}
    text = json.dumps(final, indent=2) + "\n"
    (folder / "final.json").write_text(text, encoding="utf-8")


def _leave_checkpoints(folder: Path, result: RunResult) -> None:
    """Write ``fold-K.pt`` of a fold's first network, ``fold-K-seed-S.pt`` of others."""
    folder.mkdir(exist_ok=True)
    for (fold, seed), weights in zip(result.networks, result.weights, strict=True):
        name = f"fold-{fold}-seed-{seed}" if seed else f"fold-{fold}"
        torch.save(weights, folder / f"{name}.pt")
    for fold, one in enumerate(result.scalers):
        scaler: dict[str, Any] = {**one.to_arrays()}
        np.savez(folder / f"fold-{fold}-scaler.npz", **scaler)
    for fold, other in enumerate(result.adjustments):
        arrays: dict[str, Any] = {**other.to_arrays()}
        if arrays:
            np.savez(folder / f"fold-{fold}-adjustment.npz", **arrays)
    for fold, scale in enumerate(result.targets):
        np.savez(folder / f"fold-{fold}-target.npz", mean=scale.mean, sd=scale.sd)


def _predictions(validation: Sequence[Said]) -> pd.DataFrame:
    """One row per person, seed and repeat: a probability per class, or the number."""
    tables = []
    for seed, said in enumerate(validation):
        # In the order of folds, so that a person's n-th stands in the n-th repeat.
        repeat = pd.Series(said.ids).groupby(pd.Series(said.ids)).cumcount()
        tables.append(
            pd.DataFrame(
                {
                    "participant_id": said.ids,
                    "seed": seed,
                    "repeat": repeat,
                    "target": said.targets,
                    **said.columns,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _without_password(config: RunConfig) -> RunConfig:
    """Return the settings as they are written down: a store's password is not."""
    uri = config.tracking.uri
    kept = config.tracking.model_copy(update={"uri": redacted(uri) if uri else uri})
    return config.model_copy(update={"tracking": kept})


def _leave_schema(folder: Path, plan: Plan, tracker: Tracker) -> None:
    """Write what the run's names mean, and log it; again it replaces the first."""
    labels = plan.labels(np.arange(len(plan.cohort.people)))
    groups = {grouping: dict(Counter(found)) for grouping, found in labels.items()}
    more = {
        "primary_grouping": plan.primary,
        "task": plan.task.measures.task,
        "headline": plan.task.measures.headline,
        "classes": list(plan.classes),
        "target": plan.cohort.target,
        "seeds": {
            "training": plan.config.training.seed,
            "relabellings": plan.config.comparison.seed,
            "probe": plan.config.comparison.probe_seed,
        },
    }
    told = schema(tracker.names, plan.quantities, groups, more)
    path = folder / "schema.json"
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    tracker.log_file(path)


def _words(device: str) -> str:
    """Name the device: of a GPU also what it is."""
    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"
