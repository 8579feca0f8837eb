"""The commands of studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli.settings import nested, prepare_torch, read_settings
from spectral_mlops.cli.terminal import (
    FAILED,
    UNDELIVERED,
    console,
    describe,
    progress_bar,
    reporter,
)

if TYPE_CHECKING:
    from spectral_mlops.sweeps.stopping import Pruner


sweeps = typer.Typer()


@sweeps.callback(invoke_without_command=True)
def sweep(
    context: typer.Context,
    config: options.ConfigFile = None,
    space: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of what a trial may change; if not given: depth, width, "
            "learning rate and dropout of the mlp.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="auc, with divergence tracked beside it; 'auc,divergence', both; or "
            "constrained, AUC of trials whose divergence is at most --tau. If not "
            "given: as the space's file says, else auc.",
            show_default=False,
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(help="constrained: largest divergence, z. If not given: 2."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials to add.")] = 20,
    study: Annotated[str, typer.Option(help="Name; goes on if it exists.")] = "sweep",
    storage: options.Storage = "sqlite:///optuna.db",
    pruner: Annotated[
        str,
        typer.Option(
            help="Stop trials early: median (of AUC; of both, where both are "
            "objectives), hyperband or none."
        ),
    ] = "median",
    prune_divergence: Annotated[
        float | None,
        typer.Option(help="Stop trials whose divergence is above that z."),
    ] = None,
    cohort: options.CohortName = None,
    features: options.Features = None,
    labels: options.LabelsTable = None,
    order: options.Order = None,
    modality: options.Modality = None,
    preset: options.Preset = None,
    people: options.People = None,
    epochs: options.Epochs = None,
    folds: options.Folds = None,
    seed: options.Seed = None,
    tracking: options.TrackingUri = None,
    experiment: options.Experiment = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    runs: options.Runs = Path("runs"),
) -> None:
    """Search architectures and settings; divergence is tracked beside AUC.

    Each trial is a complete MLflow run; each trial keeps its run id and the
    divergence per quantity in its user attributes. The study ends in a page and a
    summary run; 'sweep report STUDY' makes the page anew.
    """
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context)
        return
    flags = nested(
        {
            "cohort.name": cohort,
            "cohort.settings.features": features,
            "cohort.settings.labels": labels,
            "cohort.settings.order": order,
            "cohort.settings.modality": modality,
            "cohort.settings.preset": preset,
            "cohort.settings.people": people,
            "training.epochs": epochs,
            "training.folds": folds,
            "training.seed": seed,
            "tracking.uri": tracking,
            "tracking.experiment": experiment,
        }
    )
    settings = read_settings(config, flags)
    prepare_torch(device, threads)
    from spectral_mlops.report.console import show_trials
    from spectral_mlops.sweeps import Sweep, leave_summary, read_sweep

    asked = {"objective": objective, "tau": tau}
    given = {name: value for name, value in asked.items() if value is not None}
    searched, judged = read_sweep(space, given)
    with progress_bar() as bar:
        search = Sweep(
            settings,
            study=study,
            storage=storage,
            runs=runs,
            device=device,
            pruner=cast("Pruner", pruner),  # checked there
            prune_divergence=prune_divergence,
            space=searched,
            objective=judged.objective,
            tau=judged.tau,
            progress=reporter(bar),
        )
    for note in search.plan.notes:
        console.print(note, highlight=False)
    with progress_bar() as bar:
        task = bar.add_task("trials", total=trials)
        latest: dict[str, float] = {}

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            latest.update(metrics)
            bar.update(task, description=describe(latest))

        states = []
        for _ in range(trials):
            latest.clear()
            states.append(search.run_trial(on_epoch).name)
            bar.advance(task)
    show_trials(console, search.table())
    console.print(f"Study '{study}' in {storage}", highlight=False)
    with console.status("drawing"):
        page = leave_summary(search)
    console.print(f"Its page: {page}", highlight=False, soft_wrap=True)
    console.print(f"Look at it:  {search.where}", highlight=False, soft_wrap=True)
    if set(states) == {"FAIL"}:
        raise typer.Exit(FAILED)
    if search.undelivered:
        raise typer.Exit(UNDELIVERED)


@sweeps.command("report")
def sweep_report(
    study: Annotated[str, typer.Argument(help="Name of a study.")],
    storage: options.Storage = "sqlite:///optuna.db",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The page. If not given: sweep-STUDY.html here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a study's page: one HTML file that needs neither network nor server.

    Which settings drive accuracy and which divergence, what is traded for what,
    which trials are accurate with no detected divergence, and all trials.
    """
    from spectral_mlops.sweeps import write_study

    with console.status("drawing"):
        page = write_study(study, storage, out or Path(f"sweep-{study}.html"))
    console.print(f"Open it in a browser:  {page}", highlight=False, soft_wrap=True)


@sweeps.command("confirm")
def sweep_confirm(
    study: Annotated[str, typer.Argument(help="Name of a study.")],
    trial: Annotated[
        int | None,
        typer.Option(
            help="Its number. If not given: the best of those allowed, by AUC.",
            show_default=False,
        ),
    ] = None,
    storage: options.Storage = "sqlite:///optuna.db",
    tracking: options.TrackingUri = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    runs: options.Runs = Path("runs"),
    trust: options.Trust = False,
) -> None:
    """Train a trial's settings again and hold out other people.

    The people of the second probe trained before; those of the first go back to
    training. A complete MLflow run; the study's page shows old and new side by side.
    """
    prepare_torch(device, threads)
    from spectral_mlops.report.console import show_confirmed
    from spectral_mlops.sweeps import confirm

    with progress_bar() as bar:
        task = bar.add_task("training", total=None)

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            del epoch
            bar.update(task, description=describe(metrics))

        done = confirm(
            study,
            storage,
            number=trial,
            runs=runs,
            tracking=tracking,
            device=device,
            trust=trust,
            progress=reporter(bar),
            on_epoch=on_epoch,
        )
    show_confirmed(console, done.table)
    console.print(f"Files of this run: {done.folder}", highlight=False)
    console.print(f"Look at it:  {done.where}", highlight=False, soft_wrap=True)
    if done.undelivered:
        raise typer.Exit(UNDELIVERED)


def _refuse_flags_before(context: typer.Context) -> None:
    """Refuse options that a sub-command behind them would not see."""
    from spectral_mlops.errors import InputError

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
    if given:
        raise InputError(
            f"{', '.join(given)} stands before '{context.invoked_subcommand}', which "
            "knows nothing of it: leave it out, or give it behind."
        )
