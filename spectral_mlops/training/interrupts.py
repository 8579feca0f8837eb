"""Interrupts that are noted as well as raised.

What a signal's handler raises is lost where Python is just letting go of an object
(in a finalizer, or the callback of a weak reference): it is printed, and the run goes
on. Whoever asks after each epoch ends it all the same.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Those that came.

    Attributes:
        numbers: Signals, in their order.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self) -> bool:
        """Whether there was one."""
        return bool(self.numbers)

    def check(self) -> None:
        """End what runs, if there was one.

        Raises:
            KeyboardInterrupt: If so.
        """
        if self.numbers:
            raise KeyboardInterrupt


@contextmanager
def noted(*numbers: signal.Signals) -> Iterator[Interrupts]:
    """Note signals before their handlers do what they do.

    A signal that is ignored, or whose handler is not Python's, stays as it is.

    Args:
        numbers: Signals, such as ``SIGINT`` and ``SIGTERM``.

    Yields:
        What came.
    """
    found = Interrupts()
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        found.numbers.append(number)
        handler = before[signal.Signals(number)]
        assert callable(handler)
        handler(number, frame)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, note)
    try:
        yield found
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # no handler exchanged it
                signal.signal(number, handler)
