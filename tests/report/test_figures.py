"""Figures for papers: letters stay letters, the same bytes, nothing breaks them."""

import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.records import EpochRecord
from spectral_mlops.report.figures import FIGURES, FORMATS, draw_figure
from spectral_mlops.report.input_maps import InputMaps
from spectral_mlops.report.stored import StoredRun
from spectral_mlops.tracking import MemoryTracker
from tests.report.test_trends import table_of
from tests.tracking.factory import Epoch, divergence, spectrum

HOSTILE = ["$x^2$", "</text><script>", "a\nb", "患者", "x" * 300, "_^{", "%s \\frac"]
QUANTITIES = ("gradient", "activation", "adjoint")
DRAWN_OF_ANY = {*FIGURES} - {"directions", "directions-activation", "trends"}
"""Figures that ask for neither directions nor a probe."""


def stored_of(
    epochs=3, groups=("control", "patient"), layers=("hidden_1", "out"), probe=True
):
    """A run as it is read back; one layer is of rank 1, one spectrum not finite."""
    tracker = MemoryTracker()
    for epoch in range(epochs):
        shown = [
            spectrum(
                layer,
                quantity,
                group,
                grouping="diagnosis",
                values=(1.0,) if layer == "out" else None,
                shape=(7, 4),
                seed=epoch + 5 * fold,
                status="non-finite" if (epoch, fold) == (1, 1) else "ok",
            )
            for fold in (0, 1)
            for layer in layers
            for quantity in QUANTITIES
            for group in groups
        ]
        half = len(shown) // 2
        nan = {"out": np.nan}
        rows = tuple(
            divergence(
                layer, quantity, nan.get(layer, 0.1), z=nan.get(layer, 2.5),
                pair=(groups[0], groups[-1]),
            )
            for layer in layers
            for quantity in QUANTITIES
        )  # fmt: skip
        records = [
            EpochRecord(epoch, "train", tuple(shown[k * half :][:half]), rows, k)
            for k in (0, 1)
        ]
        if probe:
            records.append(EpochRecord(epoch, "probe", (), rows))
        curves = {"val/loss": 1 / (1 + epoch), "val/auc": 0.5 + 0.1 * epoch}
        tracker.log(Epoch(records), curves)
        tracker.log_metrics(
            {f"val_loss/{g}": 1.0 for g in ("control", "patient")}, epoch
        )
    metrics = pd.DataFrame(tracker.history, columns=["key", "step", "value"])
    joint = pd.DataFrame(
        {
            "quantity": "gradient",
            "group_a": groups[0],
            "group_b": groups[-1],
            "layer": layers[0],
            "epoch": range(epochs),
            "t": 3.0,
            "p_max": [0.01] + [0.5] * (epochs - 1),
            "cluster_mass": np.nan,
            "cluster_p": np.nan,
            "reason": "",
        }
    )
    return StoredRun(
        name="one",
        config={"comparison": {"groupings": ["diagnosis"]}},
        spectra=tracker.to_frame("spectra"),
        divergences=tracker.to_frame("divergences"),
        metrics=metrics.assign(time=0),
        final={},
        tables={"epochs": joint, "trends": trends_of(layers, groups, epochs)}
        if probe
        else {},
        verdict="",
        directions=[],
        influence=[],
        maps=maps_of(groups),
    )


def trends_of(layers, groups, epochs):
    """One pair apart at the first epoch; the last layer has norms alone."""
    table = table_of((groups[0], groups[-1]), layers, range(epochs))
    return table.assign(p_max=np.where(table.epoch == 0, 0.01, 0.5))


def maps_of(groups):
    random = np.random.default_rng(0)
    square = random.normal(size=(2, 6, 6))
    stack = square + square.transpose(0, 2, 1)
    stack[:, np.arange(6), np.arange(6)] = np.nan
    return InputMaps(
        {q: dict.fromkeys(groups, stack) for q in ("gradient", "activation")},
        {q: dict.fromkeys(groups, np.array([0.5, 0.2])) for q in QUANTITIES},
        dict.fromkeys(QUANTITIES, "Leading directions"),
        ("SC1", "SC2", "AU1", "AU2", "VI1", "VI2"),
    )


