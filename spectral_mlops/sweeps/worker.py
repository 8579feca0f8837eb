"""The loop of a worker: take a ticket, run a trial, until none is left."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from optuna.trial import TrialState

from spectral_mlops.sweeps.stale import mend
from spectral_mlops.sweeps.sweep import Sweep
from spectral_mlops.training.interrupts import Interrupts, noted
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
    interrupted: Callable[[], bool] = lambda: False,
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
        interrupted: Asked after each epoch whether the trial is to end at once. A
            `KeyboardInterrupt` that a signal's handler raises is lost where Python is
            just letting go of an object.

    Returns:
        How each trial ended.

    Raises:
        KeyboardInterrupt: If it was interrupted.
    """
    tickets = sweep.tickets
    states: list[TrialState] = []

    def each_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        if interrupted():
            raise KeyboardInterrupt
        if on_epoch is not None:
            on_epoch(epoch, metrics)

    while not (stop() or interrupted()) and (most is None or len(states) < most):
        mend(sweep.study, tickets)
        if (hold := tickets.take()) is None:
            if not tickets.silent(SUSPECT * tickets.interval):
                break
            time.sleep(min(POLL, tickets.interval))
            continue
        try:
            with hold.alive():
                states.append(sweep.run_trial(each_epoch, hold))
        finally:
            if hold.open and hold.trial is None:
                hold.give_back()
        if on_trial is not None:
            on_trial(states[-1])
    if interrupted():
        raise KeyboardInterrupt
    return states


@dataclass
class Orders:
    """What signals ask of a worker.

    Attributes:
        drain: Whether to take no more trials.
        interrupted: Whether the running trial is to end at once.
    """

    drain: bool = False
    interrupted: Interrupts = field(default_factory=Interrupts)

    def __call__(self) -> bool:
        """Whether to take no more trials."""
        return self.drain or self.interrupted()


@contextmanager
def draining() -> Iterator[Orders]:
    """Let the first SIGTERM ask for an end after the running trial.

    The second interrupts at once, as Ctrl-C does.

    Yields:
        What was asked for.
    """
    with noted(signal.SIGINT) as interrupted:
        orders = Orders(interrupted=interrupted)

        def ask(number: int, frame: FrameType | None) -> None:
            del frame
            if orders.drain:
                interrupted.numbers.append(number)
                raise KeyboardInterrupt
            orders.drain = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield orders
        finally:
            signal.signal(signal.SIGTERM, before)
