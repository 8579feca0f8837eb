"""The commands of studies."""

import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from spectral_mlops.cli import cluster as clusters
from spectral_mlops.cli import options
from spectral_mlops.cli.crew import watch
from spectral_mlops.cli.settings import nested, prepare_torch, read_settings
from spectral_mlops.cli.terminal import (
    FAILED,
    UNDELIVERED,
    console,
    describe,
    notice,
    progress_bar,
    reporter,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from spectral_mlops.sweeps import Sweep
    from spectral_mlops.sweeps.cluster import Array
    from spectral_mlops.sweeps.crew import Crew
    from spectral_mlops.sweeps.stopping import Pruner

NEW_TRIALS = 20

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
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials to add. If not given: what a study still wants; 20 if that "
            "is none.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that run trials, each with its share of the cores. If not "
            "given: this one alone. 0: only make the study, for workers elsewhere.",
            show_default=False,
        ),
    ] = None,
    cluster: clusters.Cluster = None,
    cluster_options: clusters.Options = None,
    wait: clusters.Wait = True,
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
    trust: options.Trust = False,
    heartbeat: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Of a new study: seconds between two signs of life of a worker; one "
            "that misses three is taken for dead.",
        ),
    ] = 60.0,
) -> None:
    """Search architectures and settings; divergence is tracked beside AUC.

    Each trial is a complete MLflow run; each trial keeps its run id and the
    divergence per quantity in its user attributes. The study ends in a page and a
    summary run; 'sweep report STUDY' makes the page anew. A study goes on by its
    name alone, with the settings it was begun with.
    """
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context)
        return
    if cluster or cluster_options:
        clusters.check(cluster, cluster_options, workers)
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
    prepare_torch(device, threads)
    share = threads if _given(context, "threads") else None
    from spectral_mlops.report.console import show_trials
    from spectral_mlops.sweeps import Sweep, draining, leave_summary, read_sweep, work
    from spectral_mlops.sweeps.recipe import can_be_joined
    from spectral_mlops.tracking.checks import redacted

    asked = {"objective": objective, "tau": tau}
    given = {name: value for name, value in asked.items() if value is not None}
    said = bool(config or space or given or flags.keys() - {"tracking"} or experiment)
    stops = any(_given(context, name) for name in ("pruner", "prune_divergence"))
    alone = not (said or stops)
    joined = alone and can_be_joined(study, storage)
    with progress_bar() as bar:
        if joined:
            search = Sweep.of_study(
                study,
                storage,
                runs=runs,
                tracking=tracking,
                device=device,
                trust=trust,
                progress=reporter(bar),
            )
        else:
            settings = read_settings(config, flags)
            searched, judged = read_sweep(space, given)
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
                heartbeat=heartbeat,
            )
    for note in search.plan.notes:
        console.print(note, highlight=False)
    left = search.tickets.counts()
    search.want(trials or (0 if left["free"] + left["taken"] else NEW_TRIALS))
    _mend(search)
    if workers == 0:
        _say_how_to_join(search, study)
        return
    before = {t.number for t in search.study.get_trials() if t.state.is_finished()}
    code = 0
    if workers is None:
        with progress_bar() as bar, draining() as stop:
            work(search, stop=stop, **_shown(bar, search))
    elif cluster is not None:
        _make_store_ready(search)
        array = clusters.submit(
            search, storage, workers, share, trust or not joined, cluster_options
        )
        if not wait:
            return
        code = _watched(array)
    else:
        code = _with_workers(search, storage, workers, share, trust or not joined)
    states = {
        trial.state.name
        for trial in search.study.get_trials()
        if trial.state.is_finished() and trial.number not in before
    }
    show_trials(console, search.table())
    console.print(f"Study '{study}' in {redacted(storage)}", highlight=False)
    with console.status("drawing"):
        page = leave_summary(search)
    console.print(f"Its page: {page}", highlight=False, soft_wrap=True)
    console.print(f"Look at it:  {search.where}", highlight=False, soft_wrap=True)
    left = search.tickets.counts()
    if waits := left["free"] + left["taken"]:
        console.print(
            f"The study wants {waits} trials more:  spectral-mlops sweep --study "
            f"{study}",
            highlight=False,
        )
    if states == {"FAIL"} or code == FAILED:
        raise typer.Exit(FAILED)
    if search.undelivered or code:
        raise typer.Exit(UNDELIVERED)


