"""How far groups' ranks and norms are apart along training, as pages draw it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.report.html_data import Frame, rounded

KEYS = ("statistic", "quantity", "layer", "group_a", "group_b")
NUMBERS = ("value", "null_mean", "null_05", "null_95", "z", "p_max")
MOST = 100_000
"""At most about so many numbers are in a page."""


def trend_cells(
    table: pd.DataFrame, frame: Frame
) -> tuple[list[dict[str, Any]], list[str]]:
    """Trajectories of the table ``trends``, one cell per place and pair of groups.

    The norms' absolute log ratio of squares ``v`` becomes ``exp(v / 2)``, the larger
    norm over the smaller, and so do the edges of its band; the mean of its null becomes
    the geometric mean.

    Args:
        table: As the run left it; may be empty.
        frame: What is drawn.

    Returns:
        ``statistic, quantity, layer, group_a, group_b, epochs``, per name of `NUMBERS`
        as many numbers, and ``reasons``, without cells that have no value; and
        sentences about what was left out.
    """
    if not {*KEYS, *NUMBERS, "epoch", "reason"} <= set(table.columns):
        return [], []
    rows = table[table["layer"].isin(frame.layers) & table["epoch"].isin(frame.epochs)]
    cells = []
    for key, own in rows.groupby(list(KEYS), sort=False):
        if own["value"].notna().any():
            cells.append(_cell(dict(zip(KEYS, key, strict=True)), own))
    each = max((len(NUMBERS) * len(cell["epochs"]) for cell in cells), default=1)
    room = max(1, MOST // each)
    if room >= len(cells):
        return cells, []
    return cells[:room], [
        f"Drawn are {room} of {len(cells)} trajectories of ranks and norms apart; the "
        "table trends has all."
    ]


def _cell(key: dict[str, Any], own: pd.DataFrame) -> dict[str, Any]:
    own = own.sort_values("epoch")
    numbers = {name: own[name].to_numpy(dtype=np.float64) for name in NUMBERS}
    if key["statistic"] == "unbiased_norm_ratio":
        for name in ("value", "null_mean", "null_05", "null_95"):
            numbers[name] = np.exp(numbers[name] / 2)
    return {
        **key,
        "epochs": [int(epoch) for epoch in own["epoch"]],
        "reasons": _reasons(own["reason"]),
        **{name: rounded(values) for name, values in numbers.items()},
    }


def _reasons(column: Iterable[Any]) -> list[str]:
    """Return different reasons, a few."""
    return list(dict.fromkeys(r for r in column if isinstance(r, str) and r))[:2]
