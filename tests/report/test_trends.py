"""What a page draws of ranks and norms apart."""

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.report import trends
from spectral_mlops.report.html import report_page
from spectral_mlops.report.html_data import frame_of
from spectral_mlops.report.trends import trend_cells
from tests.report.pages import stored


def table_of(groups=("control", "patient"), layers=("hidden.0", "out"), epochs=(0, 2)):
    """Far apart at the last epoch of the first layer; the last layer has no rank."""
    kinds = [("effective_rank_difference", "gradient"),
             ("effective_rank_difference", "activation"),
             ("unbiased_norm_ratio", "gradient")]  # fmt: skip
    rows = [
        {
            "epoch": epoch, "statistic": statistic, "quantity": quantity,
            "layer": layer, "group_a": groups[0], "group_b": groups[1],
            "value": 1.5, "null_mean": 1.0, "null_sd": 0.2, "null_05": 0.5,
            "null_95": 2.0, "z": 2.5, "p": 0.01,
            "p_max": 0.04 if (epoch, layer) == (epochs[-1], layers[0]) else 0.2,
            "reason": "",
        }
        for epoch in epochs for layer in layers for statistic, quantity in kinds
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    gone = (table.layer == layers[-1]) & table.statistic.str.startswith("effective")
    table.loc[gone, "value"] = np.nan
    table.loc[gone, "reason"] = "degenerate"
    return table


def frame():
    run = stored()
    return frame_of(run.spectra, run.divergences)


def test_a_cell_is_one_place_and_norms_are_ratios():
    cells, notes = trend_cells(table_of(), frame())
    assert notes == []
    assert [(c["statistic"], c["quantity"], c["layer"]) for c in cells] == [
        ("effective_rank_difference", "gradient", "hidden.0"),
        ("effective_rank_difference", "activation", "hidden.0"),
        ("unbiased_norm_ratio", "gradient", "hidden.0"),
        ("unbiased_norm_ratio", "gradient", "out"),
    ]
    rank, _, norm, _ = cells
    assert rank["epochs"] == [0, 2]
    assert (rank["value"], rank["null_05"], rank["null_95"]) == (
        [1.5, 1.5], [0.5, 0.5], [2.0, 2.0]
    )  # fmt: skip
    assert rank["p_max"] == [0.2, 0.04]
    assert norm["value"] == pytest.approx([np.exp(0.75)] * 2, rel=1e-3)
    assert norm["null_95"] == pytest.approx([np.e] * 2, rel=1e-3)
    assert norm["z"] == [2.5, 2.5]


def test_layers_and_epochs_that_are_not_drawn_are_left_out():
    more = table_of(layers=("elsewhere", "hidden.0"), epochs=(0, 99))
    cells, _ = trend_cells(more, frame())
    assert {c["layer"] for c in cells} == {"hidden.0"}
    assert all(c["epochs"] == [0] for c in cells)


def test_nothing_recorded_is_nothing(monkeypatch):
    assert trend_cells(pd.DataFrame(), frame()) == ([], [])
    assert trend_cells(table_of()[:0], frame()) == ([], [])
    monkeypatch.setattr(trends, "MOST", 24)
    cells, (note,) = trend_cells(table_of(), frame())
    assert len(cells) == 2
    assert note.startswith("Drawn are 2 of 4")


def test_a_page_has_the_plots_where_there_are_any():
    with_them = report_page(stored(tables={"trends": table_of()}))
    assert 'id="plot-rank-apart"' in with_them
    assert "absolute log ratio of unbiased squares" in with_them
    assert 'id="plot-rank-apart"' not in report_page(stored())
