"""The commands that look after stores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli.settings import store_only
from spectral_mlops.cli.terminal import UNDELIVERED, console, notice

if TYPE_CHECKING:
    pass


def sync(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of runs. If not given: every undelivered run below the "
            "current folder.",
            show_default=False,
        ),
    ] = None,
    tracking: options.TrackingUri = None,
    experiment: options.Experiment = None,
) -> None:
    """Deliver to MLflow what runs have recorded and no store has taken yet.

    A run knows its store; --tracking and --experiment are for runs that were
    trained with --tracking spool, and for a store whose address has a password.
    Nothing is ever delivered twice.
    """
    from spectral_mlops.errors import TrackingError
    from spectral_mlops.tracking import sync_run, undelivered_runs

    found = runs or undelivered_runs(Path.cwd())
    if not found:
        console.print("Nothing waits to be delivered below this folder.")
    left = 0
    for folder in found:
        try:
            done = sync_run(folder, tracking, experiment)
        except TrackingError as error:
            if runs:
                raise
            notice(f"{folder} is left out: {error}")  # it delivers by itself
            continue
        left += done.undelivered
        state = f"{done.delivered} delivered"
        state += f", {done.undelivered} undelivered" if done.undelivered else ""
        state += f" ({done.trouble})" if done.trouble else ""
        state += ", was interrupted: marked KILLED" if done.interrupted else ""
        console.print(f"{folder}: {state}", highlight=False, markup=False)
        console.print(f"Look at it:  {done.where}", highlight=False, soft_wrap=True)
    if left:
        raise typer.Exit(UNDELIVERED)


def view(
    experiment: Annotated[
        str | None,
        typer.Argument(help="MLflow experiment. If not given, as for train."),
    ] = None,
    tracking: options.TrackingUri = None,
) -> None:
    """Prepare an experiment's chart page in MLflow, and print its address.

    Divergence and accuracy stand side by side, groups and layers below, one line
    per run; MLflow's own charts of every metric follow. Again after runs of other
    groups or layers, it shows theirs too.
    """
    from spectral_mlops.tracking import view_experiment

    ready = view_experiment(experiment, store_only(tracking))
    if ready.note:
        notice(ready.note)
    console.print(
        f"Chart view of experiment '{ready.experiment}'", highlight=False, markup=False
    )
    console.print(f"Look at it:  {ready.where}", highlight=False, soft_wrap=True)


def init(
    tracking: options.TrackingUri = None,
    storage: options.Storage = "sqlite:///optuna.db",
    experiment: options.Experiment = None,
) -> None:
    """Make the MLflow store, its experiment and the Optuna storage ready.

    Needed before several processes start at once on a new store: those that make
    the same tables at the same time fail. Databases of older versions are brought
    to the installed ones (have a copy first); what is ready is left alone.
    """
    from spectral_mlops.sweeps import prepare_storage
    from spectral_mlops.tracking import prepare_store
    from spectral_mlops.tracking.store import redacted

    ready = prepare_store(store_only(tracking), experiment)
    lines = [
        f"MLflow store {ready.store}: {ready.done}",
        f"Experiment '{ready.experiment}': files go to {ready.files}",
        "Chart view: installed",
        f"Optuna storage {redacted(storage)}: {prepare_storage(storage)}",
        f"Look at it:  {ready.view.where}",
    ]
    if ready.view.note:
        notice(ready.view.note)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
