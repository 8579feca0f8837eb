"""How the cost of watching grows, and how it should.

One size at a time is varied; the cost of a step is what watching adds to it. The
exponent is the slope of a straight line through the upper half of the points on
log-log axes: at small sizes a constant (Python, call overhead) hides it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from experiments.benchmarks.cases import Case, mlp
from experiments.benchmarks.measure import BASE, alternate
from experiments.benchmarks.variants import Unwatched, Watched


@dataclass(frozen=True)
class Sweep:
    """One size that is varied.

    Attributes:
        title: What varies, and what is held.
        sizes: Of that size.
        case: Makes the network of one size.
        cost: Theoretical exponent of what watching adds, at large sizes.
        step: Theoretical exponent of the unwatched step.
        why: Where these come from.
    """

    title: str
    sizes: Sequence[int]
    case: Callable[[int], Case]
    cost: float
    step: float
    why: str


def _square(width: int, batch: int, groups: int, depth: int = 3) -> Case:
    return _case(lambda: mlp(*[width] * depth, 2), (width,), batch, groups)


def _tokens(length: int) -> Case:
    """Linear layers of 128 on ``[N, S, 128]``, averaged over ``S`` at the end."""

    def build() -> nn.Module:
        pool = [nn.AdaptiveAvgPool2d((1, None)), nn.Flatten()]
        return nn.Sequential(mlp(128, 128, 128, 128), *pool, nn.Linear(128, 2))

    return _case(build, (length, 128), 16, 2)


def _case(
    build: Callable[[], nn.Module], inputs: tuple[int, ...], batch: int, groups: int
) -> Case:
    return Case("", "", build, inputs, batch, groups, goal=float("nan"))


SWEEPS = {
    "width": Sweep(
        "layer width (3 layers, batch 64, 2 groups)",
        (64, 128, 256, 512, 1024, 2048, 4096),
        lambda width: _square(width, 64, 2),
        cost=1.0,
        step=2.0,
        why="rows' Gram products: r²·d; the step: batch·d²",
    ),
    "batch": Sweep(
        "batch (3 layers of 512, 2 groups)",
        (8, 16, 32, 64, 128, 256, 512),
        lambda batch: _square(512, batch, 2),
        cost=2.0,
        step=1.0,
        why="rows' Gram products r²·d, solves r³, r = batch/2; step: batch·d² + Adam",
    ),
    "groups": Sweep(
        "groups, rows of a group below the width (3 layers of 512, batch 64)",
        (1, 2, 4, 8, 16, 32, 64),
        lambda groups: _square(512, 64, groups),
        cost=0.0,
        step=0.0,
        why="g groups of r = 64/g rows: products g·r²·d, solves g·r³ fall; at most 0",
    ),
    "groups-many-rows": Sweep(
        "groups, rows of a group above the width (3 layers of 32, batch 512)",
        (1, 2, 4, 8, 16),
        lambda groups: _square(32, 512, groups),
        cost=1.0,
        step=0.0,
        why="products r·d² are constant in sum; solves g·d³ grow; at most 1",
    ),
    "depth": Sweep(
        "depth (layers of 128, batch 64, 2 groups)",
        (2, 4, 8, 16, 32, 64),
        lambda depth: _square(128, 64, 2, depth),
        cost=1.0,
        step=1.0,
        why="every layer costs the same",
    ),
    "sequence": Sweep(
        "positions per sample (3 layers of 128, batch 16, 2 groups)",
        (1, 2, 4, 8, 16, 32, 64, 128, 256),
        _tokens,
        cost=1.0,
        step=1.0,
        why="rows above the width: products r·d² with r = batch·S/2, solves d³ stay",
    ),
}


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope on log-log axes through the upper half of the points.

    Args:
        sizes: Ascending.
        values: Those not above zero (noise larger than the cost) are left out.

    Returns:
        The exponent; NaN with fewer than two points left.
    """
    pairs = list(zip(sizes, values, strict=True))[len(sizes) // 2 - 1 :]
    kept = np.array([pair for pair in pairs if pair[1] > 0])
    if len(kept) < 2:
        return float("nan")
    return float(np.polyfit(np.log(kept[:, 0]), np.log(kept[:, 1]), 1)[0])


def measure_sweep(
    name: str, rounds: int, window: int, most: int | None = None
) -> Iterator[dict[str, Any]]:
    """One row per size.

    Args:
        name: Of `SWEEPS`.
        rounds: Of windows.
        window: Steps of each.
        most: Leave out larger sizes.
    """
    sweep = SWEEPS[name]
    for size in [s for s in sweep.sizes if most is None or s <= most]:
        case = sweep.case(size)
        variants = {BASE: Unwatched(case), "watched": Watched(case)}
        seconds = alternate(
            variants, rounds=rounds, window=window, chunk=max(1, window // 2)
        )
        base, watched = (median(seconds[variant]) for variant in variants)
        yield {
            "sweep": name,
            "size": size,
            "unwatched_ms": 1e3 * base,
            "cost_ms": 1e3 * (watched - base),
            "ratio": watched / base,
        }


def fit_sweep(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Measured and theoretical exponents of one sweep's rows."""
    sweep, sizes = SWEEPS[name], [row["size"] for row in rows]
    return {
        "sweep": name,
        "title": sweep.title,
        "from_size": sizes[len(sizes) // 2 - 1],
        "to_size": sizes[-1],
        "cost_exponent": fit_exponent(sizes, [row["cost_ms"] for row in rows]),
        "cost_theory": sweep.cost,
        "step_exponent": fit_exponent(sizes, [row["unwatched_ms"] for row in rows]),
        "step_theory": sweep.step,
        "ratio_exponent": fit_exponent(sizes, [row["ratio"] for row in rows]),
        "why": sweep.why,
    }
