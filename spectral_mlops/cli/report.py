"""The command that draws a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_mlops.cli import options
from spectral_mlops.cli.terminal import console

if TYPE_CHECKING:
    pass


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
    tracking: options.StoreUri = None,
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
