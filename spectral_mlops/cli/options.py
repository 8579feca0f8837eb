"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
Task = Annotated[
    str | None,
    typer.Option(help="classification, or regression: a number is predicted."),
]
Target = Annotated[
    str | None,
    typer.Option(help="regression: the column of numbers to predict, such as age."),
]
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
Storage = Annotated[
    str,
    typer.Option(
        envvar="OPTUNA_STORAGE", help="Optuna storage of the study.", show_envvar=False
    ),
]
