"""The page of one run: what it found, in sections, for anyone with a browser."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mlops.records import POOLED
from spectral_mlops.report.colours import POOLED_COLOUR, group_styles
from spectral_mlops.report.html_data import (
    SUMMARIES,
    Frame,
    divergence_maps,
    frame_of,
    spectra_cells,
    trajectory_cells,
)
from spectral_mlops.report.html_page import page_of, write_page
from spectral_mlops.report.html_people import (
    connectomes,
    curves,
    influence_maps,
    inlined,
    people_of,
    performance,
)
from spectral_mlops.report.html_tables import number, settings_html, tables_section
from spectral_mlops.report.stored import StoredRun
from spectral_mlops.report.trends import trend_cells
from spectral_mlops.tracking.measures import WORDS, measures_of

LEVEL = 0.05
PICTURES = 2_000_000
"""At most so many bytes of pictures are in a page."""
READING = (
    "Training batches describe: the training itself treats groups differently, so "
    "they have no p where the groups are the target. The probe infers: people who were "
    "held out, labels moved between subjects within strata. Everything depends on the "
    "size of the groups; levels are never compared between groups without relabelling. "
    "Epochs count from 0; −1 is the untrained network."
)


def write_report(run: StoredRun, out: Path) -> Path:
    """Write a run's page.

    Args:
        run: The run, read back (`read_stored`).
        out: The file; its folder is made, an older page is replaced.

    Returns:
        The file.
    """
    return write_page(report_page(run), out)


def report_page(run: StoredRun) -> str:
    """Return a run's page, a few megabytes of HTML, most of them Plotly."""
    frame = frame_of(run.spectra, run.divergences, _groupings(run))
    data = report_data(run, frame)
    sections = [
        _head(run),
        '<nav class="choose" id="choose"></nav>',
        _section("spectra", "Spectra", "spectra ridge", run.spectra.empty),
        _section(
            "trajectories",
            "Over training",
            "rank norm rank-apart norm-apart apart"
            if data["trends"]
            else "rank norm apart",
            run.spectra.empty,
        ),
        _section(
            "maps",
            "Where and when groups differ",
            "map-train map-probe",
            not data["maps"],
        ),
        _section(
            "performance", "Performance per group", "curves people", run.metrics.empty
        ),
        _where(data, run),
        _section(
            "influence", "Who learns from whom", "influence", not data["influence"]
        ),
        f'<section id="tables"><h2>Tables</h2>{tables_section(run.tables)}</section>',
        _section("cost", "Cost", "seconds counts", not data["cost"]),
        '<section id="settings"><h2>Settings</h2><details><summary>all settings'
        f"</summary>{settings_html(run.config)}</details></section>",
    ]
    return page_of(run.name, sections, {"report": data})


def report_data(run: StoredRun, frame: Frame) -> dict[str, Any]:
    """Return what the page's script draws."""
    maps, notes = divergence_maps(
        run.divergences, run.tables.get("epochs", pd.DataFrame()), frame
    )
    trends, left_out = trend_cells(run.tables.get("trends", pd.DataFrame()), frame)
    primary = next(iter(frame.groupings), "")
    where, measures = connectomes(run.maps), measures_of(run.config)
    return {
        "layers": frame.layers,
        "quantities": frame.quantities,
        "groupings": frame.groupings,
        "primary": primary,
        "quantity": _primary_quantity(run),
        "pooled": POOLED,
        "pooledColour": POOLED_COLOUR,
        "styles": group_styles(frame.groupings),
        "level": LEVEL,
        "summaries": SUMMARIES,
        "notes": [*frame.notes, *notes, *left_out],
        "spectra": spectra_cells(run.spectra, frame),
        "trajectories": trajectory_cells(run.spectra, frame),
        "trends": trends,
        "maps": maps,
        "performance": performance(
            run.metrics, frame.groupings.get(primary, ()), measures
        ),
        "people": people_of(run.tables.get("groups"), measures),
        "influence": influence_maps(run.influence, frame),
        "where": where,
        "cost": curves(run.metrics, ["cost/"]),
    }


def _head(run: StoredRun) -> str:
    """Return the verdict, the primary outcome and how to read the page."""
    lines = [line for line in run.verdict.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("Verdict:")]
    rest = [line for line in lines if not line.startswith("Verdict:")]
    parts = [f"<p class='verdict'>{escape(line)}</p>" for line in said]
    parts += [f"<p>{escape(line)}</p>" for line in rest]
    if not lines:
        parts.append(
            "<p class='note'>This run says no verdict: it has no probe, no p, or was "
            "not finished.</p>"
        )
    cards = "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for name, value in _cards(run)
    )
    reading = f"<p class='note reading'>{escape(READING)}</p>"
    parts.append(f"<div class='cards'>{cards}</div>{reading}")
    return f"<section id='head'>{''.join(parts)}</section>"


def _cards(run: StoredRun) -> list[tuple[str, str]]:
    """Return the few numbers at the top: what, and how much."""
    quantity = _primary_quantity(run)
    z, p = f"final/divergence_{quantity}", "final/primary_p"
    wanted = [
        (z, f"z, primary outcome: {quantity} on the probe", "+.2f"),
        (p, "p of the primary outcome", ".3f"),
        *(
            card
            for name in measures_of(run.config).judged
            for card in (
                (
                    f"final/{name}",
                    f"{WORDS[name]}, validation people (who chose the checkpoints)",
                    ".3f",
                ),
                (f"final/probe_{name}", f"{WORDS[name]} on the probe", ".3f"),
            )
        ),
        ("final/additivity", "largest relative gap Σ groups − gradient", ".1e"),
    ]
    return [
        (words, number(run.final[key], form))
        for key, words, form in wanted
        if key in run.final
    ]


def _primary_quantity(run: StoredRun) -> str:
    """Return the declared quantity, or the one that counts if nobody said."""
    comparison = run.config.get("comparison") or {}
    declared = comparison.get("primary_quantity")
    watched = list((run.config.get("spectra") or {}).get("quantities") or [])
    if not declared and watched and "activation" not in watched:
        return str(watched[0])
    return str(declared or "activation")


def _groupings(run: StoredRun) -> Sequence[str]:
    found: Sequence[str] = (run.config.get("comparison") or {}).get("groupings") or ()
    return found


def _section(name: str, title: str, plots: str, empty: bool) -> str:
    """Return a section with a place for each of its plots, or why it has none."""
    if empty:
        body = "<p class='note'>This run has no records of this.</p>"
    else:
        places = "".join(
            f'<div class="plot" id="plot-{plot}"></div>' for plot in plots.split()
        )
        body = (
            f'<div class="bar" id="{name}-bar"></div><div class="plots">{places}</div>'
            f'<p class="note" id="{name}-note"></p>'
        )
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>'


def _where(data: dict[str, Any], run: StoredRun) -> str:
    """Return the section of directions in input space: matrices, or pictures."""
    if data["where"]:
        return _section("where", "Where in the brain", "connectome", False)
    if not run.pictures:
        return _section("where", "Where in the brain", "", True)
    kept: dict[str, bytes] = {}
    for name, picture in run.pictures.items():
        if sum(map(len, kept.values())) + len(picture) <= PICTURES:
            kept[name] = picture
    pictures = "".join(
        f'<figure><img alt="{escape(name)}" src="{address}"></figure>'
        for name, address in inlined(kept).items()
    )
    if len(kept) < len(run.pictures):
        pictures += (
            "<p class='note'>Larger pictures lie in the run's folder directions/.</p>"
        )
    return f'<section id="where"><h2>Where in the brain</h2>{pictures}</section>'
