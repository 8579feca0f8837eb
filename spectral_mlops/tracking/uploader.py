"""The one thread that talks to MLflow while training goes on."""

import threading
import time

from spectral_mlops.tracking.delivery import Delivery

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds between attempts while the store is away; the last one from then on."""
SPACING = 5.0
"""Seconds from one delivery to the next: many points in one request cost little more
than one point does, and what is sent while training goes on takes its processor."""
LAST_ATTEMPTS = 3
"""Attempts after the end of a run, before what is left is left to ``sync``."""


class Uploader:
    """Delivers a spool in the background, again and again while the store is away.

    Args:
        delivery: From now on used by the uploader's thread alone.

    Attributes:
        failures: Attempts in a row that did not arrive.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.failures = 0
        self._delivery = delivery
        self._change = threading.Condition()
        self._wanted = self._hurry = self._ending = False
        self._started = self._finished = 0
        self._latest = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, name="spectral-uploader", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new in the spool."""
        with self._change:
            self._wanted = True
            self._change.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait for an attempt that begins now, at most ``timeout`` seconds."""
        with self._change:
            self._hurry, goal = True, self._started + 1
            self._change.notify_all()
            self._change.wait_for(lambda: self._finished >= goal, timeout)

    def end(self) -> None:
        """Deliver what is left, within a few attempts, and end the thread."""
        with self._change:
            self._hurry = self._ending = True
            self._change.notify_all()
        self._thread.join()

    def _run(self) -> None:
        last = 0
        while True:
            ending = self._next_attempt()
            arrived = self._delivery.deliver()
            last += ending
            with self._change:
                self._finished, self._latest = self._started, time.monotonic()
                self.failures = 0 if arrived else self.failures + 1
                self._change.notify_all()
            if ending and (arrived or last == LAST_ATTEMPTS):
                return

    def _next_attempt(self) -> bool:
        """Wait for its time; return whether the run is at its end."""
        with self._change:
            if self.failures:
                pause = PAUSES[min(self.failures, len(PAUSES)) - 1]
                pause = PAUSES[0] if self._ending else pause
                self._change.wait_for(lambda: self._hurry, pause)
            else:
                self._change.wait_for(lambda: self._hurry or self._wanted)
                left = self._latest + SPACING - time.monotonic()
                self._change.wait_for(lambda: self._hurry, left)
            self._started += 1
            self._hurry = self._wanted = False
            return self._ending
