import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from spectral_mlops.report.runs_console import show_runs
from spectral_mlops.report.runs_effects import effects_note, effects_table
from tests.report.test_runs_joint import stored


def effects(effect, m=9, **changes):
    known = {
        "quantity": ["adjoint", "adjoint", "gradient"],
        "layer": ["l0", "out", "l0"],
        "group_a": ["a"] * 3,
        "group_b": ["b"] * 3,
        "effect": [effect, np.nan, 9.9],
        "low": [effect - 0.002, np.nan, 9.8],
        "high": [effect + 0.003, np.nan, 10.0],
        "m": [m] * 3,
    }
    return pd.DataFrame(known | changes)


def run(seed, table=None):
    one = stored(seed, [])
    return one if table is None else type(one)(**vars(one) | {"effects": table})


def test_effects_of_the_primary_quantity_stand_side_by_side():
    runs = [run(0, effects(0.001)), run(1), run(2, effects(0.004))]
    table = effects_table(runs)
    assert table.columns.tolist() == [
        "layer", "quantity", "pair",
        "#1 effect ×10³", "#1 95 %", "#3 effect ×10³", "#3 95 %",
    ]  # fmt: skip
    (row,) = table.to_dict("records")
    assert (row["layer"], row["pair"], row["#1 95 %"]) == (
        "l0",
        "a – b",
        "-1.00 … 4.00",
    )
    assert row["#3 effect ×10³"] == pytest.approx(4.0)
    assert effects_note(runs).endswith("no confidence interval; m = 9.")
    assert effects_table([run(1)]).empty
    assert effects_note([run(1)]) == ""


def test_effects_at_different_sizes_are_not_compared():
    said = effects_note([run(0, effects(0.001)), run(1), run(2, effects(0.1, m=12))])
    assert said.endswith(
        "m differs (#1: 9, #3: 12), so they may not be compared: set "
        "comparison.effect_people."
    )


def test_effects_are_printed():
    console = Console(width=120, file=io.StringIO())
    show_runs(console, [run(0, effects(0.001)), run(2, effects(0.004))])
    out = console.file.getvalue()
    assert "Effect sizes of the primary quantity" in out
    assert "m = 9." in " ".join(out.split())
