"""Stored results as tables, in markdown: on the screen and in the README."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.benchmarks.peers import PEERS
from experiments.benchmarks.results import Row, markdown, read

Stored = dict[str, Any]


def tables(folder: Path) -> dict[str, str]:
    """Every table that the results in a folder allow, by name."""
    made = {}
    for name, (part, view) in VIEWS.items():
        stored = read(folder, part)
        if stored is not None:
            made[name] = view(stored)
    return {name: table for name, table in made.items() if table}


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _ratio(row: Row, name: str) -> str:
    """Median and range."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[f'{name}_ratio']:.2f} ({low:.2f}–{high:.2f})"


def _goal(row: Row, name: str, digits: int = 2) -> str:
    """The goal, and whether it was met."""
    word = "met" if row[f"{name}_met"] else "**missed**"
    return f"{row[f'{name}_goal']:.{digits}f} {word}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _about(stored: Stored) -> str:
    about = stored["about"]
    machine, versions = about["machine"], about["versions"]
    words = [
        f"{about['date'][:10]}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"torch {versions['torch']}",
        f"threads {', '.join(map(str, about['threads']))}",
        f"seed {about['seed']}",
        f"`{about['command']}`",
    ]
    if machine["gpu"]:
        words.insert(2, machine["gpu"])
    return "; ".join(words) + "\n\n"


def _cases(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row["title"],
        "threads": lambda row: str(row["threads"]),
        "step, ms": lambda row: _number(row["unwatched_ms"], 1),
        "every step": lambda row: _ratio(row, "every"),
        "goal": lambda row: _goal(row, "every"),
        "default schedule": lambda row: _ratio(row, "scheduled"),
        "its goal": lambda row: _goal(row, "scheduled", 3),
        "rounds, epochs": lambda row: f"{row['rounds']}, {row['epochs']}",
    }
    return _about(stored) + markdown(stored["rows"], columns)


def _once(stored: Stored) -> list[Row]:
    """One row per case: what does not depend on threads stands in each."""
    rows = groupby(stored["rows"], key=lambda row: row["case"])
    return [next(same) for _, same in rows]


def _coverage(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row["title"],
        "parameters by method": lambda row: _counts(row["parameters"]),
        "spectra per step": lambda row: _counts(row["spectra"]),
        "same weights as unwatched": lambda row: "yes" if row["same_weights"] else "NO",
    }
    return markdown(_once(stored), columns)


def _memory(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row["title"],
        "unwatched, MiB": lambda row: _number(row["memory_unwatched_mib"], 0),
        "watched, MiB": lambda row: _number(row["memory_watched_mib"], 0),
        "group gradients, MiB": lambda row: _number(row["group_gradients_mib"], 1),
        "ratio without these": lambda row: _number(row["memory_ratio"]),
        "goal": lambda row: _goal(row, "memory"),
        "living tensors, MiB": lambda row: " → ".join(
            _number(row[f"tensors_{kind}_mib"], 0) for kind in ("unwatched", "watched")
        ),
        "ratio, imports left out too": lambda row: _number(
            row["memory_ratio_without_imports"]
        ),
    }
    return _about(stored) + markdown(stored["rows"], columns)


def _reference(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row["title"],
        "threads": lambda row: str(row["threads"]),
        "reference": lambda row: _ratio(row, "reference"),
        "ours": lambda row: _ratio(row, "every"),
        "overhead, times ours": lambda row: _number(row["times_ours"], 1),
        "goal": lambda row: _goal(row, "times_ours", 0),
    }
    rows = [row for row in stored["rows"] if "times_ours" in row]
    return markdown(rows, columns) if rows else ""


def _scaling(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "over": lambda row: row["title"],
        "fitted": lambda row: f"{row['from_size']}–{row['to_size']}",
        "cost": lambda row: _number(row["cost_exponent"]),
        "theory": lambda row: f"{row['cost_theory']:g}",
        "step": lambda row: _number(row["step_exponent"]),
        "its theory": lambda row: f"{row['step_theory']:g}",
        "ratio": lambda row: _number(row["ratio_exponent"]),
        "why": lambda row: row["why"],
    }
    return _about(stored) + markdown(stored["fits"], columns)


