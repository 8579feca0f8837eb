"""The command line: parse, call, exit code.

0 done, 1 something broke, 2 bad input (one clear message), 3 done but something
undelivered. Heavy imports happen inside the commands: ``--help`` answers at once.
"""

import os
import signal
import sys

import typer

from spectral_mlops.cli import compare, report, simulate, stores, studies, train
from spectral_mlops.cli.terminal import (
    BAD_INPUT,
    FAILED,
    UNDELIVERED,
    console,
    fail,
    problems,
)
from spectral_mlops.errors import InputError, SpectralError

__all__ = ["BAD_INPUT", "FAILED", "UNDELIVERED", "app", "main"]

app = typer.Typer(
    name="spectral-mlops",
    help="How a network learned, and whether it learned differently from groups of "
    "people: group-wise gradient, activation and adjoint spectra, tracked in MLflow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train.train)
app.command()(simulate.simulate)
app.add_typer(studies.sweeps, name="sweep")
app.command()(compare.compare)
app.command()(report.report)
app.command()(stores.sync)
app.command()(stores.view)
app.command()(stores.init)


def main() -> None:
    """Run the command line; a problem the user can mend is one sentence and a 2.

    A termination signal (``docker stop``, a cluster's time limit) ends a run as an
    interrupt does: it is marked as killed and keeps what it had.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _among_processes()
        app()
    except SpectralError as error:
        fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}.")


def _among_processes() -> None:
    """Let one process of several speak.

    Raises:
        InputError: If they were started for what they cannot share.
    """
    if "RANK" not in os.environ:
        return
    from spectral_mlops.training.distributed import started_by_torchrun

    if not started_by_torchrun():
        return
    console.quiet = problems.quiet = os.environ["RANK"] != "0"
    if sys.argv[1:2] != ["train"] and sys.argv[1:3] != ["sweep", "worker"]:
        raise InputError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, which only the "
            "commands train and sweep worker share work among: start one, without "
            "torchrun."
        )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
