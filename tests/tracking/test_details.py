import math
from dataclasses import fields

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.records import ALL_LAYERS, Direction, Influence
from spectral_mlops.tracking.details import (
    read_directions,
    read_influence,
    read_null,
    write_directions,
    write_influence,
    write_null,
)


def direction(index=0, width=6, shape=None, **changes):
    rng = np.random.default_rng(index)
    known = {
        "epoch": 2, "source": "probe", "fold": 1, "layer": "hidden_1",
        "quantity": "gradient", "grouping": "dx", "group": "ä b", "index": index,
        "value": 0.1 / 3, "share": 1 / 3,
        "vector": rng.normal(size=width).astype(np.float32),
        "shape": shape or (width,), "samples": 5,
    }  # fmt: skip
    return Direction(**known | changes)


def same(a, b):
    for name in Direction.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        if name == "vector":
            assert x.dtype == y.dtype
            assert np.array_equal(x, y, equal_nan=True)
        else:
            assert x == y or (x != x and y != y)
            assert type(x) is type(y)


def test_directions_come_back_exactly(tmp_path):
    lost = {"vector": np.full(6, np.nan, np.float32), "value": math.nan}
    given = [
        direction(0),
        direction(1, width=12, shape=(2, 3, 2)),
        direction(2, status="non-finite", **lost),
    ]
    path = write_directions(given, tmp_path / "directions.parquet")
    found = read_directions(path)
    assert len(found) == 3
    for a, b in zip(given, found, strict=True):
        same(a, b)
    assert found[1].pattern.shape == (2, 3, 2)
    assert list(pd.read_parquet(path)["index"]) == [0, 1, 2]  # any tool reads it


def test_influence_comes_back_exactly(tmp_path):
    given = [
        Influence(0, "train", 1, "hidden_1", "dx", "a", "b", -1 / 3, 0.1, 3e-4, 8),
        Influence(0, "train", 1, ALL_LAYERS, "dx", "a", "c", -0.0, 0.5, 3e-4, 7),
    ]
    path = write_influence(given, tmp_path / "influence.parquet")
    assert read_influence(path) == given
    assert read_influence(write_influence([], tmp_path / "none.parquet")) == []


def comparison(values, **changes):
    known = {
        "layer": "hidden_1", "quantity": "adjoint", "grouping": "dx",
        "group_a": "ä b", "group_b": "c", "divergence": "js",
        "values": np.array(values), "n_a": 5, "n_b": 7, "subjects_a": 4,
        "subjects_b": 6, "source": "probe", "null": "2 relabellings (d1)",
        "strata": "site", "valid_for": "held-out people", "testable": True,
        "reason": "",
    }  # fmt: skip
    return Comparison(**known | changes)


def test_nulls_come_back_exactly(tmp_path):
    given = [
        comparison([1 / 3, math.nan, 5e-324]),
        comparison([math.nan], null="none", testable=False, reason="rank 1"),
    ]
    path = write_null(given, tmp_path / "null.parquet")
    found = read_null(path)
    assert len(found) == 2
    for a, b in zip(given, found, strict=True):
        for item in fields(Comparison):
            x, y = getattr(a, item.name), getattr(b, item.name)
            if item.name == "values":
                assert x.dtype == y.dtype
                assert np.array_equal(x, y, equal_nan=True)
            else:
                assert (x, type(x)) == (y, type(y))
    assert read_null(write_null([], tmp_path / "none.parquet")) == []


def test_files_of_before_there_were_seeds_are_of_the_first(tmp_path):
    given = [Influence(0, "train", 1, "hidden", "dx", "a", "b", 0.5, 0.1, 3e-4, 8)]
    path = write_influence(given, tmp_path / "influence.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["seed"]), path)
    assert read_influence(path) == given


def test_a_file_is_written_once(tmp_path):
    path = write_influence([], tmp_path / "x.parquet")
    with pytest.raises(InputError, match="there already"):
        write_directions([], path)


def test_other_files_are_refused(tmp_path):
    path = write_influence([], tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no table of Direction"):
        read_directions(path)
    (tmp_path / "y.parquet").write_text("no")
    for wrong in (tmp_path / "y.parquet", tmp_path / "absent.parquet"):
        with pytest.raises(InputError, match="Cannot read"):
            read_influence(wrong)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "z.parquet")
    with pytest.raises(InputError, match="version none"):
        read_directions(tmp_path / "z.parquet")
