"""Pictures of the stored numbers."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

FORMATS = ("png", "svg")


def plot_sweep(rows: Rows, fit: dict[str, Any], folder: Path) -> list[Path]:
    """Cost of watching and of the step over one size, and their ratio below.

    Args:
        rows: One per size, of one sweep.
        fit: Its exponents (`scaling.fit_sweep`).
        folder: Where files go.
    """
    sizes = [row["size"] for row in rows]
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    above, below = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    for column, kind, words in (
        ("cost_ms", "cost", "watching adds"),
        ("unwatched_ms", "step", "unwatched step"),
    ):
        label = (
            f"{words}: exponent {fit[f'{kind}_exponent']:.2f} "
            f"(theory {fit[f'{kind}_theory']:g})"
        )
        above.loglog(sizes, [row[column] for row in rows], "o-", label=label)
    above.axvspan(fit["from_size"], fit["to_size"], color="0.95", label="fitted here")
    above.set_ylabel("milliseconds per step")
    above.set_title(fill(fit["title"], 60), fontsize="medium")
    above.legend(fontsize="small")
    below.semilogx(sizes, [row["ratio"] for row in rows], "o-", color="C2")
    below.axhline(1, color="0.5", linewidth=0.8)
    below.set_ylabel("ratio")
    below.set_xlabel(fit["sweep"])
    return _save(figure, folder / f"scaling-{fit['sweep']}")


def plot_accuracy(rows: Rows, folder: Path, target: float) -> list[Path]:
    """Error against time of every route, a point per spectrum."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for route in dict.fromkeys(row["route"] for row in rows):
        chosen = [row for row in rows if row["route"] == route]
        # An error of exactly zero has no place on a logarithm.
        errors = [max(row["error"], 1e-17) for row in chosen]
        axes.loglog([row["ms"] for row in chosen], errors, "o", label=route)
    axes.axhline(target, color="0.5", linewidth=0.8, label=f"target {target:g}")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("largest error / σ_max")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, folder / "accuracy")


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(f".{ending}") for ending in FORMATS]
    # The same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": stem.name}):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=120, metadata=metadata)
    return paths