@sweeps.command("worker")
def worker(
    study: Annotated[str, typer.Option(help="Name of a study that 'sweep' made.")],
    storage: options.Storage = "sqlite:///optuna.db",
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials of this worker at most, of those that the study wants.",
            show_default=False,
        ),
    ] = None,
    tracking: options.TrackingUri = None,
    runs: options.Runs = Path("runs"),
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    trust: options.Trust = False,
) -> None:
    """Run trials of a study beside other workers, here or elsewhere.

    All else is the study's own; its people must be found from this folder. Ends when
    the study has all the trials it wants. SIGTERM lets the running trial end, a second
    one, and Ctrl-C, interrupt it: another worker will run one in its place.
    """
    prepare_torch(device, threads)
    from spectral_mlops.sweeps import Sweep, draining, work

    # A shell that starts workers in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with draining() as stop, progress_bar() as bar:
        search = Sweep.of_study(
            study,
            storage,
            runs=runs,
            tracking=tracking,
            device=device,
            trust=trust,
            progress=reporter(bar),
        )
        _mend(search)
        states = work(search, most=trials, stop=stop, **_shown(bar, search, trials))
    ended = ", ".join(f"{n} {s}" for s, n in Counter(x.name for x in states).items())
    console.print(
        f"Trials of this worker: {ended or 'none'}. The study wants "
        f"{search.tickets.counts()['free']} more.",
        highlight=False,
    )
    if search.undelivered:
        raise typer.Exit(UNDELIVERED)


def _with_workers(
    search: "Sweep", storage: str, workers: int, threads: int | None, trust: bool
) -> int:
    """Run a study's trials in processes; return the exit code that they ask for."""
    from spectral_mlops.sweeps.crew import Crew

    _make_store_ready(search)
    crew = Crew(search, storage, workers, threads, trust)
    return _watched(crew)


def _watched(crew: "Crew | Array") -> int:
    watch(crew)
    if crew.died and crew.sweep.tickets.counts()["free"]:
        return FAILED
    return UNDELIVERED if crew.undelivered else 0


def _make_store_ready(search: "Sweep") -> None:
    """Make a store's tables, before workers do so at the same time."""
    from spectral_mlops.errors import StoreAway
    from spectral_mlops.tracking import prepare_store
    from spectral_mlops.tracking.choose import NONE, SPOOL

    where = search.config.tracking
    if where.uri not in (NONE, SPOOL):
        try:
            prepare_store(where.uri, where.experiment)
        except StoreAway as error:
            notice(f"{error} Runs are kept in {search.runs} until it answers.")


def _say_how_to_join(search: "Sweep", study: str) -> None:
    console.print(
        f"Study '{study}' wants {search.tickets.counts()['free']} trials. Workers run "
        f"them:  spectral-mlops sweep worker --study {study} --storage …",
        highlight=False,
        soft_wrap=True,
    )


def _shown(bar: "Progress", search: "Sweep", most: int | None = None) -> dict[str, Any]:
    """Return what a worker is to call so that a bar shows its trials."""
    free = search.tickets.counts()["free"]
    task = bar.add_task("trials", total=min(free, most or free))
    latest: dict[str, float] = {}

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        del epoch
        latest.update(metrics)
        bar.update(task, description=describe(latest))

    def on_trial(state: object) -> None:
        del state
        latest.clear()
        bar.advance(task)

    return {"on_epoch": on_epoch, "on_trial": on_trial}


def _mend(search: "Sweep") -> None:
    """Mend what workers before this one left; a store that is away does not matter."""
    from spectral_mlops.errors import TrackingError

    try:
        mended = search.reconcile().mended
    except TrackingError as error:
        notice(f"{error} Runs of earlier workers are looked at another time.")
        return
    for said in mended:
        console.print(f"Mended: {said}", highlight=False, markup=False)


@sweeps.command("reconcile")
def sweep_reconcile(
    study: Annotated[str, typer.Argument(help="Name of a study.")],
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

    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if _given(context, name)
    ]
    if given:
        raise InputError(
            f"{', '.join(given)} stands before '{context.invoked_subcommand}', which "
            "knows nothing of it: leave it out, or give it behind."
        )


def _given(context: typer.Context, name: str) -> bool:
    """Tell whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
