"""Delivers what runs have recorded and no store has taken yet."""

import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from spectral_mlops.errors import InputError
from spectral_mlops.tracking.delivery import Delivery, known_uri
from spectral_mlops.tracking.pending import RECORDS
from spectral_mlops.tracking.shards import KINDS
from spectral_mlops.tracking.spool import (
    EVENTS,
    FOLDER,
    Spool,
    read_acked,
    read_events,
)
from spectral_mlops.tracking.store import redacted


@dataclass(frozen=True)
class Synced:
    """What became of one run.

    Attributes:
        folder: The run's.
        delivered: Points and files that arrived now.
        undelivered: Points and files that did not, or were refused for good.
        where: How to look at the run.
        trouble: Why something did not arrive, or empty.
        interrupted: Whether the run has no end of its own, and was marked KILLED.
    """

    folder: Path
    delivered: int
    undelivered: int
    where: str
    trouble: str
    interrupted: bool


def undelivered_runs(below: Path) -> list[Path]:
    """Return the folders below one in which something waits, oldest first."""
    found = sorted(below.rglob(f"{FOLDER}/{EVENTS}"), key=lambda p: p.stat().st_mtime)
    return [path.parents[1] for path in found if _waits(path.parents[1])]


def sync_run(
    folder: str | Path,
    tracking_uri: str | None = None,
    experiment: str | None = None,
) -> Synced:
    """Send what is left of a run to the store that it belongs to.

    A run that was interrupted is delivered as far as it came, and marked as KILLED;
    it can be resumed all the same.

    Args:
        folder: The run's.
        tracking_uri: For a run that no store was named for (see `open_store`), or
            whose store's address has a password, which is never written down.
        experiment: For a run that no store was named for.

    Raises:
        InputError: If the folder is no run, or belongs to another store.
        TrackingError: If another process writes it.
    """
    spool = Spool(folder, make=False)
    try:
        uri = known_uri(spool, tracking_uri)
        if "given" not in (info := spool.info):
            spool.write_info(tracking_uri=redacted(uri), experiment=experiment)
            spool.write_info(given=False, run_id=None, temporary=False)
            info = spool.info
        interrupted = _end(spool)
        given = info["run_id"] if info["given"] else None
        delivery = Delivery(spool, uri, info["experiment"], given)
        delivery.deliver()
        delivery.release()
        waiting = [e for e in spool.events() if e.seq > spool.acked]
        left = sum(event.points for event in waiting) + delivery.refused
        where = redacted(uri)
        if delivery.store is not None and delivery.run is not None:
            run = delivery.run.info
            where = delivery.store.look(run.experiment_id, run.run_id)
        if not left and info["temporary"]:
            shutil.rmtree(spool.root)
    finally:
        spool.close()
    return Synced(
        spool.root, delivery.delivered, left, where, delivery.trouble, interrupted
    )


def _waits(folder: Path) -> bool:
    last = deque(read_events(folder), maxlen=1)
    return bool(last) and (last[0].seq > read_acked(folder) or last[0].kind != "end")


def _end(spool: Spool) -> bool:
    """End a run that was interrupted; return whether it was."""
    events = list(spool.events())
    if not events:
        raise InputError(f"{spool.root} holds a run that has not begun.")
    if events[-1].kind == "end":
        return False
    now = events[-1].time
    parts = sorted(path.name for path in (spool.root / RECORDS).glob("*"))
    built = {event.body["part"] for event in events if event.kind == "part"}
    new = [
        (now, "part", {"part": part, "kinds": list(KINDS)})
        for part in parts
        if part not in built
    ]
    spool.append([*new, (now, "end", {"status": "KILLED"})])
    return True