def _accuracy(stored: Stored) -> str:
    """One row per spectrum, a column per route: error, and milliseconds."""
    routes = list(dict.fromkeys(row["route"] for row in stored["rows"]))
    found = {(row["spectrum"], row["route"]): row for row in stored["rows"]}
    spectra = list(dict.fromkeys(row["spectrum"] for row in stored["rows"]))

    def cell(route: str) -> Callable[[Row], str]:
        def show(row: Row) -> str:
            item = found[row["spectrum"], route]
            error = f"{item['error']:.0e}"
            shown = error if item["error_met"] else f"**{error}**"
            words = f", {item['record_route']}" if "record_route" in item else ""
            return f"{shown}, {item['ms']:.1f} ms{words}"

        return show

    columns: dict[str, Callable[[Row], str]] = {"spectrum": lambda row: row["spectrum"]}
    columns |= {route: cell(route) for route in routes}
    rows = [{"spectrum": spectrum} for spectrum in spectra]
    return _about(stored) + markdown(rows, columns)


def _null(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row["title"],
        "quantities": lambda row: row["quantities"],
        "relabellings": lambda row: str(row["permutations"]),
        "p-values": lambda row: str(row["tested"]),
        "threads": lambda row: str(row["threads"]),
        "seconds": lambda row: (
            f"{row['seconds']:.2f} ({row['seconds_low']:.2f}–{row['seconds_high']:.2f})"
        ),
        "goal": lambda row: _goal(row, "seconds", 1),
        "rounds": lambda row: str(row["rounds"]),
    }
    return _about(stored) + markdown(stored["rows"], columns)


def _tracking(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "job": lambda row: row["case"],
        "threads": lambda row: str(row["threads"]),
        "epoch, seconds": lambda row: _number(row["epoch"]),
        "share of the training thread": lambda row: (
            f"{row['share']:.2%} ({row['share_low']:.2%}–{row['share_high']:.2%})"
        ),
        "goal": lambda row: _goal(row, "share"),
        "epoch, spool / none": lambda row: _ratio(row, "none"),
        "epoch, spool / no tracker": lambda row: _ratio(row, "bare"),
        "rounds": lambda row: str(row["rounds"]),
    }
    return _about(stored) + markdown(stored["rows"], columns)


def _peers(stored: Stored) -> str:
    def cell(name: str) -> Callable[[Row], str]:
        def show(row: Row) -> str:
            return row[name] if isinstance(row[name], str) else _number(row[name])

        return show

    columns: dict[str, Callable[[Row], str]] = {"case": lambda row: row["title"]}
    columns |= {name: cell(name) for name in ("ours", *PEERS)}
    known = {n: v for n, v in stored["about"]["versions"].items() if v}
    versions = ", ".join(f"{name} {number}" for name, number in known.items())
    return _about(stored) + markdown(stored["rows"], columns) + f"\n\n{versions}"


def _linkage(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "trials": lambda row: str(row["trials"]),
        "a trial, ms": lambda row: _number(row["linked_ms"], 0),
        "Optuna alone, ms": lambda row: _number(row["alone_ms"], 0),
        "linkage, ms": lambda row: _number(row["ms"], 0),
        "90 %, ms": lambda row: _number(row["ms_p90"], 0),
        "goal": lambda row: _goal(row, "ms", 0),
        "first tenth, ms": lambda row: _number(row["ms_first"], 0),
        "last tenth, ms": lambda row: _number(row["ms_last"], 0),
        "last / first": lambda row: _number(row["growth"]),
        "its goal": lambda row: _goal(row, "growth", 1),
    }
    return _about(stored) + markdown(stored["rows"], columns)


def _sweep(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "command": lambda row: f"`{row['command']}`",
        "trials": lambda row: str(row["trials"]),
        "seconds": lambda row: _number(row["seconds"], 0),
        "goal": lambda row: _goal(row, "seconds", 0),
    }
    return _about(stored) + markdown(stored["rows"], columns)


def _gpu(stored: Stored) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "case": lambda row: row["title"],
        "precision": lambda row: row["precision"],
        "step, ms": lambda row: _number(row["unwatched_ms"], 2),
        "every step": lambda row: _ratio(row, "every"),
        "goal": lambda row: _goal(row, "every"),
        "default schedule": lambda row: _ratio(row, "scheduled"),
        "its goal": lambda row: _goal(row, "scheduled"),
        "synchronisations": lambda row: _counts(row["synchronisations"]) or "none",
    }
    return _about(stored) + markdown(stored["rows"], columns)


# table: the part of the results it is made from, and how
VIEWS: dict[str, tuple[str, Callable[[Stored], str]]] = {
    "cases": ("cases", _cases),
    "coverage": ("cases", _coverage),
    "reference": ("cases", _reference),
    "memory": ("memory", _memory),
    "scaling": ("scaling", _scaling),
    "accuracy": ("accuracy", _accuracy),
    "null": ("null", _null),
    "peers": ("peers", _peers),
    "linkage": ("linkage", _linkage),
    "sweep": ("sweep", _sweep),
    "tracking": ("tracking", _tracking),
    "gpu": ("gpu", _gpu),
}
