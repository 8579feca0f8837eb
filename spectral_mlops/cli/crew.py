"""What is shown while several workers run the trials of a study."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from spectral_mlops.cli.terminal import console, notice

if TYPE_CHECKING:
    from spectral_mlops.sweeps import Sweep
    from spectral_mlops.sweeps.cluster import Array
    from spectral_mlops.sweeps.crew import Crew

ROWS = 15
"""Trials that are shown: the latest."""
PAUSE = 1.0
"""Seconds between two looks."""
WIDTH = 60
"""Characters of a trial's settings."""


def watch(crew: "Crew | Array") -> None:
    """Start workers and show their trials until all have ended.

    SIGTERM lets them end their trials; a second one, and Ctrl-C, interrupt them.

    Args:
        crew: Not started, unless on a cluster.

    Raises:
        KeyboardInterrupt: After all workers have ended.
    """
    from spectral_mlops.sweeps import draining

    with draining() as stop:
        crew.start()
        try:
            with Live(console=console, auto_refresh=False) as live:
                drained = False
                while crew.living:
                    for said in crew.ended():
                        notice(said)
                    live.update(_shown(crew.sweep, crew.living), refresh=True)
                    if stop() and not drained:
                        crew.drain()
                        drained = True
                    if crew.living:
                        time.sleep(PAUSE)
        except BaseException:
            crew.interrupt()
            crew.wait()
            raise


def _shown(sweep: "Sweep", living: int) -> Group:
    """Return the latest trials, one line each, and how many are to come."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("trial", "state", "AUC", "z", "settings"):
        table.add_column(head, justify="left" if head == "settings" else "right")
    quantity = sweep.judgement.quantity
    for trial in sweep.study.get_trials(deepcopy=False)[-ROWS:]:
        known = trial.user_attrs
        latest = max(trial.intermediate_values.items(), default=(0, None))[1]
        table.add_row(
            str(trial.number),
            trial.state.name,
            _number(known.get("auc", latest), ".3f"),
            _number(known.get(f"divergence.{quantity}"), "+.2f"),
            Text(settings_in_short(trial.params)),
        )
    counts = sweep.tickets.counts()
    done, wanted = counts["spent"], sum(counts.values())
    said = f"{done} of {wanted} trials done, {living} workers"
    return Group(table, Text(said))


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