@pytest.fixture(scope="module")
def stored():
    return stored_of()


def words_of(path: Path) -> list[str]:
    """Return the texts of an SVG, read as XML."""
    tree = ElementTree.parse(path)
    found = tree.iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in found]


@pytest.mark.parametrize("name", list(FIGURES))
def test_letters_stay_letters_and_bytes_the_same(name, stored, tmp_path):
    svg = draw_figure(stored, name, tmp_path / "a.svg", "svg", 90)
    again = draw_figure(stored, name, tmp_path / "b.svg", "svg", 90)
    assert svg.read_bytes() == again.read_bytes()
    words = " ".join(words_of(svg))
    assert "patient" in words
    if not name.startswith("direction"):
        assert "epoch" in words


@pytest.mark.parametrize("name", ["erank", "divergence", "directions"])
def test_a_pdf_has_its_fonts_and_width(name, stored, tmp_path):
    paths = [draw_figure(stored, name, tmp_path / f"{n}.pdf", "pdf", 90) for n in "ab"]
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    assert b"/FontFile2" in content  # TrueType, embedded
    assert b"/Type3" not in content
    box = re.search(rb"/MediaBox \[ 0 0 ([0-9.]+) ([0-9.]+) \]", content)
    assert box is not None
    assert float(box[1]) == pytest.approx(90 / 25.4 * 72, abs=0.01)
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    drawn = b"".join(zlib.decompress(s) for s in streams if s[:1] == b"x")
    assert b" Tf" in drawn  # set as text, not as outlines
    assert b"Tj" in drawn or b"TJ" in drawn


def test_a_png_has_300_dots_an_inch(stored, tmp_path):
    path = draw_figure(stored, "erank", tmp_path / "new" / "a.png", "png", 120)
    with Image.open(path) as picture:
        assert picture.width == pytest.approx(120 / 25.4 * 300, abs=1)


@pytest.mark.parametrize("name", list(FIGURES))
def test_hostile_names_are_drawn_as_they_are(name, tmp_path):
    groups = tuple(HOSTILE)
    strange = stored_of(epochs=2, groups=groups, layers=("$h$ </svg>", "out"))
    path = draw_figure(strange, name, tmp_path / "a.svg", "svg", 180)
    words = words_of(path)
    if name in ("spectra", "erank", "directions"):
        assert any("$x^2$" in text for text in words)
        assert any("</text><script>" in text for text in words)
    assert all(len(text) < 200 for text in words)
    draw_figure(strange, name, tmp_path / "a.pdf")


@pytest.mark.parametrize(
    "name", [n for n in FIGURES if "directions" not in n and n != "trends"]
)
def test_one_epoch_without_a_probe(name, tmp_path):
    little = stored_of(epochs=1, probe=False)
    draw_figure(little, name, tmp_path / "a.pdf", "pdf", 180)


@pytest.mark.parametrize("width", [90, 180])
def test_twenty_groups_and_forty_layers(width, tmp_path):
    groups = tuple(f"site {n}" for n in range(20))
    layers = tuple(f"encoder.layers.{n}.linear1" for n in range(40))
    many = stored_of(epochs=2, groups=groups, layers=layers)
    for name in ("erank", "divergence"):
        path = draw_figure(many, name, tmp_path / f"{name}.svg", "svg", width)
        cut = [text for text in words_of(path) if text.startswith("…")]
        assert any(text.endswith("layers.39.linear1") for text in cut)


def test_directions_over_voxels(stored, tmp_path):
    volume = np.random.default_rng(1).normal(size=(2, 5, 6, 4))
    volume[:, 0] = np.nan
    maps = replace(
        stored.maps,
        vectors={"gradient": {"patient": volume, "all": volume}},
        affine=np.diag([4.0, 4.0, 4.0, 1.0]),
        networks=(),
    )
    path = tmp_path / "a.svg"
    draw_figure(replace(stored, maps=maps), "directions", path, "svg", 90)
    words = " ".join(words_of(path))
    assert "mm" in words
    assert "everyone" in words


