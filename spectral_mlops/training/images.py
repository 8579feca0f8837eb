"""Maps of a run by epoch, as pictures on its page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.report.step_maps import draw_map, limits_of
from spectral_mlops.schedule import evenly_spaced
from spectral_mlops.tracking import Tracker
from spectral_mlops.tracking.profiles import PROFILES
from spectral_mlops.training.history import History
from spectral_mlops.training.plan import Plan

Array = NDArray[np.float64]
Panels = dict[str, Array]


def leave_images(folder: Path, plan: Plan, tracker: Tracker, history: History) -> None:
    """Draw maps of chosen epochs into ``images/`` of the run's folder and log them.

    - ``maps/erank``: effective rank, layer × group, of the epoch;
    - ``maps/divergence``: divergence of the groups on training batches, layer × epoch,
      up to the epoch;
    - ``maps/probe``: the probe's z, layer × epoch, up to the epoch.

    Args:
        folder: Of the run.
        plan: The run; its profile says how many epochs are drawn, which may be none.
        tracker: Open.
        history: Of the run.
    """
    most = PROFILES.get(plan.config.tracking.profile).images
    shown = sorted(history.probe or history.divergences)
    last = len(shown) - 1
    steps = sorted({shown[last - i] for i in evenly_spaced(most, len(shown))})
    layers = list(dict.fromkeys(c[0] for r in history.ranks.values() for c in r))
    if not steps or not layers:
        return
    (folder / "images").mkdir()

    def draw(
        name: str,
        panels_of: Callable[[int], Panels],
        columns: Sequence[str],
        title: str,
        diverging: bool = False,
    ) -> None:
        panels = {step: panels_of(step) for step in steps}
        scale = limits_of(list(panels.values()), diverging=diverging)
        for step, drawn in panels.items():
            path = folder / "images" / f"{name}-{step:05d}.png"
            words = f"{title}, epoch {step}"
            draw_map(drawn, layers, columns, scale, words, path, diverging=diverging)
            tracker.log_image(path, f"maps/{name}", step)

    groups = _groups(plan, history)
    names = [group for _, group in groups]
    draw(
        "erank",
        lambda step: _ranks(plan, history, step, layers, groups),
        names,
        "Effective rank (depends on group size)",
    )
    epochs = list(history.divergences)
    draw(
        "divergence",
        lambda step: _until(plan, history.divergences, step, layers, epochs),
        [str(epoch) for epoch in epochs],
        "Divergence of groups, training batches",
    )
    if history.probe:
        draw(
            "probe",
            lambda step: _until(plan, history.probe, step, layers, list(history.probe)),
            [str(epoch) for epoch in history.probe],
            "Divergence of groups on the probe, z",
            diverging=True,
        )


def _groups(plan: Plan, history: History) -> list[tuple[str, str]]:
    """Those of the primary grouping; the pooled one, far larger, would pale them."""
    seen = {cell[2:] for ranks in history.ranks.values() for cell in ranks}
    own = sorted(group for grouping, group in seen if grouping == plan.primary)
    return [(plan.primary, group) for group in own]


def _ranks(
    plan: Plan,
    history: History,
    step: int,
    layers: Sequence[str],
    groups: Sequence[tuple[str, str]],
) -> Panels:
    found = history.ranks[step]
    return {
        quantity: np.array(
            [
                [found.get((layer, quantity, *group), np.nan) for group in groups]
                for layer in layers
            ]
        )
        for quantity in plan.quantities
    }


def _until(
    plan: Plan,
    values: Mapping[int, Mapping[tuple[str, str], float]],
    step: int,
    layers: Sequence[str],
    epochs: Sequence[int],
) -> Panels:
    """Values of all epochs up to a step; later ones are not known yet."""
    return {
        quantity: np.array(
            [
                [
                    values[epoch].get((layer, quantity), np.nan)
                    if epoch <= step
                    else np.nan
                    for epoch in epochs
                ]
                for layer in layers
            ]
        )
        for quantity in plan.quantities
    }
