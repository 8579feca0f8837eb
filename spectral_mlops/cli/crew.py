"""What is shown while trials of a study run, in this process or in several workers."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from spectral_mlops.cli.terminal import console, describe, new_bar, notice

if TYPE_CHECKING:
    from rich.progress import Progress

    from spectral_mlops.sweeps import Sweep
    from spectral_mlops.sweeps.cluster import Array
    from spectral_mlops.sweeps.crew import Crew

ROWS = 15
"""Trials that are shown: the latest."""
PAUSE = 1.0
"""Seconds between two looks."""
WIDTH = 60
"""Characters of a trial's settings."""
DRAIN, INTERRUPT, KILL = 1, 2, 3
ORDERS = {
    DRAIN: "Workers end their trials and take no more.",
    INTERRUPT: "Interrupting the trials; Ctrl-C once more kills their workers.",
    KILL: "Killing the workers.",
}
"""What is said of what workers are told."""


def watch(crew: "Crew | Array") -> None:
    """Start workers and show their trials until all have ended.

    SIGTERM lets them end their trials; a second one, and Ctrl-C, interrupt them; what
    comes after that kills them.

    Args:
        crew: Not started, unless on a cluster.

    Raises:
        KeyboardInterrupt: After all workers have ended, if they were interrupted.
    """
    with _told() as told:
        crew.start()
        try:
            with Live(console=console, auto_refresh=False) as live:
                obeyed = 0
                while crew.living:
                    for said in crew.ended():
                        notice(said)
                    live.update(_shown(crew.sweep, crew.living), refresh=True)
                    obeyed = _obey(crew, urgency(told), obeyed)
                    _pause(crew, told)
        except BaseException:
            crew.interrupt()
            crew.wait()
            raise
        if not console.is_terminal:
            console.line()  # what was shown last ends without
        if urgency(told) >= INTERRUPT:
            raise KeyboardInterrupt


def urgency(told: Sequence[int]) -> int:
    """Return what signals ask for together: nothing (0), or one of `ORDERS`.

    Args:
        told: SIGINT or SIGTERM, in their order.
    """
    level = 0
    for number in told:
        at_once = number == signal.SIGINT and level < INTERRUPT
        level = INTERRUPT if at_once else min(level + 1, KILL)
    return level


def _obey(crew: "Crew | Array", level: int, obeyed: int) -> int:
    """Tell workers what is asked for, unless they were told; return that."""
    if level > obeyed:
        notice(ORDERS[level])
        {DRAIN: crew.drain, INTERRUPT: crew.interrupt, KILL: crew.kill}[level]()
    return max(level, obeyed)


@contextmanager
def _told() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM: what starts or ends workers is never cut short."""
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        told.append(number)

    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in watched}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pause(crew: "Crew | Array", told: Sequence[int]) -> None:
    """Wait until it is time to look again, or until somebody says something."""
    end, known = time.monotonic() + PAUSE, len(told)
    while crew.living and len(told) == known and time.monotonic() < end:
        time.sleep(0.1)


def _shown(sweep: "Sweep", living: int) -> Group:
    """Return the latest trials, and how many are to come."""
    counts = sweep.tickets.counts()
    done, wanted = counts["spent"], sum(counts.values())
    said = f"{done} of {wanted} trials done, {living} workers"
    return Group(_latest(sweep), Text(said))


@contextmanager
def live_trials(sweep: "Sweep") -> Iterator[dict[str, Any]]:
    """Show a study's trials while this process runs them, one after another.

    Yields:
        What a worker is to call (`shown`).
    """
    bar = new_bar()
    told = shown(bar, sweep)
    with Live(Group(_latest(sweep), bar), console=console, transient=True) as live:

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            told["on_epoch"](epoch, metrics)
            if epoch == 0:  # a look at all trials is too dear for each epoch
                live.update(Group(_latest(sweep), bar), refresh=True)

        def on_trial(state: object) -> None:
            told["on_trial"](state)
            live.update(Group(_latest(sweep), bar), refresh=True)

        yield {"on_epoch": on_epoch, "on_trial": on_trial}


def shown(bar: "Progress", search: "Sweep", most: int | None = None) -> dict[str, Any]:
    """Return what a worker is to call so that a bar shows its trials."""
    free = search.tickets.counts()["free"]
    task = bar.add_task("trials", total=min(free, most or free))
    latest: dict[str, float] = {}

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        del epoch
        latest.update(metrics)
        bar.update(task, description=describe(latest))

    def on_trial(state: object) -> None:
        del state
        latest.clear()
        bar.advance(task)

    return {"on_epoch": on_epoch, "on_trial": on_trial}


def _latest(sweep: "Sweep") -> Table:
    """Return the latest trials, one line each."""
    measures = sweep.judgement.measures
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("trial", "state", measures.words, "z", "settings"):
        table.add_column(head, justify="left" if head == "settings" else "right")
    quantity = sweep.judgement.quantity
    for trial in sweep.study.get_trials(deepcopy=False)[-ROWS:]:
        known = trial.user_attrs
        latest = max(trial.intermediate_values.items(), default=(0, None))[1]
        table.add_row(
            str(trial.number),
            trial.state.name,
            _number(known.get(measures.headline, latest), ".3f"),
            _number(known.get(f"divergence.{quantity}"), "+.2f"),
            Text(settings_in_short(trial.params)),
        )
    return table


def settings_in_short(params: dict[str, Any]) -> str:
    """Return a trial's settings in few characters."""
    parts = []
    for name, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name.rpartition('.')[2]}={text}")
    whole = " ".join(parts)
    return whole if len(whole) <= WIDTH else f"{whole[: WIDTH - 1]}…"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
