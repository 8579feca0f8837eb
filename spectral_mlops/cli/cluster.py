"""What is said while the workers of a study are jobs of a cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from spectral_mlops.cli.terminal import console
from spectral_mlops.errors import InputError

if TYPE_CHECKING:
    from spectral_mlops.sweeps import Sweep
    from spectral_mlops.sweeps.cluster import Array

SLURM = "slurm"

Cluster = Annotated[
    str | None,
    typer.Option(
        help="slurm: --workers are jobs of SLURM, in one array, queued again when "
        "SLURM takes their node; submit from a folder that all nodes see.",
        show_default=False,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-options",
        help="key=value, as often as needed: partition, time, mem, cpus, gpus, or any "
        "long option of sbatch. If not given: time=60 (minutes), cpus=1.",
        show_default=False,
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        help="Wait for the jobs of --cluster, and end with the study's page; Ctrl-C "
        "ends them."
    ),
]


def check(
    cluster: str | None, options: Sequence[str] | None, workers: int | None
) -> None:
    """Refuse what cannot be handed in, before anything is loaded.

    Raises:
        InputError: If the cluster is not known, or has no workers, or its options
            are none or have no cluster.
    """
    from spectral_mlops.sweeps.cluster import cluster_options, parameters

    if cluster not in (None, SLURM):
        raise InputError(f"--cluster {cluster}: there is {SLURM}.")
    if cluster is None and options:
        raise InputError(f"--cluster-options are those of --cluster {SLURM}.")
    if cluster is not None and not workers:
        raise InputError(f"--cluster {SLURM} needs --workers, how many jobs.")
    parameters("", cluster_options(options or ()))


def submit(
    search: "Sweep",
    storage: str,
    workers: int,
    threads: int | None,
    trust: bool,
    options: Sequence[str] | None,
) -> "Array":
    """Hand the workers in, and say how to look at them."""
    from spectral_mlops.sweeps.cluster import Array, Worker, cluster_options
    from spectral_mlops.sweeps.recipe import known_store

    read = cluster_options(options or ())
    worker = Worker(
        search.study.study_name,
        storage,
        search.runs,
        tracking=known_store(search.config)["uri"],
        device=search.device,
        threads=threads or int(read.get("cpus", "1")),
        trust=trust,
    )
    array = Array(search, worker, workers, read)
    array.start()
    several = f"Jobs {array.job}_0 to {array.job}_{workers - 1}"
    named = several if workers > 1 else f"Job {array.job}"  # one is no array
    console.print(
        f"{named}:  squeue --array --jobs {array.job}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"What they say: {array.logs}", highlight=False, soft_wrap=True)
    return array
