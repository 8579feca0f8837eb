"""Runs side by side, and the training-level test, for a terminal."""

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from spectral_mlops.report.runs import (
    StoredRun,
    comparability,
    layers_table,
    over_seeds,
    runs_table,
)
from spectral_mlops.report.runs_effects import effects_note, effects_table
from spectral_mlops.report.runs_joint import Joint, joint_tests
from spectral_mlops.report.terminal import (
    JUDGED,
    cell,
    judged,
    plain_table,
    show_reasons,
)


def show_runs(console: Console, runs: Sequence[StoredRun]) -> None:
    """Print final numbers and layers of some runs, and what may be compared."""
    title = "Final numbers (means over folds; of validation people, if not the probe)"
    console.print(_table(_upright(runs_table(runs)), title))
    seeds = over_seeds(runs)
    if len(seeds):
        title = "Over seeds: how much trainings vary; no evidence about people"
        console.print(_table(seeds, title))
    layers = layers_table(runs)
    title = "Per layer: divergence of the groups (×10³), and z under relabelling"
    if layers["pair"].nunique() == 1:
        title += f": {layers['pair'][0]}"
        layers = layers.drop(columns="pair")
    console.print(_table(layers.dropna(axis="columns", how="all"), title))
    effects = effects_table(runs)
    if len(effects):
        if effects["pair"].nunique() == 1:
            effects = effects.drop(columns="pair")
        console.print(_table(effects, "Effect sizes of the primary quantity"))
        console.print(effects_note(runs), highlight=False)
    console.print(comparability(runs), highlight=False)
    for joint in joint_tests(runs):
        _show_joint(console, joint)


def show_retrained(
    console: Console,
    table: pd.DataFrame,
    sources: Mapping[str, str],
    sentences: Sequence[str],
) -> None:
    """Print the test per layer and quantity, and what it means.

    Where there are several groupings or pairs of groups each has a table of its own.

    Args:
        console: Where to.
        table: Columns as `training.retrain.Retrained.table`.
        sources: Words for each value of ``source``.
        sentences: Printed below.
    """
    pairs = ["grouping", "group_a", "group_b"]
    several = table[pairs].drop_duplicates().shape[0] > 1
    named = table["grouping"].nunique() > 1
    for (source, grouping, a, b), rows in table.groupby(["source", *pairs], sort=False):
        groups = f"{grouping}: {a} – {b}" if named else f"{a} – {b}"
        of = f" ({groups})" if several else ""
        shown = plain_table(
            f"On {sources.get(str(source), source)}: divergence (×10³) of the run{of}, "
            "and of networks retrained on permuted targets"
        )
        for name in ("quantity", "layer"):
            shown.add_column(name, no_wrap=True)
        for name in ("run", "retrained", *JUDGED[1:]):
            shown.add_column(name, justify="right", no_wrap=True)
        for row in rows.to_dict("records"):
            shown.add_row(
                str(row["quantity"]),
                str(row["layer"]),
                *judged(row, "observed"),
            )
        console.print(shown)
    show_reasons(console, table["reason"])
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)


def _show_joint(console: Console, joint: Joint) -> None:
    """Print what some runs show together, all layers in one and one by one."""
    shown = ", ".join(map(str, joint.runs))
    if len(joint.overall):
        title = (
            f"Runs {shown} together: z of the mean over runs, all layers, under the "
            "same relabellings; lowest and highest z of single runs"
        )
        console.print(_table(joint.overall, title))
    if len(joint.layers):
        layers = joint.layers.rename(columns={"sd": "SD over runs", "p_max": "p max"})
        for name in ("divergence", "SD over runs"):
            layers[name] *= 1e3
        title = f"Runs {shown} together, per layer: divergence ×10³, mean over runs"
        if layers["pair"].nunique() == 1:
            layers = layers.drop(columns="pair")
        console.print(_table(layers, title))
    console.print(joint.sentence, highlight=False, markup=False)


def _upright(runs: pd.DataFrame) -> pd.DataFrame:
    """Turn rows into columns: a terminal has more lines than columns."""
    cells = runs.drop(columns="#").map(cell)
    turned = cells.T
    turned.columns = pd.Index([f"#{number}" for number in runs["#"]])
    return turned.rename_axis("").reset_index()


def _table(frame: pd.DataFrame, title: str) -> Table:
    """Any frame: text to the left, numbers to the right."""
    shown = plain_table(title, tight=False)
    for name in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        shown.add_column(str(name), justify="right" if numeric else "left")
    for row in frame.itertuples(index=False):
        shown.add_row(*map(cell, row))
    return shown
