"""An interrupt that Python loses."""

import signal
import weakref


class _Thing:
    pass


def lose_a_signal(number: signal.Signals = signal.SIGINT) -> None:
    """Be sent a signal where Python lets go of an object.

    What its handler raises is printed there, and goes no further.
    """
    thing = _Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None
