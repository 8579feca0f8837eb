"""Records as immutable parquet files, and back, exactly.

``spectra/part-00000.parquet`` has one row per spectrum, with each summary as a
column; ``divergences/part-00000.parquet`` one row per pair of groups. A part is
written once. Not-a-number stays; a summary that a spectrum lacks is null.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.records import Divergence, EpochRecord, Spectrum

Kind = Literal["spectra", "divergences"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCHEMA_VERSION = "1"

_TEXT, _FLOAT, _INT = pa.string(), pa.float64(), pa.int64()
_RECORD = {"epoch": _INT, "fold": _INT, "seed": _INT, "source": _TEXT}
_SPECTRA = _RECORD | {
    "step": _INT,
    "rank": _INT,
    "layer": _TEXT,
    "quantity": _TEXT,
    "grouping": _TEXT,
    "group": _TEXT,
    "samples": _INT,
    "rows": _INT,
    "batch_samples": _INT,
    "subjects": _INT,
    "loss_scale": _FLOAT,
    "d_in": _INT,
    "d_out": _INT,
    "route": _TEXT,
    "floor": _FLOAT,
    "below_floor": _INT,
    "bound": _FLOAT,
    "status": _TEXT,
    "values": pa.list_(_FLOAT),
}
_TYPES = {"float": _FLOAT, "int": _INT, float: _FLOAT, int: _INT}
_DIVERGENCES = _RECORD | {
    item.name: _TYPES.get(item.type, _TEXT)
    for item in fields(Divergence)
    if item.name != "source"  # the record's own, which stands there already
}


def table_of(records: Iterable[EpochRecord], kind: Kind) -> pa.Table:
    """Return all spectra or divergences of the records as one table."""
    rows = [(record, row) for record in records for row in getattr(record, kind)]
    columns = _SPECTRA if kind == "spectra" else _DIVERGENCES
    summaries: list[str] = []
    if kind == "spectra":
        summaries = list(dict.fromkeys(name for _, s in rows for name in s.summaries))
    schema = pa.schema(
        [*columns.items(), *((name, _FLOAT) for name in summaries)],
        metadata={
            "spectral.schema_version": SCHEMA_VERSION,
            "spectral.summaries": json.dumps(summaries),
        },
    )
    own = [_column(rows, name, columns[name]) for name in columns]
    maps = [row.summaries for _, row in rows] if summaries else []
    more = [pa.array([m.get(name) for m in maps], type=_FLOAT) for name in summaries]
    return pa.Table.from_arrays(own + more, schema=schema)


def _column(
    rows: list[tuple[EpochRecord, Any]], name: str, kind: pa.DataType
) -> pa.Array:
    """Return one column."""
    if name in _RECORD:
        return pa.array([getattr(record, name) for record, _ in rows], type=kind)
    if name in ("d_in", "d_out"):
        return pa.array([row.shape[name == "d_out"] for _, row in rows], type=kind)
    values = [getattr(row, name) for _, row in rows]
    return _lists(values) if name == "values" else pa.array(values, type=kind)


def _lists(arrays: list[NDArray[np.float64]]) -> pa.Array:
    """Return vectors as one column; an array of each would take ten times as long."""
    ends = np.cumsum([0, *(len(one) for one in arrays)], dtype=np.int32)
    flat = np.concatenate([*arrays, np.empty(0)])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat, type=_FLOAT))


def read_shards(folder: Path, kind: Kind) -> pa.Table:
    """Read all parts of a kind, in order, as one table.

    Args:
        folder: Holds ``spectra/`` and ``divergences/``.
        kind: Which of the two.

    Returns:
        The rows; none if there is no part of this kind.

    Raises:
        InputError: If a part cannot be read, or has another schema version.
    """
    return read_tables(sorted((folder / kind).glob("part-*.parquet")), kind)


def read_tables(paths: Iterable[Path], kind: Kind) -> pa.Table:
    """Read files of one kind, in the order given, as one table.

    Raises:
        InputError: If one cannot be read, or has another schema version.
    """
    tables = [table_of([], kind)]
    summaries: list[str] = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"Cannot read {path}: {error}") from error
        metadata = table.schema.metadata or {}
        version = metadata.get(b"spectral.schema_version", b"none").decode()
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {version}, and this program reads "
                f"version {SCHEMA_VERSION}: read it with the version that wrote it."
            )
        summaries += json.loads(metadata[b"spectral.summaries"])
        tables.append(table)
    joined = pa.concat_tables(tables, promote_options="default")
    unique = json.dumps(list(dict.fromkeys(summaries)))
    return joined.replace_schema_metadata(
        (joined.schema.metadata or {}) | {b"spectral.summaries": unique.encode()}
    )


def records_of(spectra: pa.Table, divergences: pa.Table) -> list[EpochRecord]:
    """Return the records that two tables were made of, in order of appearance.

    Records of one epoch, fold, seed and source that were logged apart come back as
    one.
    """
    summaries = json.loads(spectra.schema.metadata[b"spectral.summaries"])
    found: dict[
        tuple[tuple[int, int, int], str], tuple[list[Spectrum], list[Divergence]]
    ]
    found = defaultdict(lambda: ([], []))
    for row in _rows(spectra):
        key = _network(row), row.pop("source")
        named = {name: row.pop(name) for name in summaries}
        named = {name: value for name, value in named.items() if value is not None}
        shape = row.pop("d_in"), row.pop("d_out")
        # null in parts of before there were these
        row |= {"bound": row["bound"] or 0.0, "rank": row["rank"] or 0}
        found[key][0].append(Spectrum(shape=shape, summaries=named, **row))
    for row in _rows(divergences):
        key = _network(row), row["source"]
        found[key][1].append(Divergence(**row))
    return [
        EpochRecord(epoch, source, tuple(spectra), tuple(rows), fold, seed)
        for ((epoch, fold, seed), source), (spectra, rows) in found.items()
    ]


def _network(row: dict[str, Any]) -> tuple[int, int, int]:
    """Take epoch, fold and seed out of a row; parts of before seeds have none."""
    return row.pop("epoch"), row.pop("fold"), row.pop("seed") or 0


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows as plain values, ``values`` as arrays."""
    columns = {name: table[name].to_pylist() for name in table.column_names}
    if "values" in columns:
        scalars = table["values"]
        columns["values"] = [v.values.to_numpy(zero_copy_only=False) for v in scalars]
    return [
        {name: column[place] for name, column in columns.items()}
        for place in range(table.num_rows)
    ]
