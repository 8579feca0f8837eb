"""Effect sizes of several runs side by side, at one number of people or not at all."""

from collections.abc import Sequence

import pandas as pd

from spectral_mlops.report.runs import StoredRun

ROW = ["layer", "quantity", "pair"]


def effects_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """The primary quantity's effects of every run that has some.

    Args:
        runs: In the order of their numbers.

    Returns:
        Columns ``layer, quantity, pair``, then ``#1 effect ×10³`` and ``#1 95 %`` (of
        subsamples), and so on; empty where no run has effects.
    """
    columns: list[pd.Series] = []
    for number, run in enumerate(runs, start=1):
        rows = _primary(run)
        if rows.empty:
            continue
        rows = rows.set_index(ROW)
        interval = [
            f"{1e3 * low:.2f} … {1e3 * high:.2f}"
            for low, high in zip(rows["low"], rows["high"], strict=True)
        ]
        columns.append((1e3 * rows["effect"]).rename(f"#{number} effect ×10³"))
        columns.append(pd.Series(interval, rows.index, name=f"#{number} 95 %"))
    if not columns:
        return pd.DataFrame()
    return pd.concat(columns, axis="columns", sort=False).reset_index()


def effects_note(runs: Sequence[StoredRun]) -> str:
    """Say in one sentence what the effects are, and whether they compare."""
    numbers = {
        number: int(rows["m"].iloc[0])
        for number, run in enumerate(runs, start=1)
        if len(rows := _primary(run))
    }
    sizes = sorted(set(numbers.values()))
    if not sizes:
        return ""
    what = (
        "Effects: divergence of m people per group on the probe less that of m "
        "relabelled ones; 95 % of subsamples of these people, no confidence interval; "
    )
    if len(sizes) > 1:
        shown = ", ".join(f"#{number}: {m}" for number, m in numbers.items())
        return (
            f"{what}m differs ({shown}), so they may not be compared: set "
            "comparison.effect_people."
        )
    return f"{what}m = {sizes[0]}."


def _primary(run: StoredRun) -> pd.DataFrame:
    """Rows of the primary quantity that have an effect, with a column ``pair``."""
    if run.effects.empty:
        return run.effects
    primary = run.effects["quantity"] == run.config.comparison.primary_quantity
    rows = run.effects[primary & run.effects["effect"].notna()]
    return rows.assign(pair=rows["group_a"] + " – " + rows["group_b"])
