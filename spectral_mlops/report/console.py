"""Tables for a terminal, from plain frames."""

from collections.abc import Mapping

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectral_mlops.report.terminal import (
    JUDGED,
    cell,
    formatted,
    judged,
    plain_table,
    show_reasons,
)
from spectral_mlops.tracking.measures import CLASSIFICATION, WORDS, Measures

APART = 4
"""Settings of trials up to which each has a column of its own."""
ADDITIVE = 1e-4
"""Relative gap above which float32 rounding is no explanation."""
ADDITIVE_REDUCED = 1e-2
"""The same where forward passes are of reduced precision: ``.grad`` is rounded too."""


def show_run(
    console: Console,
    layers: pd.DataFrame,
    groups: pd.DataFrame,
    metrics: Mapping[str, float],
    measures: Measures = CLASSIFICATION,
    reduced: bool = False,
) -> None:
    """Print what a run found, per layer and per group.

    Args:
        console: Where to.
        layers: From `report.layer_table`.
        groups: Columns ``group, n, loss`` and those of the task, validation people.
        metrics: Final numbers.
        measures: Of the run's task.
        reduced: Whether training passed people in reduced precision.
    """
    console.print(_layers(layers))
    show_reasons(console, layers["reason"])
    console.print(_groups(groups, measures))
    name = measures.headline
    value, sd = metrics[f"final/{name}"], metrics[f"final/{name}_sd"]
    line = f"{measures.words} {value:.3f} ± {sd:.3f} over folds"
    if f"final/{name}_sd_seeds" in metrics:
        line += f", ± {metrics[f'final/{name}_sd_seeds']:.3f} over seeds"
    line += " (validation people, who also chose the checkpoints)"
    if f"final/probe_{name}" in metrics:
        line += f"; {metrics[f'final/probe_{name}']:.3f}"
        line += " on the probe, never touched before"
    console.print(line, highlight=False)
    z = {
        name.removeprefix("final/divergence_"): value
        for name, value in metrics.items()
        if name.startswith("final/divergence_") and "_sd_" not in name
    }
    if z:
        text = ", ".join(
            f"{quantity} {formatted(x, '+.2f')}{_spread(metrics, quantity)}"
            for quantity, x in z.items()
        )
        console.print(
            f"Divergence between groups on the probe, z over layers: {text}",
            highlight=False,
        )
    if "cost/null_every" in metrics:
        every = int(metrics["cost/null_every"])
        text = f"every {every} epochs, and in the first and the last"
        console.print(
            f"Labels permuted {text if every > 1 else 'in every epoch'}, as "
            "comparison.null_budget allows",
            highlight=False,
        )
    gap = metrics["final/additivity"]
    console.print(
        "Σ of the groups' gradients = the gradient: largest relative gap "
        f"{gap:.1e} on the first watched batch of each fold"
        + (", in reduced precision" if reduced else ""),
        highlight=False,
    )
    if not gap <= (ADDITIVE_REDUCED if reduced else ADDITIVE):
        console.print(
            "That is more than rounding: part of the gradient does not flow through "
            "the watched layers, and no group has it.",
            style="red",
        )


def show_effects(console: Console, effects: pd.DataFrame, quantity: str) -> None:
    """Print how large the differences of one quantity are, and how much they vary.

    Args:
        console: Where to.
        effects: Columns ``quantity, layer, group_a, group_b, effect, low, high, chance,
            m, draws, sd_folds, sd_seeds`` at least.
        quantity: Which.
    """
    rows = effects[(effects["quantity"] == quantity) & effects["effect"].notna()]
    if rows.empty:
        return
    m, draws = int(rows["m"].iloc[0]), int(rows["draws"].max())
    several = rows[["group_a", "group_b"]].drop_duplicates().shape[0] > 1
    columns = {"effect": "effect", "low": "2.5 %", "high": "97.5 %", "chance": "chance"}
    columns |= {"sd_folds": "SD folds", "sd_seeds": "SD seeds"}
    shown = {name: head for name, head in columns.items() if rows[name].notna().any()}
    table = plain_table(
        f"Effect size in {quantity} (×10³): divergence of {m} people per group "
        f"on the probe less chance, that of {m} relabelled ones; 95 % of {draws} draws "
        f"of {m} of these people (no confidence interval); SD over networks"
    )
    table.add_column("layer", no_wrap=True)
    if several:
        table.add_column("groups")
    for head in shown.values():
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        table.add_row(
            str(row["layer"]),
            *([f"{row['group_a']} – {row['group_b']}"] if several else []),
            *(formatted(1e3 * row[name], ".2f") for name in shown),
        )
    console.print(table)


