"""The command that makes a cohort."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_mlops.cli.terminal import console, progress_bar, reporter

if TYPE_CHECKING:
    pass


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
    with progress_bar() as bar:
        folder = make(
            out,
            preset,
            people,
            seed,
            components=components,
            volumes=volumes,
            progress=reporter(bar),
            timecourses=timecourses,
        )
    console.print(f"{people} people, preset {preset}, seed {seed}: {folder}")
