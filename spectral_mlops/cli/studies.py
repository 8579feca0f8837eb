"""The commands of studies that exist: mended, shown, confirmed."""

from collections.abc import Mapping
from pathlib import Path

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli import sweep_options as names
from spectral_mlops.cli.settings import prepare_torch
from spectral_mlops.cli.sweep import sweeps
from spectral_mlops.cli.terminal import (
    UNDELIVERED,
    console,
    describe,
    progress_bar,
    reporter,
)

__all__ = ["sweeps"]  # all commands of studies are of one group


@sweeps.command("reconcile")
def sweep_reconcile(
    study: names.Name,
    storage: options.Storage = "sqlite:///optuna.db",
    tracking: options.StoreUri = None,
    runs: options.Runs = Path("runs"),
) -> None:
    """Mend what killed workers left: trials, their tickets, their MLflow runs.

    Trials of dead workers fail and are tried again, runs end as their trials did, runs
    without a trial are tagged. What only you can mend is listed. Workers do the same
    when they start; a second pass mends nothing.
    """
    from spectral_mlops.sweeps.reconcile import reconcile_study

    found = reconcile_study(study, storage, tracking, runs)
    for said in found.mended:
        console.print(f"Mended: {said}", highlight=False, markup=False, soft_wrap=True)
    for said in found.listed:
        console.print(f"Left: {said}", highlight=False, markup=False, soft_wrap=True)
    if not found.mended:
        console.print("Nothing to mend.")
    if found.waiting:
        console.print("Deliver them:  spectral-mlops sync", soft_wrap=True)
        raise typer.Exit(UNDELIVERED)


@sweeps.command("report")
def sweep_report(
    study: names.Name,
    storage: options.Storage = "sqlite:///optuna.db",
    out: names.Page = None,
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
    study: names.Name,
    trial: names.Trial = None,
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