def test_effective_ranks_are_those_of_the_records(stored):
    """The curve's points, against means formed by a slow loop over the frame."""
    from spectral_mlops.report.figure_style import Page

    figure = FIGURES.get("erank")(stored, Page(180.0))
    frame = stored.spectra[stored.spectra["status"] == "ok"]
    panel = figure.axes[0]
    for line, group in zip(panel.lines, ("control", "patient"), strict=True):
        for epoch, value in zip(line.get_xdata(), line.get_ydata(), strict=True):
            folds = []
            for fold in (0, 1):
                ranks = [
                    row.effective_rank
                    for row in frame.itertuples()
                    if (row.layer, row.quantity, row.group, row.epoch, row.fold)
                    == ("hidden_1", "gradient", group, epoch, fold)
                ]
                folds += [sum(ranks) / len(ranks)] if ranks else []
            assert value == pytest.approx(sum(folds) / len(folds), rel=1e-3)
    stars = [text for text in panel.texts if text.get_text() == "*"]
    assert [star.xy[0] for star in stars] == [0]


def test_ranks_and_norms_apart_are_those_of_the_table(stored):
    from spectral_mlops.report.figure_style import Page

    figure = FIGURES.get("trends")(stored, Page(180.0))
    panels = np.array(figure.axes).reshape(2, 4)
    rank, norm = panels[0, 0], panels[0, 3]
    assert norm.get_title() == "norm, gradient"
    assert list(rank.lines[0].get_ydata()) == [1.5] * 3
    assert norm.lines[0].get_ydata() == pytest.approx([np.exp(0.75)] * 3, rel=1e-3)
    (band,) = rank.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.5, 2.0)
    faces = [line.get_markerfacecolor() for line in rank.lines[1:]]
    assert faces == [rank.lines[0].get_color(), "white", "white"]
    assert [len(panels[1, i].lines) > 0 for i in range(4)] == [False] * 3 + [True]
    lacking = replace(stored, tables={})
    with pytest.raises(InputError, match="no table trends"):
        FIGURES.get("trends")(lacking, Page(180.0))


def test_what_cannot_be_drawn_is_said(stored, tmp_path):
    path = tmp_path / "a.pdf"
    with pytest.raises(UnknownNameError, match=r"spectra.*Did you mean 'erank'"):
        draw_figure(stored, "eranks", path)
    with pytest.raises(InputError, match="choose one of pdf, svg, png"):
        draw_figure(stored, "erank", path, "eps")
    with pytest.raises(InputError, match="40 to 400 mm"):
        draw_figure(stored, "erank", path, "pdf", 3)
    bare = StoredRun(
        "bare", {}, stored.spectra[:0], stored.divergences[:0], stored.metrics[:0],
        {}, {}, "", [], [],
    )  # fmt: skip
    for name in FIGURES:
        with pytest.raises(InputError, match="Run bare"):
            draw_figure(bare, name, path)
    assert not path.exists()


def test_the_command_names_figures_and_draws_one(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from spectral_mlops import cli
    from spectral_mlops.report import stored as reading

    run = CliRunner().invoke(cli.app, ["report", ".", "--figure", "list"])
    assert run.output.split() == list(FIGURES)
    monkeypatch.setattr(reading, "read_stored", lambda run, uri: stored_of())
    (tmp_path / "run").mkdir()
    run = CliRunner().invoke(
        cli.app, ["report", str(tmp_path / "run"), "--figure", "erank", "--width", "90"]
    )
    assert run.exit_code == 0
    assert (tmp_path / "run" / "figures" / "erank.pdf").read_bytes()[:5] == b"%PDF-"
    for ending in FORMATS:
        out = tmp_path / f"own.{ending}"
        arguments = ["report", str(tmp_path / "run"), "--figure", "performance"]
        run = CliRunner().invoke(cli.app, [*arguments, "-o", str(out)])
        assert out.exists()
    assert b"<svg" in (tmp_path / "own.svg").read_bytes()


def test_an_unknown_figure_is_one_sentence(tmp_path):
    words = ["-m", "spectral_mlops.cli", "report", str(tmp_path), "--figure", "ridge"]
    shown = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "Unknown figure 'ridge'" in shown.stderr
    assert "Traceback" not in shown.stderr
