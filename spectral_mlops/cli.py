"""The command line: parse, call, exit code.

0 done, 1 something broke, 2 bad input (one clear message), 3 done but something
undelivered. Heavy imports happen inside the commands: ``--help`` answers at once.
"""

import signal
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from spectral_mlops.errors import SpectralError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spectral_mlops.config import RunConfig
    from spectral_mlops.training import FinishedRun, Plan

FAILED, BAD_INPUT, UNDELIVERED = 1, 2, 3

app = typer.Typer(
    name="spectral-mlops",
    help="How a network learned, and whether it learned differently from groups of "
    "people: group-wise gradient, activation and adjoint spectra, tracked in MLflow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
problems = Console(stderr=True)

# One place for the options that train and sweep share.
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with settings; flags override it."),
]
CohortName = Annotated[
    str | None,
    typer.Option(
        "--cohort",
        help="Where people come from: simulated, fnc, timecourses, volumes, bids.",
    ),
]
Features = Annotated[
    str | None, typer.Option(help="fnc: CSV, TSV or NPZ of vectorised connectivity.")
]
LabelsTable = Annotated[
    str | None, typer.Option("--labels", help="fnc: table of ids and labels.")
]
Order = Annotated[
    str | None, typer.Option(help="fnc: triangle of the matrix, upper or lower.")
]
IdColumn = Annotated[
    str | None, typer.Option(help="fnc: column of ids, found by alias if not given.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="fnc: column to predict, found by alias otherwise.")
]
Positive = Annotated[
    str | None, typer.Option(help="fnc: the label counted as positive.")
]
Missing = Annotated[
    str | None, typer.Option(help="fnc: people with NaN: raise or drop_subject.")
]
Modality = Annotated[
    str | None,
    typer.Option(help="simulated: fnc, timecourses or volume (grey-matter maps)."),
]
Preset = Annotated[
    str | None,
    typer.Option(help="simulated: null, realistic, easy, confounded or dirty."),
]
People = Annotated[int | None, typer.Option(help="simulated: number of people.")]
CohortSeed = Annotated[int | None, typer.Option(help="simulated: seed of the people.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training people.")]
Folds = Annotated[int | None, typer.Option(help="Cross-validation folds.")]
BatchSize = Annotated[int | None, typer.Option(help="People per step.")]
LearningRate = Annotated[float | None, typer.Option(help="Of the optimizer.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="mlp, logistic, lstm, gru, ica_lstm, transformer, cnn1d, cnn2d, cnn3d, or "
        "module:function of your own; settings stand in the TOML file.",
    ),
]
Hidden = Annotated[
    str | None, typer.Option(help="mlp: hidden widths, for example 64,32.")
]
Dropout = Annotated[float | None, typer.Option(help="mlp: after each hidden layer.")]
Groupings = Annotated[
    str | None,
    typer.Option(help="Columns whose groups are compared, primary first: group,sex."),
]
Permutations = Annotated[int | None, typer.Option(help="Relabellings of subjects.")]
Seed = Annotated[int | None, typer.Option(help="Of folds, weights and batch order.")]
Seeds = Annotated[
    int | None,
    typer.Option(help="Networks per fold, of other first weights and batch orders."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        help="Address of an MLflow store, spool (the run's folder alone, to be sent "
        "later) or none. If not given: MLFLOW_TRACKING_URI, else sqlite here.",
        show_default=False,
    ),
]
StoreUri = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        help="Address of the MLflow store that has the run. If not given: "
        "MLFLOW_TRACKING_URI, else sqlite here.",
        show_default=False,
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option(
        help="MLflow experiment. If not given: MLFLOW_EXPERIMENT_NAME or _ID, else "
        "spectral_mlops.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[
    int,
    typer.Option(
        min=1,
        help="Of torch. Networks this small gain nothing from more, and lose much "
        "where other programs want the cores.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run code that a run's folder names (model.name module:function).",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder for the run's own files.")]


@app.command()
def train(
    config: ConfigFile = None,
    cohort: CohortName = None,
    features: Features = None,
    labels: LabelsTable = None,
    order: Order = None,
    id_column: IdColumn = None,
    label_column: LabelColumn = None,
    positive: Positive = None,
    missing: Missing = None,
    modality: Modality = None,
    preset: Preset = None,
    people: People = None,
    cohort_seed: CohortSeed = None,
    epochs: Epochs = None,
    folds: Folds = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    model: Model = None,
    hidden: Hidden = None,
    dropout: Dropout = None,
    groupings: Groupings = None,
    permutations: Permutations = None,
    seed: Seed = None,
    seeds: Seeds = None,
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
    tracking: TrackingUri = None,
    experiment: Experiment = None,
    device: Device = "cpu",
    threads: Threads = 1,
    runs: Runs = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Go on with a run that was interrupted, in the folder it was begun "
            "in; its settings are its own.",
            show_default=False,
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train on a cohort and watch the spectra of its groups.

    With no options: makes a simulated COBRE-like cohort in ./cohort, trains an MLP
    on its functional connectivity in stratified folds, and logs to ./mlflow.db.
    """
    flags = _flags(
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
            "training.epochs": epochs,
            "training.folds": folds,
            "training.batch_size": batch_size,
            "training.learning_rate": learning_rate,
            "training.seed": seed,
            "training.seeds": seeds,
            "model.name": model,
            "model.settings.hidden": _numbers("--hidden", hidden),
            "model.settings.dropout": dropout,
            "comparison.groupings": groupings.split(",") if groupings else None,
            "comparison.permutations": permutations,
            "controls.run": controls,
            "tracking.uri": tracking,
            "tracking.experiment": experiment,
        }
    )
    if resume is not None:
        _prepare_torch(device, threads)
        if _resume(resume, flags, config, crossfit, device, trust):
            raise typer.Exit(UNDELIVERED)
        return
    settings = _settings(config, flags)
    _prepare_torch(device, threads)
    from spectral_mlops.training import make_plan

    with _bar() as bar:
        plan = make_plan(settings, Path.cwd(), _reporter(bar))
    name = f"train-{datetime.now():%Y%m%d-%H%M%S}"
    if crossfit is None:
        uri = settings.tracking.uri
        undelivered = _train_one(plan, name, device, _free(runs / name), uri)[1]
    else:
        undelivered = _train_parts(plan, crossfit, name, device, runs)
    if undelivered:
        raise typer.Exit(UNDELIVERED)


def _resume(
    folder: Path,
    flags: Mapping[str, Any],
    config: Path | None,
    crossfit: int | None,
    device: str,
    trust: bool,
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
    with _bar() as bar:
        plan = read_plan(
            folder, Path.cwd(), _reporter(bar), finished=False, trust=trust
        )
    written = plan.config.tracking.uri or ""
    tracking = flags.get("tracking", {}).get("uri")
    tracking = tracking or (None if "***" in written else written or None)
    return _train_one(plan, folder.name, device, folder, tracking, resume=True)[1]


def _train_one(
    plan: "Plan",
    name: str,
    device: str,
    folder: Path,
    tracking: str | None,
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
    from spectral_mlops.training.trajectories import sentences

    for note in plan.notes:
        console.print(note, highlight=False)
    settings = plan.config
    experiment = settings.tracking.experiment
    tracker = open_tracker(tracking, experiment, folder, notice=_notice)
    with _saying_how_to_go_on(folder), tracker, _bar() as bar:
        task = bar.add_task("training", total=settings.training.epochs)

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            bar.update(task, completed=epoch + 1, description=_describe(metrics))

        finished = run(
            plan,
            tracker,
            folder,
            name=name,
            on_epoch=on_epoch,
            device=device,
            progress=_reporter(bar),
            resume=resume,
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
    show_run(console, finished.layers, result.groups, result.metrics)
    if len(result.performance):
        show_performance(console, result.performance)
    if len(result.effects):
        show_effects(console, result.effects, plan.primary_quantity)
    if result.controls is not None:
        show_controls(console, result.controls)
    for said in sentences(result.trajectories):
        console.print(said, highlight=False, markup=False)
    if result.verdict:
        console.print(result.verdict, highlight=False, markup=False)
    if finished.trouble:
        _notice(finished.trouble)
    elif finished.page is not None:
        console.print(f"Its page: {finished.page}", highlight=False, soft_wrap=True)
    console.print(f"Files of this run: {finished.folder}", highlight=False)
    console.print(f"Look at it:  {tracker.where}", highlight=False, soft_wrap=True)
    return finished, tracker.undelivered


@contextmanager
def _saying_how_to_go_on(folder: Path) -> "Iterator[None]":
    """Of a run that is interrupted, say what is saved and which command goes on."""
    try:
        yield
    except KeyboardInterrupt:
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


def _train_parts(plan: "Plan", parts: int, name: str, device: str, runs: Path) -> int:
    """Make a run of each part, and say what they show together."""
    from spectral_mlops.report.console import show_parts
    from spectral_mlops.training.crossfit import crossfit_plans, crossfit_table

    plans = crossfit_plans(plan, parts)
    finished, undelivered = [], 0
    for number, part in enumerate(plans, start=1):
        of = f"{name}-part-{number}"
        uri = plan.config.tracking.uri
        one, lost = _train_one(part, of, device, _free(runs / of), uri)
        finished.append(one.result)
        undelivered += lost
    table, said = crossfit_table(plan, plans, finished)
    folder = _free(runs / f"{name}-crossfit")
    folder.mkdir(parents=True)
    table.to_csv(folder / "crossfit.tsv", sep="\t", index=False)
    (folder / "verdict.txt").write_text(said + "\n", encoding="utf-8")
    show_parts(console, table)
    console.print(said, highlight=False, markup=False)
    console.print(f"Files of all parts: {folder}", highlight=False)
    return undelivered


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    preset: Annotated[
        str, typer.Option(help="null, realistic, easy, confounded or dirty.")
    ] = "realistic",
    people: Annotated[int, typer.Option(help="Number of people.")] = 146,
    seed: Annotated[int, typer.Option(help="The same seed, the same bytes.")] = 0,
    components: Annotated[int, typer.Option(help="Networks of the FNC.")] = 53,
    volumes: Annotated[bool, typer.Option(help="Also grey-matter maps.")] = True,
    timecourses: Annotated[
        bool, typer.Option(help="Also time courses of the networks.")
    ] = True,
) -> None:
    """Make a COBRE-like cohort on disk: people, connectivity, signals, NIfTI, truth.

    Presets null, realistic and easy plant no, a published, and twice that effect;
    in confounded only scanners differ, and groups go with them; dirty is realistic
    with what goes wrong in files, listed in ground_truth/defects.json.
    """
    from spectral_mlops.cohorts import PRESETS
    from spectral_mlops.cohorts import simulate as make
    from spectral_mlops.errors import InputError

    if preset not in PRESETS:
        raise InputError(f"--preset {preset}: choose one of {', '.join(PRESETS)}.")
    with _bar() as bar:
        folder = make(
            out,
            preset,
            people,
            seed,
            components=components,
            volumes=volumes,
            progress=_reporter(bar),
            timecourses=timecourses,
        )
    console.print(f"{people} people, preset {preset}, seed {seed}: {folder}")


sweeps = typer.Typer()
app.add_typer(sweeps, name="sweep")
Storage = Annotated[str, typer.Option(help="Optuna storage of the study.")]


@sweeps.callback(invoke_without_command=True)
def sweep(
    context: typer.Context,
    config: ConfigFile = None,
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
    storage: Storage = "sqlite:///optuna.db",
    prune: Annotated[
        bool, typer.Option(help="Stop trials below the median AUC.")
    ] = True,
    cohort: CohortName = None,
    features: Features = None,
    labels: LabelsTable = None,
    order: Order = None,
    modality: Modality = None,
    preset: Preset = None,
    people: People = None,
    epochs: Epochs = None,
    folds: Folds = None,
    seed: Seed = None,
    tracking: TrackingUri = None,
    experiment: Experiment = None,
    device: Device = "cpu",
    threads: Threads = 1,
    runs: Runs = Path("runs"),
) -> None:
    """Search architectures and settings; divergence is tracked beside AUC.

    Each trial is a complete MLflow run; each trial keeps its run id and the
    divergence per quantity in its user attributes. The study ends in a page and a
    summary run; 'sweep report STUDY' makes the page anew.
    """
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context)
        return
    flags = _flags(
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
    settings = _settings(config, flags)
    _prepare_torch(device, threads)
    from spectral_mlops.report.console import show_trials
    from spectral_mlops.sweeps import Sweep, leave_summary, read_sweep

    asked = {"objective": objective, "tau": tau}
    given = {name: value for name, value in asked.items() if value is not None}
    searched, judged = read_sweep(space, given)
    with _bar() as bar:
        search = Sweep(
            settings,
            study=study,
            storage=storage,
            runs=runs,
            device=device,
            prune=prune,
            space=searched,
            objective=judged.objective,
            tau=judged.tau,
            progress=_reporter(bar),
        )
    for note in search.plan.notes:
        console.print(note, highlight=False)
    with _bar() as bar:
        task = bar.add_task("trials", total=trials)
        latest: dict[str, float] = {}

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            latest.update(metrics)
            bar.update(task, description=_describe(latest))

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
    storage: Storage = "sqlite:///optuna.db",
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


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, as in runs/.")
    ],
    retrain: Annotated[
        int | None,
        typer.Option(
            help="Train each run again so many times on permuted targets (19 or "
            "more), and test it against those; goes on where it was stopped."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that retrain, one thread each.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The page of several runs. If not given: compare.html here.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    tracking: Annotated[
        str | None,
        typer.Option(
            help="MLflow store that the test is logged to; the run's own if not given."
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Show finished runs side by side, or test one against retrained networks.

    Runs that differ in their seed alone are also tested together. Of two runs or
    more one page is written too: spectra by group across runs, divergence against
    accuracy, settings that differ.

    With --retrain the question is: was it the training on these labels?
    Everything is trained again on targets permuted over people, within site,
    strata and fold; p says how rare so large a divergence of the groups is
    then. Of several networks per fold it is the first. Results stay in
    RUN/retrain, and are logged to the run's own MLflow run; asking for more later
    adds to them. Start it in the folder that the run was trained in.
    """
    if retrain is None:
        from spectral_mlops.report.runs import read_run
        from spectral_mlops.report.runs_console import show_runs

        finished = [read_run(folder) for folder in runs]
        show_runs(console, finished)
        if len(runs) > 1 or out is not None:
            from spectral_mlops.report.html_compare import write_comparison
            from spectral_mlops.report.stored import read_stored

            with console.status("drawing"):
                whole = [read_stored(folder) for folder in runs]
                page = write_comparison(finished, whole, out or Path("compare.html"))
            console.print(f"Open it in a browser:  {page}", highlight=False)
        return
    _prepare_torch(device, 1)
    from spectral_mlops.report.runs_console import show_retrained
    from spectral_mlops.training.retrain import SOURCES, retrain_test
    from spectral_mlops.training.retrain_tracking import deliver

    arrived = True
    for folder in runs:
        with _bar() as bar:
            result = retrain_test(
                folder,
                retrain,
                Path.cwd(),
                workers=workers,
                device=device,
                progress=_reporter(bar),
                trust=trust,
            )
        show_retrained(console, result.table, SOURCES, result.sentences)
        delivered = deliver(result, folder, tracking)
        arrived &= delivered.arrived
        for said in (f"Kept in {result.folder}", delivered.said):
            console.print(said, highlight=False, soft_wrap=True, markup=False)
    if not arrived:
        raise typer.Exit(UNDELIVERED)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Folder of a run, or its id in MLflow.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The page. If not given: RUN/report.html, for an id report-ID.html "
            "here; a figure: RUN/figures/NAME.pdf, for an id NAME.pdf here.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            help="Draw a figure for a paper instead of the page; 'list' names them."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of the figure: pdf, svg or png. If not given: as --out ends, else "
            "pdf.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        float, typer.Option(help="Of the figure, mm: 90 is one column, 180 are two.")
    ] = 180.0,
    tracking: StoreUri = None,
) -> None:
    """Write a run's page: one HTML file that needs neither network nor server.

    Spectra per layer and epoch, ranks and norms, divergence maps, performance per
    group, controls, and where in the brain. The run may be finished or not.
    """
    if figure is not None:
        _draw_figure(run, figure, out, form, width, tracking)
        return
    from spectral_mlops.report.html import write_report
    from spectral_mlops.report.stored import read_stored

    with console.status("reading the run"):
        stored = read_stored(run, tracking)
    folder = Path(run)
    page = folder / "report.html" if folder.is_dir() else Path(f"report-{run}.html")
    with console.status("drawing"):
        page = write_report(stored, out or page)
    console.print(f"Open it in a browser:  {page}", highlight=False, soft_wrap=True)


def _draw_figure(
    run: str,
    name: str,
    out: Path | None,
    form: str | None,
    width: float,
    tracking: str | None,
) -> None:
    """Draw a figure for a paper, or name those there are."""
    from spectral_mlops.report.figures import FIGURES, FORMATS, draw_figure
    from spectral_mlops.report.stored import read_stored

    if name == "list":
        console.print("\n".join(FIGURES))
        return
    FIGURES.get(name)
    ending = out.suffix.lstrip(".") if out else ""
    form = form or (ending if ending in FORMATS else "pdf")
    folder = Path(run)
    beside = folder / "figures" if folder.is_dir() else Path()
    with console.status("reading the run"):
        stored = read_stored(run, tracking)
    with console.status("drawing"):
        path = draw_figure(stored, name, out or beside / f"{name}.{form}", form, width)
    console.print(f"Drawn: {path}", highlight=False, soft_wrap=True)


@app.command()
def sync(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of runs. If not given: every undelivered run below the "
            "current folder.",
            show_default=False,
        ),
    ] = None,
    tracking: TrackingUri = None,
    experiment: Experiment = None,
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
            _notice(f"{folder} is left out: {error}")  # it delivers by itself
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


@app.command()
def view(
    experiment: Annotated[
        str | None,
        typer.Argument(help="MLflow experiment. If not given, as for train."),
    ] = None,
    tracking: TrackingUri = None,
) -> None:
    """Prepare an experiment's chart page in MLflow, and print its address.

    Divergence and accuracy stand side by side, groups and layers below, one line
    per run; MLflow's own charts of every metric follow. Again after runs of other
    groups or layers, it shows theirs too.
    """
    from spectral_mlops.tracking import view_experiment

    ready = view_experiment(experiment, _store_only(tracking))
    if ready.note:
        _notice(ready.note)
    console.print(
        f"Chart view of experiment '{ready.experiment}'", highlight=False, markup=False
    )
    console.print(f"Look at it:  {ready.where}", highlight=False, soft_wrap=True)


@app.command()
def init(
    tracking: TrackingUri = None,
    storage: Annotated[
        str, typer.Option(help="Optuna storage of studies.")
    ] = "sqlite:///optuna.db",
    experiment: Experiment = None,
) -> None:
    """Make the MLflow store, its experiment and the Optuna storage ready.

    Needed before several processes start at once on a new store: those that make
    the same tables at the same time fail. Databases of older versions are brought
    to the installed ones (have a copy first); what is ready is left alone.
    """
    from spectral_mlops.sweeps import prepare_storage
    from spectral_mlops.tracking import prepare_store
    from spectral_mlops.tracking.store import redacted

    ready = prepare_store(_store_only(tracking), experiment)
    lines = [
        f"MLflow store {ready.store}: {ready.done}",
        f"Experiment '{ready.experiment}': files go to {ready.files}",
        "Chart view: installed",
        f"Optuna storage {redacted(storage)}: {prepare_storage(storage)}",
        f"Look at it:  {ready.view.where}",
    ]
    if ready.view.note:
        _notice(ready.view.note)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a problem the user can mend is one sentence and a 2.

    A termination signal (``docker stop``, a cluster's time limit) ends a run as an
    interrupt does: it is marked as killed and keeps what it had.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except SpectralError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}.")


def _fail(message: str) -> None:
    """Print one sentence and end with the exit code of bad input."""
    problems.print(
        f"Error: {message}",
        style="red",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    sys.exit(BAD_INPUT)


def _notice(sentence: str) -> None:
    """Print what the user should know while work goes on."""
    problems.print(sentence, style="yellow", highlight=False, markup=False)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _store_only(tracking: str | None) -> str | None:
    """Return the address, unless it names no MLflow store.

    Raises:
        InputError: If it is ``spool`` or ``none``.
    """
    from spectral_mlops.errors import InputError
    from spectral_mlops.tracking.choose import NONE, SPOOL

    if tracking in (NONE, SPOOL):
        raise InputError(
            f"--tracking {tracking}: give the address of an MLflow store, such as "
            "sqlite:///mlflow.db."
        )
    return tracking


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


def _flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn given dotted flags into nested settings."""
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        if value is None:
            continue
        *path, name = dotted.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return nested


def _settings(config: Path | None, flags: Mapping[str, Any]) -> "RunConfig":
    """Lay flags over the config file and validate."""
    from spectral_mlops.config import RunConfig, merge, read_toml, validate

    base = read_toml(config) if config else {}
    return validate(RunConfig, merge(base, flags), str(config or "options"))


def _prepare_torch(device: str, threads: int) -> None:
    """Set the number of threads, and refuse a device that is not there."""
    import torch

    from spectral_mlops.errors import InputError

    torch.set_num_threads(threads)
    known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device not in known:
        raise InputError(f"--device {device}: here there is {' and '.join(known)}.")


def _numbers(flag: str, text: str | None) -> list[int] | None:
    """Read ``64,32``.

    Raises:
        InputError: If that is not a list of whole numbers.
    """
    from spectral_mlops.errors import InputError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"{flag} {text}: give whole numbers, as in 64,32.") from error


@contextmanager
def _bar() -> "Iterator[Progress]":
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield bar


def _reporter(bar: Progress) -> Any:
    """Return a function ``(what, done, total)`` that keeps one bar per work."""
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    return report


def _describe(metrics: Mapping[str, float]) -> str:
    """Loss, AUC and the current divergence, as the progress bar shows them."""
    text = f"loss {metrics['train/loss']:.3f}  AUC {metrics['val/auc']:.3f}"
    z = metrics.get("divergence/adjoint", metrics.get("divergence/activation"))
    return text if z is None or z != z else f"{text}  divergence z {z:+.2f}"


def _free(folder: Path) -> Path:
    """Return the folder, or the first numbered one that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


if __name__ == "__main__":
    main()
