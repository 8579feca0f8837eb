"""The one thread that writes a run's folder while training goes on."""

import atexit
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

GATHER = 1.0
"""Seconds that what was handed over may wait for more, to be written together."""
DEPTH = 16
"""Handings-over that may wait to be written; the next one waits for the disk. With half
as many, no more are waited for."""


class Counted(Protocol):
    """Something that is to be written."""

    @property
    def points(self) -> int:
        """How many points and files it is."""


Entry = TypeVar("Entry", bound=Counted)


class Writer(Generic[Entry]):
    """Brings entries to the disk, in order, several at a time.

    What was added is written no later than a second after it was handed over, or when
    it is waited for. Entries that could not be written are kept, and tried again with
    the next that are handed over. A process that ends without `end` writes what it
    holds first; a killed one loses it.

    Args:
        write: Brings entries to the disk, all of them or none, and returns how many
            points and files they are. Called by the writer's thread alone.
        wrote: Called by that thread when something was written.
    """

    def __init__(
        self, write: Callable[[list[Entry]], int], wrote: Callable[[], None]
    ) -> None:
        self._write, self._wrote = write, wrote
        self._change = threading.Condition()
        self._waiting: list[Entry] = []
        self._error: Exception | None = None
        self._written = self._handed = self._tried = 0
        self._hurry = self._ending = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> list[Entry]:
        """What is not on the disk, in order."""
        with self._change:
            return list(self._waiting)

    @property
    def points(self) -> tuple[int, int]:
        """How many points and files were written, and how many are not yet."""
        with self._change:
            return self._written, sum(entry.points for entry in self._waiting)

    def add(self, *entries: Entry) -> None:
        """Take entries; they wait for the next `hand_over` or `settle`."""
        with self._change:
            self._waiting += entries

    def hand_over(self) -> OSError | None:
        """Have what was added written soon; waits only if the disk is far behind.

        Returns:
            Why the disk did not take what was tried last; None if it did.

        Raises:
            Exception: Any other that writing ended with.
        """
        with self._change:
            self._begin()
            oldest = self._handed - DEPTH
            self._hurry |= self._tried < oldest + DEPTH // 2
            self._change.notify_all()
            self._change.wait_for(lambda: self._tried >= oldest)
            return self._trouble()

    def settle(self) -> OSError | None:
        """Wait until all that was added is written, or was tried in vain.

        Returns:
            As `hand_over`.

        Raises:
            Exception: As `hand_over`.
        """
        with self._change:
            if self._waiting or self._handed > self._tried:
                self._try_now()
            return self._trouble()

    def end(self) -> None:
        """Write what is left, if the disk takes it, and end the thread."""
        with self._change:
            self._ending = True
            if self._waiting:
                self._try_now()
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self.settle)

    def drop(self) -> None:
        """Forget what was not written: it went elsewhere."""
        with self._change:
            self._waiting = []

    def _begin(self) -> None:
        self._handed += 1
        if self._thread is None:
            self._ending = False
            self._thread = threading.Thread(
                target=self._run, name="spectral-writer", daemon=True
            )
            self._thread.start()
            atexit.register(self.settle)
        self._change.notify_all()

    def _try_now(self) -> None:
        self._hurry = True
        self._begin()
        goal = self._handed
        self._change.wait_for(lambda: self._tried >= goal)

    def _trouble(self) -> OSError | None:
        if self._error is None or isinstance(self._error, OSError):
            return self._error
        raise self._error

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            entries, goal = batch
            points, error = 0, None
            try:
                points = self._write(entries) if entries else 0
            except Exception as found:  # raised where the next call is made
                error = found
            with self._change:
                if error is None:
                    del self._waiting[: len(entries)]
                    self._written += points
                self._error, self._tried = error, goal
                self._change.notify_all()
            if error is None and entries:
                self._wrote()

    def _next(self) -> tuple[list[Entry], int] | None:
        """Wait for something to write; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._handed > self._tried or self._ending)
            if self._handed == self._tried:
                return None
            self._change.wait_for(lambda: self._hurry or self._ending, GATHER)
            self._hurry = False
            return list(self._waiting), self._handed
