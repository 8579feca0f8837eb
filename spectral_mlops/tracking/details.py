"""Directions, influence and nulls as one parquet file each, and back, exactly.

Beside the spectra (`shards`): few rows of long vectors, written once at the end of a
run. Reading executes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.records import Direction, Influence
from spectral_mlops.tracking.shards import SCHEMA_VERSION

_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    "values": pa.list_(pa.float64()),
    "vector": pa.list_(pa.float32()),
    "shape": pa.list_(pa.int64()),
}
_VERSION = b"spectral.schema_version"


def write_directions(records: Iterable[Direction], path: Path) -> Path:
    """Write one row a direction; ``vector`` is a list of float32.

    Raises:
        InputError: If the file is there already.
    """
    return _write(list(records), Direction, path)


def read_directions(path: Path) -> list[Direction]:
    """Read what `write_directions` wrote.

    Raises:
        InputError: If the file cannot be read, or is something else.
    """
    table = _read(path, Direction)
    vectors = table["vector"]
    rows = table.drop_columns(["vector"]).to_pylist()
    return [
        Direction(
            **row | {"shape": tuple(row["shape"])},
            vector=vector.values.to_numpy(zero_copy_only=False),
        )
        for row, vector in zip(rows, vectors, strict=True)
    ]


def write_influence(records: Iterable[Influence], path: Path) -> Path:
    """Write one row per epoch, fold, layer and pair of groups.

    Raises:
        InputError: If the file is there already.
    """
    return _write(list(records), Influence, path)


def read_influence(path: Path) -> list[Influence]:
    """Read what `write_influence` wrote.

    Raises:
        InputError: If the file cannot be read, or is something else.
    """
    return [Influence(**row) for row in _read(path, Influence).to_pylist()]


def write_null(comparisons: Iterable[Comparison], path: Path) -> Path:
    """Write one row per layer, quantity and pair of groups.

    ``values`` is the statistic under the observed labels and then under every
    relabelling, so that z and p can be formed anew, of several runs together.

    Raises:
        InputError: If the file is there already.
    """
    return _write(list(comparisons), Comparison, path)


def read_null(path: Path) -> list[Comparison]:
    """Read what `write_null` wrote.

    Raises:
        InputError: If the file cannot be read, or is something else.
    """
    rows = _read(path, Comparison).to_pylist()
    return [Comparison(**row | {"values": np.array(row["values"])}) for row in rows]


def _write(records: Sequence[Any], kind: type, path: Path) -> Path:
    if path.exists():
        raise InputError(f"{path} is there already: it is written once.")
    schema = _schema(kind)
    columns = [
        pa.array([getattr(record, field.name) for record in records], type=field.type)
        for field in schema
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    pq.write_table(table, path, compression="zstd")
    return path


def _read(path: Path, kind: type) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"Cannot read {path}: {error}") from error
    version = (table.schema.metadata or {}).get(_VERSION, b"none").decode()
    if "seed" in _schema(kind).names and "seed" not in table.column_names:
        # written before runs had several: the first is all there was
        table = table.append_column("seed", pa.array([0] * len(table), pa.int64()))
    if version != SCHEMA_VERSION or table.column_names != _schema(kind).names:
        raise InputError(
            f"{path} (schema version {version}) is no table of {kind.__name__} records "
            f"of version {SCHEMA_VERSION}: read it with the version that wrote it."
        )
    return table


def _schema(kind: type) -> pa.Schema:
    return pa.schema(
        [
            (item.name, _TYPES.get(item.name, _TYPES.get(item.type, pa.string())))
            for item in fields(kind)
        ],
        metadata={_VERSION: SCHEMA_VERSION.encode()},
    )
