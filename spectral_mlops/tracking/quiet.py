"""MLflow without its chatter, and without waiting minutes for a dead server.

Import this before ``mlflow``: it sets what is read then. What the user has set
in the environment stands.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 4 s; default 4 min
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

_LOGGERS = ("mlflow", "alembic", "urllib3.connectionpool")
_SILENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_lock = threading.Lock()
_depth = 0
_levels: dict[str, int] = {}
_environment: dict[str, str | None] = {}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence MLflow's loggers and printing for as long as any caller is inside.

    The first one in saves levels and environment, the last one out restores
    them, whatever the order in which threads leave.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth > 1:
            return
        for name in _LOGGERS:
            _levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for key, value in _SILENT.items():
            _environment[key] = os.environ.get(key)
            os.environ[key] = value


def _leave() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth:
            return
        for name, level in _levels.items():
            logging.getLogger(name).setLevel(level)
        for key, before in _environment.items():
            if before is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = before
