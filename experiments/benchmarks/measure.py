"""Paired timing: ways of training take turns within one process.

A round is a window of steps, cut into chunks. In each chunk every variant takes
its steps before the next chunk begins, so that whatever slows the machine slows
all of them; the order turns from chunk to chunk. A round gives one ratio per
variant, of summed times; the median over rounds is reported with its range.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from experiments.benchmarks.variants import Unwatched

BASE = "unwatched"


@dataclass(frozen=True)
class Ratio:
    """A ratio over several rounds.

    Attributes:
        median: Of the rounds.
        low: Smallest of them.
        high: Largest of them.
    """

    median: float
    low: float
    high: float

    def as_dict(self, prefix: str) -> dict[str, float]:
        """Three columns of a table."""
        return {
            f"{prefix}_ratio": self.median,
            f"{prefix}_low": self.low,
            f"{prefix}_high": self.high,
        }


def paired_ratio(watched: Sequence[float], unwatched: Sequence[float]) -> Ratio:
    """Median and range of the ratios of each round.

    Args:
        watched: Seconds per step, one entry per round.
        unwatched: The same rounds.
    """
    ratios = [w / u for w, u in zip(watched, unwatched, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def alternate(
    variants: Mapping[str, Unwatched],
    *,
    rounds: int,
    window: int,
    chunk: int,
    budget: float = float("inf"),
) -> dict[str, list[float]]:
    """Let variants take turns.

    Args:
        variants: Name to way of training; each moves on from where it stands.
        rounds: Number of windows.
        window: Steps of a window, after which ``finish`` is called and counted.
        chunk: Steps that one variant takes before the next one's turn.
        budget: Seconds after which no further round begins; one always does.

    Returns:
        Seconds per step of each variant, one entry per round.
    """
    for variant in variants.values():  # not timed: buffers, caches, lazy imports
        _run(variant, chunk, last=True)
    found: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.freeze()  # collecting between turns then looks at what the turns left only
    began = time.perf_counter()
    try:
        for _ in range(rounds):
            for name, seconds in _round(variants, window, chunk).items():
                found[name].append(seconds)
            if time.perf_counter() - began > budget:
                break
    finally:
        gc.unfreeze()
    return found


def _round(
    variants: Mapping[str, Unwatched], window: int, chunk: int
) -> dict[str, float]:
    seconds, steps = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0)
    order = list(variants)
    for start in range(0, window, chunk):
        size = min(chunk, window - start)
        for name in order:
            taken = max(1, round(size * variants[name].share))
            # The collector stays on, as in real training, but nobody pays for
            # what another left behind.
            gc.collect()
            last = start + chunk >= window
            seconds[name] += _run(variants[name], taken, last)
            steps[name] += taken
        order.reverse()
    return {name: seconds[name] / steps[name] for name in variants}


def _run(variant: Unwatched, steps: int, last: bool) -> float:
    """Take steps; return seconds."""
    torch.manual_seed(steps)  # the same dropout for all
    _wait()
    began = time.perf_counter()
    for _ in range(steps):
        variant.step()
    if last:
        variant.finish()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    """Let a GPU finish, so that the clock sees its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
