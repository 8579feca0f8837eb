"""The commands of studies."""

import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from spectral_mlops.cli import cluster as clusters
from spectral_mlops.cli import options
from spectral_mlops.cli import sweep_options as names
from spectral_mlops.cli.crew import live_trials, watch
from spectral_mlops.cli.settings import given_settings, nested, prepare_torch
from spectral_mlops.cli.terminal import (
    FAILED,
    UNDELIVERED,
    console,
    notice,
    progress_bar,
    reporter,
)

if TYPE_CHECKING:
    from spectral_mlops.sweeps import Sweep
    from spectral_mlops.sweeps.cluster import Array
    from spectral_mlops.sweeps.crew import Crew

NEW_TRIALS = 20
TRIAL_SETTINGS = {"spectra": {"directions": 0, "influence": False}}
"""Of a new study, where none are given: both are looked at in one run, not compared
over many, and take time of each."""
STORAGE, RUNS = "sqlite:///optuna.db", Path("runs")

sweeps = typer.Typer()


@sweeps.callback(invoke_without_command=True)
def sweep(
    context: typer.Context,
    config: options.ConfigFile = None,
    space: names.Space = None,
    objective: names.Objective = None,
    tau: names.Tau = None,
    trials: names.NewTrials = None,
    workers: names.Workers = None,
    cluster: clusters.Cluster = None,
    cluster_options: clusters.Options = None,
    wait: clusters.Wait = True,
    study: names.NewStudy = "sweep",
    storage: options.Storage = STORAGE,
    pruner: names.Pruner = None,
    prune_divergence: names.PruneDivergence = None,
    cohort: options.CohortName = None,
    features: options.Features = None,
    labels: options.LabelsTable = None,
    order: options.Order = None,
    modality: options.Modality = None,
    preset: options.Preset = None,
    people: options.People = None,
    task: options.Task = None,
    target: options.Target = None,
    epochs: options.Epochs = None,
    folds: options.Folds = None,
    seed: options.Seed = None,
    tracking: options.TrackingUri = None,
    experiment: options.Experiment = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    runs: options.Runs = RUNS,
    trust: options.Trust = False,
    heartbeat: names.Heartbeat = 60.0,
) -> None:
    """Search architectures and settings; divergence is tracked beside AUC.

    Each trial is a complete MLflow run; each trial keeps its run id and the
    divergence per quantity in its user attributes. The study ends in a page and a
    summary run; 'sweep report STUDY' makes the page anew. A study goes on by its
    name alone, with the settings it was begun with; others are refused.
    """
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context)
        return
    if cluster or cluster_options:
        clusters.check(cluster, cluster_options, workers)
    given = given_settings(
        config,
        nested(
            {
                "cohort.name": cohort,
                "cohort.settings.features": features,
                "cohort.settings.labels": labels,
                "cohort.settings.order": order,
                "cohort.settings.modality": modality,
                "cohort.settings.preset": preset,
                "cohort.settings.people": people,
                "training.task": task,
                "training.target": target,
                "training.epochs": epochs,
                "training.folds": folds,
                "training.seed": seed,
                "tracking.uri": tracking,
                "tracking.experiment": experiment,
            }
        ),
    )
    prepare_torch(device, threads)
    share = threads if _given(context, "threads") else None
    from spectral_mlops.report.console import show_trials
    from spectral_mlops.sweeps import draining, leave_summary, work
    from spectral_mlops.tracking.checks import redacted

    with progress_bar() as bar:
        search = _opened(
            study,
            storage,
            given,
            space,
            _those_given({"objective": objective, "tau": tau}),
            _those_given({"pruner": pruner, "prune_divergence": prune_divergence}),
            str(config or "options"),
            trust,
            heartbeat,
            runs=runs,
            device=device,
            progress=reporter(bar),
        )
    for note in search.plan.notes:
        console.print(note, highlight=False)
    left = search.tickets.counts()
    search.want(trials or (0 if left["free"] + left["taken"] else NEW_TRIALS))
    mend(search)
    if workers == 0:
        _say_how_to_join(search, study)
        return
    # Code that the study names, and nobody here trusted by name, was refused.
    trusted = trust or bool(search.recipe.code())
    before = {t.number for t in search.study.get_trials() if t.state.is_finished()}
    code = 0
    on = _words_to_go_on(study, storage, workers, runs)
    with _leaving_nothing_behind(search, on):
        if workers is None:
            with live_trials(search) as told, draining() as stop:
                work(search, stop=stop, interrupted=stop.interrupted, **told)
        elif cluster is not None:
            _make_store_ready(search)
            array = clusters.submit(
                search, storage, workers, share, trusted, cluster_options
            )
            if not wait:
                return
            code = _watched(array)
        else:
            code = _with_workers(search, storage, workers, share, trusted)
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
        said = f"The study wants {waits} trials more:  {on}"
        console.print(said, highlight=False, soft_wrap=True)
    if states == {"FAIL"} or code == FAILED:
        raise typer.Exit(FAILED)
    if search.undelivered or code:
        raise typer.Exit(UNDELIVERED)


