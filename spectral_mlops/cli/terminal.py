"""What is shown in the terminal, and exit codes."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

FAILED, BAD_INPUT, UNDELIVERED = 1, 2, 3

console = Console()
problems = Console(stderr=True)


def fail(message: str) -> None:
    """Print one sentence and end with the exit code of bad input."""
    problems.print(
        f"Error: {message}",
        style="red",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    sys.exit(BAD_INPUT)


def notice(sentence: str) -> None:
    """Print what the user should know while work goes on."""
    problems.print(
        sentence, style="yellow", highlight=False, markup=False, soft_wrap=True
    )


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show bars, with the time that is left, until the block ends."""
    with new_bar() as bar:
        yield bar


def new_bar() -> Progress:
    """Return bars that are not shown yet."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def reporter(bar: Progress) -> Any:
    """Return a function ``(what, done, total)`` that keeps one bar per work."""
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    return report


def describe(metrics: Mapping[str, float]) -> str:
    """Loss, AUC or R², and the current divergence, as the progress bar shows them."""
    from spectral_mlops.tracking.measures import MEASURES

    text = f"loss {metrics['train/loss']:.3f}"
    for one in MEASURES.values():
        if f"val/{one.headline}" in metrics:
            text += f"  {one.words} {metrics[f'val/{one.headline}']:.3f}"
            text += "".join(
                f"  {x.upper()} {metrics[f'val/{x}']:.4g}" for x in one.lower
            )
    z = metrics.get("divergence/adjoint", metrics.get("divergence/activation"))
    return text if z is None or z != z else f"{text}  divergence z {z:+.2f}"
