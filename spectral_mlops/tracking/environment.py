"""What a run was made with and on: program, machine, versions, command line."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from spectral_mlops.tracking.checks import redacted

PACKAGES = (
    "spectral-mlops",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "mlflow",
    "optuna",
    "nibabel",
    "nilearn",
    "mne",
    "matplotlib",
    "plotly",
)
COMMAND_LIMIT = 2000  # characters of the command line in a tag


def environment_tags(device: str) -> dict[str, str]:
    """Return what runs are found and grouped by, as tags.

    Args:
        device: What tensors live on, in words.
    """
    commit, dirty = git_state()
    tags = {
        "spectral.version": metadata.version("spectral-mlops"),
        "spectral.machine": platform.machine(),
        "spectral.cpu": cpu_model(),
        "spectral.cores": str(cores()),
        "spectral.device": device,
        "spectral.command": command_line()[:COMMAND_LIMIT],
    }
    if commit:
        tags |= {"spectral.git_commit": commit, "spectral.git_dirty": dirty}
    return {name: value for name, value in tags.items() if value}


def environment_text(device: str) -> str:
    """Return all of it as lines ``name: value``, then versions as pip writes them.

    Args:
        device: What tensors live on, in words.
    """
    commit, dirty = git_state()
    memory = memory_bytes()
    lines = {
        "command": command_line(),
        "git commit": commit or "not in a git repository",
        "git changes": {"true": "yes, not committed", "false": "none"}.get(dirty, ""),
        "system": platform.platform(),
        "processor": f"{cpu_model()}, {cores()} cores for this process",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "",
        "device": device,
    }
    text = [f"{name}: {value}" for name, value in lines.items() if value]
    versions = [f"python=={platform.python_version()}", *_versions(PACKAGES)]
    return "\n".join([*text, "", *versions]) + "\n"


def git_state() -> tuple[str, str]:
    """Return the commit that the running script, else this package, stands in.

    As it was when this was first asked: what a process runs is what it loaded then.

    Returns:
        The commit, and ``true`` where files that git knows have changed since, else
        ``false``; both empty where there is no repository.
    """
    return _git_state(Path(sys.argv[0]).absolute().parent, Path(__file__).parent)


@cache
def _git_state(*folders: Path) -> tuple[str, str]:
    for folder in folders:
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return commit, "unknown" if changes is None else str(bool(changes)).lower()
    return "", ""


def command_line() -> str:
    """Return the command, without the program's folder and a store's password."""
    program = Path(sys.argv[0]).name or "interactive"
    return redacted(shlex.join([program, *sys.argv[1:]]))


def cpu_model() -> str:
    """Return the processor's name; its family where the system does not say."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        for line in known.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the machine's memory in bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _versions(packages: Iterable[str]) -> list[str]:
    found = []
    for package in packages:
        try:
            found.append(f"{package}=={metadata.version(package)}")
        except metadata.PackageNotFoundError:  # an optional one
            continue
    return found


def _git(folder: Path, *words: str) -> str | None:
    """Return what git says; None if there is no git, or no repository."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
