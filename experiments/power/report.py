"""Tables and a picture of the stored data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.benchmarks.results import markdown
from experiments.power.curve import POWER, rates, smallest_found

QUANTITIES = {
    "activation": "activation",
    "adjoint": "adjoint",
}
SYMBOLS = {0.5: "½"}
Row = dict[str, Any]


def load(path: Path) -> pd.DataFrame:
    """Read the data sets; ``refused`` is a column also where nobody was."""
    table = pd.read_csv(path)
    if "refused" not in table:
        table["refused"] = np.nan
    return table.astype({"refused": object})


def tables(table: pd.DataFrame, about: Row) -> dict[str, str]:
    """The README's tables by name."""
    machine, versions = about["machine"], about["versions"]
    heading = (
        f"{about['date'][:10]}; {machine['cpu']}, {machine['cores']} cores; "
        f"torch {versions['torch']}; threads {about['threads'][0]}; "
        f"seeds 0 to {table['seed'].max()}; `{about['command']}`"
    )
    return {
        "power": f"{heading}\n\n{rate_table(table)}",
        "smallest": smallest_table(table),
        "auc": auc_table(table),
    }


def effect_text(effect: float) -> str:
    """Return ``½`` for 0.5."""
    return SYMBOLS.get(effect, f"{effect:g}")


def held_out(share: float) -> str:
    """How people were held out, in words."""
    return "cross-fit, 3 parts" if np.isnan(share) else f"{share:.0%}"


def rate_table(table: pd.DataFrame) -> str:
    """Rates of p ≤ .05 of every cell, the refused ones among them."""
    every = sorted(set(table["effect"]))
    rows: list[dict[str, str]] = []
    for quantity, words in QUANTITIES.items():
        found = rates(table, quantity)
        for (people, share), part in found.groupby(["people", "share"], dropna=False):
            row = {
                "people": f"{people}",
                "held out": held_out(share),
                "quantity": words,
                "data sets": f"{part['data_sets'].iloc[0]}",
            }
            for effect in every:
                at = part[part["effect"] == effect]
                row[effect_text(effect)] = (
                    f"{at['rate'].iloc[0]:.2f} ({at['low'].iloc[0]:.2f}–"
                    f"{at['high'].iloc[0]:.2f})"
                    if len(at)
                    else ""
                )
            rows.append(row)
    refused = table.dropna(subset=["refused"]).drop_duplicates(["people", "share"])
    rows += [
        {
            "people": f"{cell['people']}",
            "held out": held_out(cell["share"]),
            "quantity": f"refused: {cell['refused']}",
        }
        for cell in refused.to_dict("records")
    ]
    columns = ["people", "held out", "quantity", *map(effect_text, every), "data sets"]
    return markdown(rows, {name: cell_of(name) for name in columns})


def cell_of(name: str) -> Any:
    """A column of `markdown`."""
    return lambda row: row.get(name, "")


def widest(table: pd.DataFrame) -> list[tuple[int, float, pd.DataFrame]]:
    """Cells that were measured at all effects."""
    tested = table[table["refused"].isna()]
    cells = [
        (int(people), float(share), part)
        for (people, share), part in tested.groupby(["people", "share"])
    ]
    most = max(part["effect"].nunique() for _, _, part in cells)
    return [cell for cell in cells if cell[2]["effect"].nunique() == most]


def smallest_table(table: pd.DataFrame) -> str:
    """Smallest effect that is found with the power wanted."""
    rows: list[Row] = []
    for people, share, part in widest(table):
        for quantity, words in QUANTITIES.items():
            found = smallest_found(part, quantity)
            top = float(part["effect"].max())
            rows.append(
                {
                    "people": f"{people}",
                    "held out": held_out(share),
                    "quantity": words,
                    f"effect found by {POWER:.0%}": up_to(found["effect"], top),
                    "95 % interval": (
                        f"{up_to(found['low'], top)} to {up_to(found['high'], top)}"
                    ),
                    "data sets per effect": f"{found['data_sets']}",
                }
            )
    return markdown(rows, {name: cell_of(name) for name in rows[0]})


def up_to(effect: float, top: float) -> str:
    """An effect, or that it is beyond those measured."""
    return f"{effect:.1f}" if np.isfinite(effect) else f"> {top:g}"


def auc_table(table: pd.DataFrame) -> str:
    """Mean AUC of the networks on held-out people, by effect."""
    rows = []
    for people, share, part in widest(table):
        mean = part.groupby("effect")["probe_auc"].mean()
        row = {"people": f"{people}", "held out": held_out(share)}
        rows.append(row | {effect_text(e): f"{x:.2f}" for e, x in mean.items()})
    return markdown(rows, {name: cell_of(name) for name in rows[0]})


def draw(table: pd.DataFrame, path: Path) -> None:
    """Rates over effects, a line per cell, a panel per quantity."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(QUANTITIES), sharey=True)
    for axes, (quantity, words) in zip(panels, QUANTITIES.items(), strict=True):
        found = rates(table, quantity)
        cells = found.groupby(["people", "share"], dropna=False)
        for aside, ((people, share), part) in enumerate(cells):
            errors = [part["rate"] - part["low"], part["high"] - part["rate"]]
            axes.errorbar(
                part["effect"] + 0.05 * aside,  # intervals beside each other
                part["rate"],
                yerr=errors,
                fmt="o--" if np.isnan(share) else "o-",
                markersize=3,
                linewidth=1,
                elinewidth=0.6,
                label=f"{people}, {held_out(share)} ({part['data_sets'].iloc[0]})",
            )
        axes.axhline(POWER, color="0.6", linewidth=0.8)
        axes.axhline(0.05, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(words, fontsize="medium")
        axes.set_xlabel("group effect (1: as in published cohorts)")
        axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("share of data sets with p ≤ .05")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right upper",
        fontsize="small",
        title="people, held out (data sets)",
        title_fontsize="small",
    )
    figure.savefig(path, dpi=100)
