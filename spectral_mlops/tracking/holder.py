"""Who writes to a run: one process at a time."""

import json
import os
import socket
from pathlib import Path

from spectral_mlops.errors import TrackingError
from spectral_mlops.tracking.store import Store  # NOTE: stays before mlflow

# isort: split
from mlflow.entities import Run

WRITER = "spectral.writer"
"""Tag of a run."""


def writer(folder: Path) -> str:
    """Say who writes to a run."""
    me = {"host": socket.gethostname(), "process": os.getpid(), "folder": str(folder)}
    return json.dumps(me)


def take(store: Store, run: Run, folder: Path) -> None:
    """Write down who writes to the run; refuse one that another process writes.

    Raises:
        TrackingError: If a process of this machine that is still there does.
    """
    mine, known = writer(folder), run.data.tags.get(WRITER)
    if known == mine:  # so it was made
        return
    me, other = json.loads(mine), json.loads(known or mine)
    here = other.get("host") == me["host"]
    if here and other.get("folder") != me["folder"] and _lives(other.get("process")):
        raise TrackingError(
            f"Run {run.info.run_id} is being written by process {other['process']} "
            f"from {other['folder']}: one at a time."
        )
    store.client.set_tag(run.info.run_id, WRITER, mine)


def _lives(process: object) -> bool:
    if not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