def _opened(
    study: str,
    storage: str,
    given: Mapping[str, Any],
    space: Path | None,
    asked: Mapping[str, Any],
    stops: Mapping[str, Any],
    where: str,
    trust: bool,
    heartbeat: float,
    **place: Any,
) -> "Sweep":
    """Make a study, or open the one of that name: what is given must be its own."""
    from spectral_mlops.config import RunConfig, merge, validate
    from spectral_mlops.sweeps import Sweep, read_sweep
    from spectral_mlops.sweeps.recipe import kept_recipe

    searched, judged = read_sweep(space, asked)
    if kept_recipe(study, storage) is not None:
        return Sweep.of_study(
            study,
            storage,
            trust=trust,
            given=given,
            space=searched,
            judged=judged.model_dump(exclude_unset=True),
            options=stops,
            **place,
        )
    return Sweep(
        validate(RunConfig, merge(TRIAL_SETTINGS, given), where),
        study=study,
        storage=storage,
        space=searched,
        objective=judged.objective,
        tau=judged.tau,
        heartbeat=heartbeat,
        **stops,
        **place,
    )


def _those_given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


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


@contextmanager
def _leaving_nothing_behind(search: "Sweep", words: str) -> Iterator[None]:
    """At an interrupt, end what was begun, and say which command goes on."""
    from spectral_mlops.sweeps.tickets import worker_name

    try:
        yield
    except KeyboardInterrupt:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            search.tickets.silence(worker_name())  # of a trial cut short twice
            mend(search)
        finally:
            signal.signal(signal.SIGINT, before)
        left = search.tickets.counts()
        notice(
            f"Interrupted. The study wants {left['free'] + left['taken']} trials "
            f"more; go on in this folder:  {words}"
        )
        raise


def _words_to_go_on(study: str, storage: str, workers: int | None, runs: Path) -> str:
    """Return the command that goes on with a study; no password stands in it."""
    from spectral_mlops.tracking.checks import redacted

    words = ["spectral-mlops", "sweep", "--study", study]
    if storage != STORAGE and redacted(storage) == storage:
        words += ["--storage", storage]
    if workers is not None:
        words += ["--workers", str(workers)]
    if runs != RUNS:
        words += ["--runs", str(runs)]
    return shlex.join(words)


def _say_how_to_join(search: "Sweep", study: str) -> None:
    console.print(
        f"Study '{study}' wants {search.tickets.counts()['free']} trials. Workers run "
        f"them:  spectral-mlops sweep worker --study {study} --storage …",
        highlight=False,
        soft_wrap=True,
    )


def mend(search: "Sweep") -> None:
    """Mend what workers before this one left; a store that is away does not matter."""
    from spectral_mlops.errors import TrackingError

    try:
        mended = search.reconcile().mended
    except TrackingError as error:
        notice(f"{error} Runs of earlier workers are looked at another time.")
        return
    for said in mended:
        console.print(f"Mended: {said}", highlight=False, markup=False)


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
