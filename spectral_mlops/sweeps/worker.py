"""The loop of a worker: take a ticket, run a trial, until none is left."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from optuna.trial import TrialState

from spectral_mlops.sweeps.stale import mend
from spectral_mlops.sweeps.sweep import Sweep
from spectral_mlops.training.loop import OnEpoch

SUSPECT = 2
"""Signs of life missed after which a worker is waited for, in case it died."""
POLL = 5.0
"""Longest pause before looking again, seconds."""


def work(
    sweep: Sweep,
    *,
    most: int | None = None,
    on_epoch: OnEpoch | None = None,
    on_trial: Callable[[TrialState], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[TrialState]:
    """Run trials until no ticket of the study is left.

    Any number of processes may do so at once, on any machines. Before each trial
    the trials of workers that died are put back in the queue. Where only tickets of
    workers that have fallen silent are left, they are waited for.

    Args:
        sweep: Of the study.
        most: Trials of this process; as many as there are if not given.
        on_epoch: Called with the epoch and its metrics.
        on_trial: Called after each trial with how it ended.
        stop: Asked before each trial whether to take no more.

    Returns:
        How each trial ended.
    """
    tickets = sweep.tickets
    states: list[TrialState] = []
    while not stop() and (most is None or len(states) < most):
        mend(sweep.study, tickets)
        if (hold := tickets.take()) is None:
            if not tickets.silent(SUSPECT * tickets.interval):
                break
            time.sleep(min(POLL, tickets.interval))
            continue
        try:
            with hold.alive():
                states.append(sweep.run_trial(on_epoch, hold))
        finally:
            if hold.open and hold.trial is None:
                hold.give_back()
        if on_trial is not None:
            on_trial(states[-1])
    return states


@contextmanager
def draining() -> Iterator[Callable[[], bool]]:
    """Let the first SIGTERM ask for an end after the running trial.

    The second interrupts at once, as Ctrl-C does.

    Yields:
        Whether the end was asked for.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
