"""Options of the commands of studies."""

from pathlib import Path
from typing import Annotated

import typer

Space = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of what a trial may change; if not given: depth, width, "
        "learning rate and dropout of the mlp.",
        show_default=False,
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        help="auc (of numbers r2), with divergence tracked beside it; "
        "'auc,divergence', both; or constrained, AUC of trials whose divergence is at "
        "most --tau. If not given: as the space's file says, else auc, or r2.",
        show_default=False,
    ),
]
Tau = Annotated[
    float | None,
    typer.Option(help="constrained: largest divergence, z. If not given: 2."),
]
NewTrials = Annotated[
    int | None,
    typer.Option(
        "--trials",
        min=1,
        help="Trials to add. If not given: what a study still wants; 20 if that is "
        "none.",
        show_default=False,
    ),
]
MostTrials = Annotated[
    int | None,
    typer.Option(
        "--trials",
        min=1,
        help="Trials of this worker at most, of those that the study wants.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that run trials, each with its share of the cores. If not "
        "given: this one alone. 0: only make the study, for workers elsewhere.",
        show_default=False,
    ),
]
NewStudy = Annotated[str, typer.Option("--study", help="Name; goes on if it exists.")]
Joined = Annotated[
    str, typer.Option("--study", help="Name of a study that 'sweep' made.")
]
Name = Annotated[str, typer.Argument(help="Name of a study.")]
Pruner = Annotated[
    str | None,
    typer.Option(
        help="Stop trials early: median (the default; of AUC or R²; of both, where "
        "divergence is an objective too), hyperband or none.",
        show_default=False,
    ),
]
PruneDivergence = Annotated[
    float | None,
    typer.Option(help="Stop trials whose divergence is above that z."),
]
Heartbeat = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Of a new study: seconds between two signs of life of a worker; one that "
        "misses three is taken for dead.",
    ),
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="The page. If not given: sweep-STUDY.html here.",
        show_default=False,
    ),
]
Trial = Annotated[
    int | None,
    typer.Option(
        help="Its number. If not given: the best of those allowed.",
        show_default=False,
    ),
]
