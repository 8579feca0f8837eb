"""Tables for a terminal, from plain frames."""

from collections.abc import Mapping

import pandas as pd
from rich.console import Console
from rich.table import Table


def show_run(
    console: Console,
    layers: pd.DataFrame,
    groups: pd.DataFrame,
    metrics: Mapping[str, float],
) -> None:
    """Print what a run found, per layer and per group.

    Args:
        console: Where to.
        layers: From `report.layer_table`.
        groups: Columns ``group, n, loss, accuracy``, validation people.
        metrics: Final numbers.
    """
    console.print(_layers(layers))
    for reason in dict.fromkeys(r for r in layers["reason"] if r):
        console.print(f"  – {reason}", style="dim", highlight=False)
    console.print(_groups(groups))
    auc, sd = metrics["final/auc"], metrics["final/auc_sd"]
    line = f"AUC {auc:.3f} ± {sd:.3f} over folds (validation people, who also chose"
    line += " the checkpoints)"
    if "final/probe_auc" in metrics:
        line += f"; {metrics['final/probe_auc']:.3f} on the probe, never touched before"
    console.print(line, highlight=False)
    z = {
        name.removeprefix("final/divergence_"): value
        for name, value in metrics.items()
        if name.startswith("final/divergence_")
    }
    if z:
        text = ", ".join(
            f"{quantity} {_number(x, '+.2f')}" for quantity, x in z.items()
        )
        console.print(
            f"Divergence between groups on the probe, z over layers: {text}",
            highlight=False,
        )
    console.print(
        "Σ of the groups' gradients = the gradient: largest relative gap "
        f"{metrics['check/additivity']:.1e} on the first watched batch of each fold",
        highlight=False,
    )


def show_trials(console: Console, trials: pd.DataFrame) -> None:
    """Print a study, one line a trial.

    Args:
        console: Where to.
        trials: Columns ``trial, state, auc``, one per parameter, ``divergence.*``
            and ``run``.
    """
    table = Table(title="Trials", title_justify="left")
    for name in trials.columns:
        table.add_column(str(name), justify="right")
    for row in trials.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _layers(layers: pd.DataFrame) -> Table:
    """Effective ranks on training batches beside the divergence with its null."""
    table = Table(
        title="Per layer: effective rank on the last epoch's training batches, "
        "divergence of the groups and its null",
        title_justify="left",
    )
    ranks = [name for name in layers.columns if str(name).startswith("erank_")]
    table.add_column("layer")
    table.add_column("quantity")
    for name in ranks:
        table.add_column(f"rank {str(name).removeprefix('erank_')}", justify="right")
    several = layers["pair"].nunique() > 1
    if several:
        table.add_column("groups")
    for name in ("divergence", "null mean ± sd", "z", "p", "p max-T"):
        table.add_column(name, justify="right")
    for row in layers.to_dict("records"):
        null = f"{_number(row['null_mean'], '.4f')} ± {_number(row['null_sd'], '.4f')}"
        table.add_row(
            str(row["layer"]),
            str(row["quantity"]),
            *(_number(row[name], ".1f") for name in map(str, ranks)),
            *([str(row["pair"])] if several else []),
            _number(row["divergence"], ".4f"),
            "–" if row["null_mean"] != row["null_mean"] else null,
            _number(row["z"], "+.2f"),
            _number(row["p"], ".3f"),
            _number(row["p_max"], ".3f"),
        )
    return table


def _groups(groups: pd.DataFrame) -> Table:
    table = Table(title="Validation people, out of fold", title_justify="left")
    for name in ("group", "people", "loss", "accuracy"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for row in groups.to_dict("records"):
        table.add_row(
            str(row["group"]),
            str(row["n"]),
            _number(row["loss"], ".3f"),
            _number(row["accuracy"], ".3f"),
        )
    return table


def _cell(value: object) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)
