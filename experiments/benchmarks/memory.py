"""Peak memory of training watched and unwatched, each in a process of its own.

Run as a module it is one of those processes: it prints its peak and leaves.
"""

import json
import os
import resource
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.cases import CASES, Case
from experiments.benchmarks.variants import Unwatched, Watched

ROOT = Path(__file__).parents[2]
ALLOWED = 1.1
"""Peak over the unwatched peak, the group gradients not counted."""

VARIANTS = {"unwatched": Unwatched, "watched": Watched}


def peak_memory(case: Case, steps: int) -> dict[str, Any]:
    """Compare the peaks of a window of steps.

    Args:
        case: What is trained.
        steps: Steps watched before ``collect``.

    Returns:
        Peaks in MiB, those of living tensors alone (``tensors``, by the profiler of
        PyTorch), the peaks' ratio without the group gradients (the goal), and the
        same ratio without what the imports alone take (`without_imports`), which
        small cases would otherwise hide behind.
    """
    plain, watched = (_in_a_process(case, name, steps) for name in VARIANTS)
    size = sum(p.numel() * p.element_size() for p in case.model().parameters())
    gradients = case.groups * size / 2**20
    return compare_peaks(plain, watched, gradients)


def compare_peaks(
    plain: dict[str, float], watched: dict[str, float], gradients: float
) -> dict[str, Any]:
    """Ratios of peaks, less the group gradients; all in MiB."""
    ratio = (watched["peak"] - gradients) / plain["peak"]
    base = plain["imports"]
    return {
        "memory_unwatched_mib": plain["peak"],
        "memory_watched_mib": watched["peak"],
        "memory_imports_mib": base,
        "group_gradients_mib": gradients,
        "tensors_unwatched_mib": plain["tensors"],
        "tensors_watched_mib": watched["tensors"],
        "memory_ratio": ratio,
        "memory_goal": ALLOWED,
        "memory_met": ratio <= ALLOWED,
        "memory_ratio_without_imports": (watched["peak"] - gradients - base)
        / (plain["peak"] - base),
    }


def _tensor_peak(training: Unwatched, steps: int) -> float:
    """High-water mark of living tensors over a window, in MiB, past those at start.

    What the allocator of the C library keeps of freed ones is not in it. The profiler
    sees one thread: with as many torch threads as cores nothing is done on another.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(steps):
            training.step()
        training.finish()
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]"
    )
    living = accumulate(nbytes for _, nbytes in changes)
    return max(living, default=0) / 2**20


def _in_a_process(case: Case, variant: str, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, case.name, variant, str(steps)]
    shown = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(shown.stdout)


def _peak() -> float:
    """High-water mark of resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # NOTE: on Linux getrusage's mark survives exec, so a child would report
        # its parent's peak where that was higher.
        marks = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(marks["VmHWM"].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Take steps and print this process's marks as JSON."""
    name, variant, steps = sys.argv[1:]
    torch.set_num_threads(1)
    imports = _peak()
    training = VARIANTS[variant](CASES[name])
    for _ in range(2):  # a second window shows what the first did not let go
        for _ in range(int(steps)):
            training.step()
        training.finish()
    marks = {"imports": imports, "peak": _peak()}
    marks["tensors"] = _tensor_peak(training, int(steps))
    print(json.dumps(marks))


if __name__ == "__main__":
    main()
