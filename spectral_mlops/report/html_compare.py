"""Several runs as one HTML file: what differs, and what may be compared.

Folds and seeds are no people: spread over runs is variability and never tested. Runs
whose probes, groupings or relabellings differ are drawn apart, because their z has no
common yardstick.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mlops.config import flatten
from spectral_mlops.records import POOLED, QUANTITIES
from spectral_mlops.report.colours import group_styles
from spectral_mlops.report.html_data import (
    CELL,
    SUMMARIES,
    divergence_maps,
    frame_of,
    spectra_cells,
    trajectory_cells,
)
from spectral_mlops.report.html_page import page_of, write_page
from spectral_mlops.report.html_people import curves
from spectral_mlops.report.html_tables import table_html
from spectral_mlops.report.runs import (
    METRICS,
    StoredRun,
    comparability,
    layers_table,
    over_seeds,
    runs_table,
)
from spectral_mlops.report.stored import StoredRun as WholeRun
from spectral_mlops.tracking.measures import WORDS, measures_of

RUNS = 30
"""At most so many runs are in one page; more cannot be told apart."""
SPECTRA_RUNS = 12
"""Spectra and trajectories of at most so many; the table and the scatter have all."""

KEPT = (*CELL, "epochs", "effective_rank")
KEPT_MAPS = ("quantity", "group_a", "group_b", "epochs", "tested", "z", "p_max")


def write_comparison(
    runs: Sequence[StoredRun], whole: Sequence[WholeRun], out: Path
) -> Path:
    """Write the page of some runs.

    Args:
        runs: Finished runs, as `read_run` gives them.
        whole: The same, with their records (`read_stored`).
        out: The file; its folder is made, an older page is replaced.

    Returns:
        The file.
    """
    return write_page(comparison_page(runs, whole), out)


def comparison_page(runs: Sequence[StoredRun], whole: Sequence[WholeRun]) -> str:
    """Return the page of some runs."""
    runs, whole = runs[:RUNS], whole[:RUNS]
    data = comparison_data(runs, whole)
    apart = len(set(data["yardsticks"])) > 1
    head = "apart" if apart else "verdict"
    seeds = over_seeds(runs)
    table = runs_table(runs)
    final = table[[c for c in table.columns if c in ("#", "run", *METRICS)]]
    words = "Divergence of the groups (×10³), and z under relabelling."
    layers = table_html(layers_table(runs), words)
    sections = [
        f"<section id='head'><p class='{head}'>{escape(comparability(runs))}</p>"
        "<p class='note'>Training batches describe; the probe infers. Spread over "
        "folds and seeds is variability, no evidence about people.</p></section>",
        f"<section id='runs'><h2>Runs</h2>{table_html(final)}"
        f"{_differences(runs)}</section>",
        '<nav class="choose" id="choose"></nav>',
        _plots("scatter", "Divergence against accuracy", "scatter"),
        _plots("over", "Over training", "z auc"),
        _plots("groups", "Effective rank by group", "ranks"),
        _plots("spectra", "Spectra by group at the last epoch", "panels"),
        f"<section id='layers'><h2>Per layer</h2>{layers}</section>",
    ]
    if len(seeds):
        sections.append(
            f"<section id='seeds'><h2>Over seeds</h2>{table_html(seeds)}</section>"
        )
    return page_of(f"{len(runs)} runs compared", sections, {"compare": data})


def comparison_data(
    runs: Sequence[StoredRun], whole: Sequence[WholeRun]
) -> dict[str, Any]:
    """Return what the page's script draws.

    Returns:
        ``runs``: per run its name, number, style, the number of its ``yardstick``
        (equal: z may be compared), final numbers, curves, last spectra and
        trajectories of its primary grouping.
    """
    known = list(dict.fromkeys((run.probe, *run.yardstick) for run in runs))
    names = [f"#{number}" for number in range(1, len(runs) + 1)]
    styles = group_styles({"runs": names})["runs"]
    found = []
    for number, (run, records) in enumerate(zip(runs, whole, strict=True)):
        one = {
            "name": run.name,
            "number": names[number],
            "style": styles[names[number]],
            "probe": run.probe[:8],
            "yardstick": known.index((run.probe, *run.yardstick)),
            "final": run.final,
            "headline": measures_of(records.config).headline,
            "curves": curves(
                records.metrics,
                [
                    f"val/{measures_of(records.config).headline}",
                    "val/loss",
                    *(f"divergence/{q}" for q in QUANTITIES),
                ],
            ),
        }
        found.append(one | (_drawn(records) if number < SPECTRA_RUNS else {}))
    return {
        "runs": found,
        "yardsticks": [one["yardstick"] for one in found],
        "words": WORDS,
        "summary": SUMMARIES["effective_rank"],
        "pooled": POOLED,
    }


def _drawn(run: WholeRun) -> dict[str, Any]:
    """Return spectra, trajectories and maps of the primary grouping."""
    groupings = (run.config.get("comparison") or {}).get("groupings") or ()
    frame = frame_of(run.spectra, run.divergences, groupings)
    primary = next(iter(frame.groupings), "")
    last = run.spectra[
        run.spectra["epoch"] == run.spectra.groupby("source")["epoch"].transform("max")
    ]
    maps, _ = divergence_maps(
        run.divergences, run.tables.get("epochs", pd.DataFrame()), frame
    )
    return {
        "layers": frame.layers,
        "groups": frame.groupings.get(primary, ()),
        "spectra": _own(spectra_cells(last, frame), primary),
        "trajectories": [
            {key: cell[key] for key in KEPT}
            for cell in _own(trajectory_cells(run.spectra, frame), primary)
            if "effective_rank" in cell
        ],
        "maps": [
            {key: one[key] for key in KEPT_MAPS}
            for one in maps
            if one["source"] == "probe" and one["grouping"] == primary
        ],
    }


def _own(cells: Sequence[Mapping[str, Any]], primary: str) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if cell["grouping"] == primary]


def _differences(runs: Sequence[StoredRun]) -> str:
    """Return all settings that differ, one row a setting, one column a run."""
    settings = [flatten(run.config.model_dump(mode="json")) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [
        [name, *(str(one.get(name, "–")) for one in settings)]
        for name in names
        if len({str(one.get(name)) for one in settings}) > 1
    ]
    if not rows:
        return "<p class='note'>The settings of these runs do not differ.</p>"
    heads = [f"#{number} {run.name}" for number, run in enumerate(runs, start=1)]
    frame = pd.DataFrame(rows, columns=["setting", *heads])
    return f"<h3>Settings that differ</h3>{table_html(frame)}"


def _plots(name: str, title: str, plots: str) -> str:
    places = "".join(
        f'<div class="plot" id="plot-{plot}"></div>' for plot in plots.split()
    )
    return (
        f'<section id="{name}"><h2>{title}</h2><div class="plots">{places}</div>'
        f'<p class="note" id="{name}-note"></p></section>'
    )