def show_performance(
    console: Console, performance: pd.DataFrame, measures: Measures = CLASSIFICATION
) -> None:
    """Print the headline numbers of the network and of what it should beat.

    Args:
        console: Where to.
        performance: Columns ``model, people, group, metric, value, low, high``.
        measures: Of the run's task.
    """
    everyone = performance[performance["group"] == "all"]
    for metric in measures.judged:
        rows = everyone[everyone["metric"] == metric]
        table = plain_table(
            f"{WORDS[metric]}, 95 % of bootstrap draws of people; linear: "
            f"{measures.linear} on the same folds; confounds: age, sex, site, motion "
            "alone"
        )
        table.add_column("model", no_wrap=True)
        people = list(dict.fromkeys(rows["people"]))
        for name in people:
            table.add_column(name, justify="right", no_wrap=True)
        for model in dict.fromkeys(rows["model"]):
            of = rows[rows["model"] == model].set_index("people")
            table.add_row(str(model), *(_interval(of, name) for name in people))
        console.print(table)


def _interval(rows: pd.DataFrame, name: str) -> str:
    """Write ``0.71 (0.60 to 0.81)``."""
    if name not in rows.index:
        return "–"
    value, low, high = rows.loc[name, ["value", "low", "high"]]
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def show_controls(console: Console, controls: pd.DataFrame) -> None:
    """Print what a primary outcome was held against.

    Args:
        console: Where to.
        controls: Columns ``control, z, p, beyond_z, beyond_p, says``, at least.
    """
    table = plain_table(
        "Controls: the primary outcome under each; beyond: trained less control"
    )
    table.add_column("control", no_wrap=True)
    for name in ("z", "p", "beyond", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it says")
    for row in controls.to_dict("records"):
        table.add_row(
            str(row["control"]),
            formatted(row["z"], "+.2f"),
            formatted(row["p"], ".3f"),
            formatted(row["beyond_z"], "+.2f"),
            formatted(row["beyond_p"], ".3f"),
            str(row["says"]),
        )
    console.print(table)


def show_parts(console: Console, parts: pd.DataFrame) -> None:
    """Print the parts of a cross-fitted comparison.

    Args:
        console: Where to.
        parts: Columns ``part, held_out, z, p`` and the task's headline number.
    """
    table = plain_table("Everyone held out once: the primary outcome of each part")
    headline = str(parts.columns[-1])
    for name in ("part", "held out", "z", "p", WORDS[headline]):
        table.add_column(name, justify="right", no_wrap=True)
    for row in parts.to_dict("records"):
        table.add_row(
            str(row["part"]),
            str(row["held_out"]),
            formatted(row["z"], "+.2f"),
            formatted(row["p"], ".3f"),
            formatted(row[headline], ".3f"),
        )
    console.print(table)


def show_trials(console: Console, trials: pd.DataFrame) -> None:
    """Print a study, one line a trial; many settings share a column.

    Args:
        console: Where to.
        trials: Columns ``trial, state``, ``auc`` or ``r2``, one per parameter,
            ``divergence.<quantity>``, ``run``, ``error`` and maybe ``infeasible``.
    """
    table = plain_table("Trials: in validation, settings, divergence on the probe (z)")
    shown = trials.drop(columns=["run", "error", "infeasible"], errors="ignore")
    settings = [name for name in map(str, shown) if not _judges(name)]
    together = settings if len(settings) > APART else []
    apart = [name for name in map(str, shown) if name not in together]
    for name in apart:
        head = _short(name).replace("divergence.", "z ")
        kept = name == "state"  # which tells most: others give way on narrow screens
        table.add_column(
            head[:5] if head.startswith("z ") else head, justify="right", no_wrap=kept
        )
    if together:
        table.add_column("settings", overflow="fold")
    for row in shown.to_dict("records"):
        drawn = [f"{_short(x)}={cell(row[x])}" for x in together if _is_set(row[x])]
        words = [escape(" ".join(drawn))] if together else []
        table.add_row(*(cell(row[name]) for name in apart), *words)
    console.print(table)
    for column, before in (("infeasible", "not allowed, "), ("error", "")):
        if column not in trials:
            continue
        said = trials[trials[column].notna()]
        for number, words in zip(said["trial"], said[column], strict=True):
            line = f"  – trial {number}: {before}{words}"
            console.print(line, style="dim", highlight=False, markup=False)


def _judges(name: str) -> bool:
    return name in ("trial", "state", *WORDS) or name.startswith("divergence.")


def _is_set(value: object) -> bool:
    return value is not None and value == value


def _short(name: str) -> str:
    return name.replace("model.settings.", "").replace("training.", "")


def show_confirmed(console: Console, table: pd.DataFrame) -> None:
    """Print a trial on the study's probe and on a second one.

    Args:
        console: Where to.
        table: Columns ``trial, probe, people``, ``auc`` or ``r2``, ``divergence,
            upper, p, p_max``.
    """
    shown = plain_table("Trained again, with other people held out", tight=False)
    for name in map(str, table.columns):
        shown.add_column(name, justify="right")
    for row in table.itertuples(index=False):
        shown.add_row(*(cell(value) for value in row))
    console.print(shown)
    console.print(
        "divergence is z; upper its 95 % bound; p_max is adjusted over all trials on "
        "the first probe, over those confirmed on the second.",
        highlight=False,
    )


def _spread(metrics: Mapping[str, float], quantity: str) -> str:
    """How much single networks vary; no error of the z of all of them."""
    found = {
        kind: metrics.get(f"final/divergence_{quantity}_sd_{kind}", float("nan"))
        for kind in ("folds", "seeds")
    }
    known = [f"SD {sd:.2f} over {kind}" for kind, sd in found.items() if sd == sd]
    return f" ({', '.join(known)})" if known else ""


def _layers(layers: pd.DataFrame) -> Table:
    """Effective ranks on training batches beside the divergence with its null.

    Narrow enough for 80 columns with two groups.
    """
    table = plain_table(
        "Per layer: effective rank of each group on the last epoch's training "
        "batches; divergence (×10³) of the groups and its null (labels permuted)"
    )
    ranks = [name for name in map(str, layers.columns) if name.startswith("erank_")]
    ranks.remove("erank_all")
    several = layers["pair"].nunique() > 1
    for name in ("layer", "quantity"):
        table.add_column(name, no_wrap=True)
    for name in ranks:
        table.add_column(name.removeprefix("erank_"), justify="right")
    if several:
        table.add_column("groups")
    for name in ("diverg.", *JUDGED):
        table.add_column(name, justify="right", no_wrap=True)
    for row in layers.to_dict("records"):
        table.add_row(
            str(row["layer"]),
            str(row["quantity"]),
            *(formatted(row[name], ".1f") for name in ranks),
            *([str(row["pair"])] if several else []),
            *judged(row, "divergence"),
        )
    return table


def _groups(groups: pd.DataFrame, measures: Measures) -> Table:
    table = plain_table("Validation people, out of fold", tight=False)
    numbers = ["loss", measures.told]
    if not measures.bounded:  # one error says little without what it is measured by
        numbers.append(measures.headline)
    for name in ("group", "people", *(WORDS[name] for name in numbers)):
        table.add_column(name, justify="left" if name == "group" else "right")
    for row in groups.to_dict("records"):
        table.add_row(
            str(row["group"]),
            str(row["n"]),
            *(formatted(row[name], ".3f") for name in numbers),
        )
    return table
