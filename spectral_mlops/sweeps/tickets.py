"""Tickets: how many trials a study wants, taken one by one by any number of workers.

One row per wanted trial in a table of our own beside Optuna's. A worker takes a free
ticket in one statement before it asks for a trial, shows every minute that it lives,
and spends the ticket when its trial has ended; the ticket of a worker that died is
found by its silence. Optuna's own heartbeat is not used: it never misses a process
that died between asking and its first beat, and its thread ends at the first
database that is locked.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import optuna
from sqlalchemy import (
    Column,
    CursorResult,
    Double,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    create_engine,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.sqlite import connection_settings

INTERVAL = 60.0
"""Seconds between two signs of life of a worker."""
GRACE = 3
"""A worker is taken for dead after so many of them without a sign."""
ATTRIBUTE = "tickets"

_TABLE = Table(
    "spectral_tickets",
    MetaData(),
    Column("study", String(36), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(8), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("trial", Integer),
    Column("beat", Double, nullable=False),
)
_CLOCKS = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "(extract(epoch from clock_timestamp())::double precision)",
    "mysql": "unix_timestamp(now(6))",
}
"""Seconds since 1970 by the database's clock: workers' own may differ."""


class Ticket(NamedTuple):
    """A row: which one, who has it, and for which trial (none yet: ``None``)."""

    number: int
    owner: str
    trial: int | None


def make_table(engine: Engine) -> None:
    """Make the table of tickets; no harm if it is there."""
    _TABLE.metadata.create_all(engine)


class Tickets:
    """The tickets of one study.

    Args:
        study: In an SQL database.
        storage: Its address.
        interval: Seconds between two signs of life, of a study that has no tickets
            yet; one that has keeps its own.

    Raises:
        InputError: If the database is of a kind whose clock is not known.
    """

    def __init__(
        self, study: optuna.Study, storage: str, interval: float = INTERVAL
    ) -> None:
        settings = connection_settings(storage)
        settings.pop("pool_pre_ping", None)  # every use has a connection of its own
        self._engine = create_engine(storage, poolclass=NullPool, **settings)
        kind = self._engine.dialect.name
        if kind not in _CLOCKS:
            raise InputError(
                f"--storage: workers share SQLite, PostgreSQL or MySQL, not {kind}."
            )
        self._now: Any = literal_column(_CLOCKS[kind], Double)
        make_table(self._engine)
        if ATTRIBUTE not in study.user_attrs:
            # Not the study's name: one of that name may be deleted and made again.
            kept = {"key": uuid.uuid4().hex, "interval": interval}
            study.set_user_attr(ATTRIBUTE, kept)
        known = study.user_attrs[ATTRIBUTE]
        self._key = str(known["key"])
        self.interval = float(known["interval"])

    @property
    def grace(self) -> float:
        """Seconds of silence after which a worker is taken for dead."""
        return GRACE * self.interval

    def add(self, wanted: int) -> None:
        """Add tickets, numbered on from those that there are."""
        t = _TABLE.c
        while True:
            try:
                with self._engine.begin() as link:
                    last = link.scalar(
                        select(func.max(t.number)).where(t.study == self._key)
                    )
                    first = 0 if last is None else last + 1
                    rows = [
                        self._row(number) for number in range(first, first + wanted)
                    ]
                    link.execute(insert(_TABLE), rows)
                return
            except IntegrityError:  # another process added the same numbers
                continue

    def take(self) -> "Hold | None":
        """Take the first free ticket; ``None`` if there is none.

        One statement decides, so two workers never get the same.
        """
        t, owner = _TABLE.c, f"{worker_name()}:{uuid.uuid4().hex}"
        free = and_(t.study == self._key, t.state == "free")
        while True:
            with self._engine.begin() as link:
                first = link.scalar(select(func.min(t.number)).where(free))
            if first is None:
                return None
            taken = {"state": "taken", "owner": owner, "trial": None}
            if self._change(and_(free, t.number == first), **taken):
                return Hold(self, first, owner)

    def counts(self) -> dict[str, int]:
        """Return how many are ``free``, ``taken`` and ``spent``."""
        t = _TABLE.c
        asked = select(t.state, func.count()).where(t.study == self._key)
        with self._engine.begin() as link:
            found = link.execute(asked.group_by(t.state))
            return {"free": 0, "taken": 0, "spent": 0} | dict(map(tuple, found))

    def silent(self, seconds: float) -> list[Ticket]:
        """Return tickets whose workers gave no sign of life for so long."""
        t = _TABLE.c
        asked = select(t.number, t.owner, t.trial).where(
            t.study == self._key, t.state == "taken", t.beat < self._now - seconds
        )
        with self._engine.begin() as link:
            return [Ticket(*row) for row in link.execute(asked.order_by(t.number))]

    def bound(self) -> set[int]:
        """Return the numbers of trials that tickets were taken for."""
        t = _TABLE.c
        asked = select(t.trial).where(t.study == self._key, t.trial.is_not(None))
        with self._engine.begin() as link:
            return set(link.scalars(asked))

    def claim(self, ticket: Ticket) -> "Hold | None":
        """Take over the ticket of a silent worker, unless another was faster."""
        owner = f"{worker_name()}:{uuid.uuid4().hex}"
        late = and_(
            self._of(ticket.number, ticket.owner),
            _TABLE.c.beat < self._now - self.grace,
        )
        claimed = self._change(late, owner=owner)
        return Hold(self, ticket.number, owner) if claimed else None

    def silence(self, worker: str) -> None:
        """Say that a worker died: its tickets need no grace.

        Args:
            worker: As `worker_name` has it.
        """
        t = _TABLE.c
        with self._engine.begin() as link:
            link.execute(
                update(_TABLE)
                .where(
                    t.study == self._key,
                    t.state == "taken",
                    t.owner.startswith(f"{worker}:", autoescape=True),
                )
                .values(beat=0.0)
            )

    def change(self, number: int, owner: str, **values: Any) -> bool:
        """Change a taken ticket that is still the owner's; tell whether it is."""
        return self._change(self._of(number, owner), **values)

    def _change(self, which: Any, **values: Any) -> bool:
        with self._engine.begin() as link:
            done = link.execute(
                update(_TABLE).where(which).values(beat=self._now, **values)
            )
        return cast("CursorResult[Any]", done).rowcount == 1

    def _of(self, number: int, owner: str) -> Any:
        t = _TABLE.c
        mine = and_(t.study == self._key, t.number == number, t.owner == owner)
        return and_(mine, t.state == "taken")

    def _row(self, number: int) -> dict[str, Any]:
        row = {"study": self._key, "number": number, "trial": None}
        return row | {"state": "free", "owner": "", "beat": 0.0}


