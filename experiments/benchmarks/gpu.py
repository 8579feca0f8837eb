"""The same table on one GPU: two precisions, wide layers, and a profiler's trace.

Nothing here has run yet: no GPU was at hand.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.cases import CASES, Case, mlp
from experiments.benchmarks.table import Effort, measure_case
from experiments.benchmarks.variants import Unwatched, Watched

EVERY_GOAL, SCHEDULED_GOAL = 1.10, 1.02

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
}

SYNCHRONISING = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    "aten::_local_scalar_dense",  # .item(), .tolist(), a tensor's truth
)
"""Events of a trace that make the training thread wait for the device."""


def wide(width: int) -> Case:
    """Three hidden layers of one width, batch 256."""
    return Case(
        f"mlp-{width}",
        f"MLP, 3 layers of {width}, batch 256",
        lambda: mlp(width, width, width, width, 2),
        (width,),
        256,
        2,
        EVERY_GOAL,
    )


def gpu_cases() -> list[Case]:
    """Those of the table, and widths up to 4096; no reference: it is a CPU matter."""
    known = [replace(c, goal=EVERY_GOAL, reference=False) for c in CASES.values()]
    return known + [wide(width) for width in (1024, 2048, 4096)]


def measure_gpu(cases: Iterable[Case], effort: Effort) -> Iterator[dict[str, Any]]:
    """One row per case and precision."""
    for case in cases:
        for name, precision in PRECISIONS.items():
            row = measure_case(case, effort, "cuda", precision)
            row |= {
                "scheduled_goal": SCHEDULED_GOAL,
                "scheduled_met": row["scheduled_ratio"] <= SCHEDULED_GOAL,
                "synchronisations": added_synchronisations(case, precision),
            }
            yield {"case": case.name, "title": case.title, "precision": name} | row


def added_synchronisations(
    case: Case, precision: torch.dtype | None = None, steps: int = 5
) -> dict[str, int]:
    """What watching adds to an unwatched trace; without ``collect``, which waits."""
    traces = [
        count_synchronisations(_trace(variant(case, "cuda", precision), steps))
        for variant in (Unwatched, Watched)
    ]
    return dict(traces[1] - traces[0])


def count_synchronisations(names: Iterable[str]) -> Counter[str]:
    """How often each event of a trace that waits occurs."""
    return Counter(name for name in names if name in SYNCHRONISING)


def _trace(variant: Unwatched, steps: int) -> list[str]:
    """Names of all events of a few steps after a first one."""
    variant.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            variant.step()
    return [event.name for event in profiler.events() or ()]
