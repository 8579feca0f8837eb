"""The command that trains."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli.settings import (
    free,
    nested,
    numbers,
    prepare_torch,
    read_settings,
)
from spectral_mlops.cli.terminal import (
    UNDELIVERED,
    console,
    describe,
    notice,
    problems,
    progress_bar,
    reporter,
)

if TYPE_CHECKING:
    from spectral_mlops.config import RunConfig
    from spectral_mlops.training import FinishedRun, Plan
    from spectral_mlops.training.distributed import Team


def train(
    config: options.ConfigFile = None,
    cohort: options.CohortName = None,
    features: options.Features = None,
    labels: options.LabelsTable = None,
    order: options.Order = None,
    id_column: options.IdColumn = None,
    label_column: options.LabelColumn = None,
    positive: options.Positive = None,
    missing: options.Missing = None,
    modality: options.Modality = None,
    preset: options.Preset = None,
    people: options.People = None,
    cohort_seed: options.CohortSeed = None,
    task: options.Task = None,
    target: options.Target = None,
    epochs: options.Epochs = None,
    folds: options.Folds = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    model: options.Model = None,
    hidden: options.Hidden = None,
    dropout: options.Dropout = None,
    groupings: options.Groupings = None,
    permutations: options.Permutations = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    controls: Annotated[
        bool | None,
        typer.Option(
            "--controls/--no-controls",
            help="Hold the primary outcome against controls: the untrained network, "
            "surrogate inputs, people of equal loss, nuisance groups, others.",
            show_default=False,
        ),
    ] = None,
    crossfit: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Hold everyone out once, in so many runs, and combine their p: for "
            "cohorts too small for a probe.",
        ),
    ] = None,
    unseen_by: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Refuse people who trained or chose checkpoints in that run, so that "
            "the two are of different people; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tracking: options.TrackingUri = None,
    experiment: options.Experiment = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    runs: options.Runs = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Go on with a run that was interrupted, in the folder it was begun "
            "in; its settings are its own.",
            show_default=False,
        ),
    ] = None,
    trust: options.Trust = False,
) -> None:
    """Train on a cohort and watch the spectra of its groups.

    With no options: makes a simulated COBRE-like cohort in ./cohort, trains an MLP
    on its functional connectivity in stratified folds, and logs to ./mlflow.db.
    Started by torchrun, several processes share every batch.
    """
    flags = nested(
        {
            "cohort.name": cohort,
            "cohort.settings.features": features,
            "cohort.settings.labels": labels,
            "cohort.settings.order": order,
            "cohort.settings.id_column": id_column,
            "cohort.settings.label_column": label_column,
            "cohort.settings.positive": positive,
            "cohort.settings.missing": missing,
            "cohort.settings.modality": modality,
            "cohort.settings.preset": preset,
            "cohort.settings.people": people,
            "cohort.settings.seed": cohort_seed,
            "training.task": task,
            "training.target": target,
            "training.epochs": epochs,
            "training.folds": folds,
            "training.batch_size": batch_size,
            "training.learning_rate": learning_rate,
            "training.seed": seed,
            "training.seeds": seeds,
            "training.unseen_by": [str(run) for run in unseen_by or ()] or None,
            "model.name": model,
            "model.settings.hidden": numbers("--hidden", hidden),
            "model.settings.dropout": dropout,
            "comparison.groupings": groupings.split(",") if groupings else None,
            "comparison.permutations": permutations,
            "controls.run": controls,
            "tracking.uri": tracking,
            "tracking.experiment": experiment,
        }
    )
    settings = None if resume is not None else read_settings(config, flags)
    prepare_torch(device, threads)
    from spectral_mlops.training.distributed import joined

    with joined(device) as (team, own):
        if settings is None:
            assert resume is not None
            undelivered = _resume(resume, flags, config, crossfit, own, trust, team)
        else:
            undelivered = _begin(settings, crossfit, own, runs, team)
    if undelivered:
        raise typer.Exit(UNDELIVERED)


def _begin(
    settings: "RunConfig", crossfit: int | None, device: str, runs: Path, team: "Team"
) -> int:
    """Make a run, or those of all parts; return what was not delivered."""
    from spectral_mlops.training import make_plan

    with progress_bar() as bar:
        plan = team.in_turn(lambda: make_plan(settings, Path.cwd(), reporter(bar)))
    name = f"train-{datetime.now():%Y%m%d-%H%M%S}"
    if crossfit is not None:
        return _train_parts(plan, crossfit, name, device, runs, team)
    if not team.first:
        return _assist([plan], device, team)
    uri, folder = settings.tracking.uri, free(runs / name)
    return _train_one(plan, name, device, folder, uri, team)[1]


def _assist(plans: "Sequence[Plan]", device: str, team: "Team") -> int:
    """Work for the first process, which tracks, writes and speaks."""
    from spectral_mlops.training import assist

    for plan in plans:
        assist(plan, device, team)
    return 0


def _resume(
    folder: Path,
    flags: Mapping[str, Any],
    config: Path | None,
    crossfit: int | None,
    device: str,
    trust: bool,
    team: "Team",
) -> int:
    """Go on with an interrupted run; return what was not delivered."""
    from spectral_mlops.errors import InputError
    from spectral_mlops.training import read_plan

    given = {name for name in flags if name != "tracking"}
    given |= {"--config"} if config else set()
    given |= {"--crossfit"} if crossfit else set()
    if given:
        raise InputError(
            f"--resume goes on with the settings of {folder}: leave out those of "
            f"{', '.join(sorted(given))}."
        )
    with progress_bar() as bar:
        plan = team.in_turn(
            lambda: read_plan(
                folder, Path.cwd(), reporter(bar), finished=False, trust=trust
            )
        )
    if not team.first:
        return _assist([plan], device, team)
    written = plan.config.tracking.uri or ""
    tracking = flags.get("tracking", {}).get("uri")
    tracking = tracking or (None if "***" in written else written or None)
    one = plan, folder.name, device, folder, tracking
    return _train_one(*one, team, resume=True)[1]


def _train_one(
    plan: "Plan",
    name: str,
    device: str,
    folder: Path,
    tracking: str | None,
    team: "Team",
    *,
    resume: bool = False,
) -> tuple["FinishedRun", int]:
    """Make one tracked run and show it; also return what was not delivered."""
    from spectral_mlops.report.console import (
        show_controls,
        show_effects,
        show_performance,
        show_run,
    )
    from spectral_mlops.tracking import open_tracker
    from spectral_mlops.training import run
    from spectral_mlops.training.interrupts import noted
    from spectral_mlops.training.trajectories import sentences

    for note in plan.notes:
        console.print(note, highlight=False)
    settings = plan.config
    experiment = settings.tracking.experiment
    tracker = open_tracker(tracking, experiment, folder, notice=notice)
    signals = noted(signal.SIGINT, signal.SIGTERM)
    with (
        signals as interrupted,
        _saying_how_to_go_on(folder),
        tracker,
        progress_bar() as bar,
    ):
        task = bar.add_task("training", total=settings.training.epochs)
        report = reporter(bar)

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            interrupted.check()
            bar.update(task, completed=epoch + 1, description=describe(metrics))

        def progress(what: str, done: int, total: int) -> None:
            interrupted.check()
            report(what, done, total)

        finished = run(
            plan,
            tracker,
            folder,
            name=name,
            on_epoch=on_epoch,
            device=device,
            progress=progress,
            resume=resume,
            team=team,
        )
    result = finished.result
    ran = result.metrics.get("final/epochs", settings.training.epochs)
    if ran < settings.training.epochs:
        console.print(
            f"Stopped after {ran:.0f} of {settings.training.epochs} epochs: no network "
            f"had a lower validation loss for {settings.training.patience} "
            "(training.patience).",
            highlight=False,
        )
    measures = plan.task.measures
    reduced = settings.training.amp != "none"
    show_run(console, finished.layers, result.groups, result.metrics, measures, reduced)
    if len(result.performance):
        show_performance(console, result.performance, measures)
    if len(result.effects):
        show_effects(console, result.effects, plan.primary_quantity)
    if result.controls is not None:
        show_controls(console, result.controls)
    for said in sentences(result.trajectories):
        console.print(said, highlight=False, markup=False)
    if result.verdict:
        console.print(result.verdict, highlight=False, markup=False)
    if finished.trouble:
        notice(finished.trouble)
    elif finished.page is not None:
        console.print(f"Its page: {finished.page}", highlight=False, soft_wrap=True)
    console.print(f"Files of this run: {finished.folder}", highlight=False)
    console.print(f"Look at it:  {tracker.where}", highlight=False, soft_wrap=True)
    return finished, tracker.undelivered


@contextmanager
def _saying_how_to_go_on(folder: Path) -> "Iterator[None]":
    """Of a run that is interrupted, say what is saved and which command goes on."""
    from spectral_mlops.errors import ProcessError

    try:
        yield
    except (KeyboardInterrupt, ProcessError):
        if (folder / "splits" / "splits.json").is_file():
            saved = (folder / "checkpoints" / "last.pt").is_file()
            reached = "some seconds ago at most" if saved else "at its beginning"
            problems.print(
                f"Interrupted. The run is saved as it was {reached}; go on with it in "
                f"this folder:  spectral-mlops train --resume {folder}",
                style="yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        raise


def _train_parts(
    plan: "Plan", parts: int, name: str, device: str, runs: Path, team: "Team"
) -> int:
    """Make a run of each part, and say what they show together."""
    from spectral_mlops.report.console import show_parts
    from spectral_mlops.training.crossfit import crossfit_plans, crossfit_table

    plans = crossfit_plans(plan, parts)
    if not team.first:
        return _assist(plans, device, team)
    finished, undelivered = [], 0
    for number, part in enumerate(plans, start=1):
        of = f"{name}-part-{number}"
        uri = plan.config.tracking.uri
        one, lost = _train_one(part, of, device, free(runs / of), uri, team)
        finished.append(one.result)
        undelivered += lost
    table, said = crossfit_table(plan, plans, finished)
    folder = free(runs / f"{name}-crossfit")
    folder.mkdir(parents=True)
    table.to_csv(folder / "crossfit.tsv", sep="\t", index=False)
    (folder / "verdict.txt").write_text(said + "\n", encoding="utf-8")
    show_parts(console, table)
    console.print(said, highlight=False, markup=False)
    console.print(f"Files of all parts: {folder}", highlight=False)
    return undelivered