class Hold:
    """A ticket in this process's hands.

    Args:
        tickets: Of the study.
        number: Which one.
        owner: What it was taken under.

    Attributes:
        lost: Whether others took it over, thinking this process dead.
        open: Whether it is neither spent nor given back.
        trial: Number of the trial it was taken for; ``None`` as long as there is none.
    """

    def __init__(self, tickets: Tickets, number: int, owner: str) -> None:
        self.number, self.lost, self.open = number, False, True
        self.trial: int | None = None
        self._tickets, self._owner = tickets, owner

    def bind(self, trial: int) -> None:
        """Say which trial it was taken for."""
        self.trial = trial
        self._say(trial=trial)

    def spend(self) -> None:
        """End it: its trial counts."""
        self.open = False
        self._say(state="spent")

    def give_back(self) -> None:
        """Let another worker, or a later one, take it."""
        self.open = False
        self._say(state="free", trial=None)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Show in the background that this process lives, until the block ends."""
        end = threading.Event()

        def beat() -> None:
            while not (end.wait(self._tickets.interval) or self.lost):
                try:
                    self._say()
                except SQLAlchemyError:  # away, or locked: the next beat may pass
                    continue

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _say(self, **values: Any) -> None:
        self.lost = not self._tickets.change(self.number, self._owner, **values)


def worker_name() -> str:
    """Return what tells this process from all others that live."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}"
