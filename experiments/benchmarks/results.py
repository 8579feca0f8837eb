"""Results as files: JSON that says where it was measured, tables made from it."""

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.cases import SEED

Row = dict[str, Any]

PACKAGES = (
    *("spectral-mlops", "torch", "numpy"),
    *("backpack-for-pytorch", "opacus", "delve"),
)


def describe(threads: Sequence[int], command: str) -> dict[str, Any]:
    """Machine, versions, seed, threads, date and command of a run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": _memory_gib(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "seed": SEED,
        "threads": list(threads),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """Name of the processor; ``platform`` alone gives the architecture on Linux."""
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text().splitlines() if listed.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return round(size / 2**30, 1)


def joined(
    stored: dict[str, Any] | None, about: Row, rows: Sequence[Row]
) -> tuple[Row, Sequence[Row]]:
    """Put rows beside stored ones of other cases, if those can be compared.

    Args:
        stored: What `read` gave, if anything.
        about: Of the new rows.
        rows: They take the place of stored rows of the same case and threads.

    Returns:
        What `write` takes: all commands and threads named, and all rows.
    """
    same = ("machine", "versions", "seed")
    if stored is None or any(stored["about"][key] != about[key] for key in same):
        return about, rows
    measured = {(row.get("case"), row.get("threads")) for row in rows}
    kept = [
        row
        for row in stored["rows"]
        if (row.get("case"), row.get("threads")) not in measured
    ]
    if not kept:
        return about, rows
    before = stored["about"]
    commands = dict.fromkeys([*before["command"].split(" && "), about["command"]])
    threads = sorted({*before["threads"], *about["threads"]})
    together = {"command": " && ".join(commands), "threads": threads}
    return about | together, [*kept, *rows]


def write(
    folder: Path, name: str, about: Row, rows: Sequence[Row], **more: Sequence[Row]
) -> Path:
    """Write one part of the results; numbers that are not finite become null."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    shown = _finite({"about": about, "rows": rows, **more})
    path.write_text(json.dumps(shown, indent=1, allow_nan=False) + "\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """Read one part of the results, if it was written."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def markdown(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    """A table, one column per function."""
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(text: str, tables: dict[str, str]) -> str:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        ValueError: If a table has no place in the text.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"The text has no place for a table '{name}': {begin}")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return text
