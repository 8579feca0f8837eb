"""The commands of studies that exist: joined, mended, shown, confirmed."""

import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli import sweep_options as names
from spectral_mlops.cli.crew import shown
from spectral_mlops.cli.settings import prepare_torch
from spectral_mlops.cli.sweep import RUNS, STORAGE, mend, sweeps
from spectral_mlops.cli.terminal import (
    UNDELIVERED,
    console,
    describe,
    progress_bar,
    reporter,
)

if TYPE_CHECKING:
    from spectral_mlops.sweeps.worker import Orders
    from spectral_mlops.training.distributed import Team

__all__ = ["sweeps"]  # all commands of studies are of one group


@sweeps.command("worker")
def worker(
    study: names.Joined,
    storage: options.Storage = STORAGE,
    trials: names.MostTrials = None,
    tracking: options.TrackingUri = None,
    runs: options.Runs = RUNS,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    trust: options.Trust = False,
) -> None:
    """Run trials of a study beside other workers, here or elsewhere.

    All else is the study's own; its people must be found from this folder. Ends when
    the study has all the trials it wants. SIGTERM lets the running trial end, a second
    one, and Ctrl-C, interrupt it: another worker will run one in its place. Several
    processes that torchrun started are one worker, and share each trial; SIGTERM
    interrupts them.
    """
    prepare_torch(device, threads)
    from spectral_mlops.sweeps.processes import assist_trials
    from spectral_mlops.training.distributed import joined

    # A shell that starts workers in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with joined(device) as (team, own):
        if team.first:
            undelivered = _search(
                team, study, storage, trials, tracking, runs, own, trust
            )
        else:
            undelivered = 0
            assist_trials(team, own)
    if undelivered:
        raise typer.Exit(UNDELIVERED)


@sweeps.command("reconcile")
def sweep_reconcile(
    study: names.Name,
    storage: options.Storage = STORAGE,
    tracking: options.StoreUri = None,
    runs: options.Runs = RUNS,
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
    storage: options.Storage = STORAGE,
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
    storage: options.Storage = STORAGE,
    tracking: options.TrackingUri = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    runs: options.Runs = RUNS,
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


def _search(
    team: "Team",
    study: str,
    storage: str,
    trials: int | None,
    tracking: str | None,
    runs: Path,
    device: str,
    trust: bool,
) -> int:
    """Run trials, and say how they ended; return what was not delivered."""
    from spectral_mlops.sweeps import Sweep, work
    from spectral_mlops.sweeps.processes import first_of

    with _draining(team) as stop, progress_bar() as bar:
        search = first_of(
            team,
            lambda: Sweep.of_study(
                study,
                storage,
                runs=runs,
                tracking=tracking,
                device=device,
                trust=trust,
                progress=reporter(bar),
            ),
        )
        mend(search)
        states = work(
            search,
            most=trials,
            stop=stop,
            interrupted=stop.interrupted,
            **shown(bar, search, trials),
        )
    if search.processes is not None:
        search.processes.end()
    ended = ", ".join(f"{n} {s}" for s, n in Counter(x.name for x in states).items())
    console.print(
        f"Trials of this worker: {ended or 'none'}. The study wants "
        f"{search.tickets.counts()['free']} more.",
        highlight=False,
    )
    return search.undelivered


@contextmanager
def _draining(team: "Team") -> Iterator["Orders"]:
    """Let SIGTERM ask for an end, unless torchrun says it to all and soon kills."""
    from spectral_mlops.sweeps.worker import Orders, draining

    if team.size > 1:
        yield Orders()
        return
    with draining() as stop:
        yield stop
