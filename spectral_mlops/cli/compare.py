"""The command that compares finished runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli.settings import prepare_torch
from spectral_mlops.cli.terminal import UNDELIVERED, console, progress_bar, reporter

if TYPE_CHECKING:
    pass


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folders of finished runs, as in runs/, or their ids in MLflow."
        ),
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
    device: options.Device = "cpu",
    tracking: Annotated[
        str | None,
        typer.Option(
            help="MLflow store that has the runs. With --retrain, that the test is "
            "logged to; the run's own if not given."
        ),
    ] = None,
    trust: options.Trust = False,
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
        _show(runs, out, tracking)
        return
    prepare_torch(device, 1)
    from spectral_mlops.report.runs_console import show_retrained
    from spectral_mlops.training.retrain import SOURCES, retrain_test
    from spectral_mlops.training.retrain_tracking import deliver

    arrived = True
    for folder in map(Path, runs):
        with progress_bar() as bar:
            result = retrain_test(
                folder,
                retrain,
                Path.cwd(),
                workers=workers,
                device=device,
                progress=reporter(bar),
                trust=trust,
            )
        show_retrained(console, result.table, SOURCES, result.sentences)
        delivered = deliver(result, folder, tracking)
        arrived &= delivered.arrived
        for said in (f"Kept in {result.folder}", delivered.said):
            console.print(said, highlight=False, soft_wrap=True, markup=False)
    if not arrived:
        raise typer.Exit(UNDELIVERED)


def _show(runs: list[str], out: Path | None, tracking: str | None) -> None:
    """Show finished runs, and write the page of several."""
    from spectral_mlops.report.html_compare import write_comparison
    from spectral_mlops.report.runs import read_run
    from spectral_mlops.report.runs_console import show_runs
    from spectral_mlops.report.stored import read_stored, run_folder

    finished, whole, paged = [], [], len(runs) > 1 or out is not None
    with console.status("reading the runs"):
        for run in runs:
            name = "" if Path(run).is_dir() else run
            with run_folder(run, tracking) as folder:
                finished.append(read_run(folder, name))
                if paged:
                    whole.append(read_stored(run, tracking, files=folder))
    show_runs(console, finished)
    if paged:
        with console.status("drawing"):
            page = write_comparison(finished, whole, out or Path("compare.html"))
        console.print(f"Open it in a browser:  {page}", highlight=False)
