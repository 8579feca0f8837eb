from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking.load import load_run
from spectral_mlops.tracking.pending import build_part, pending_files, write_pending
from spectral_mlops.tracking.shards import read_shards, records_of
from tests.tracking.factory import divergence, record, same, spectrum


def write_part(records: list[EpochRecord], folder: Path, number: int) -> list[Path]:
    write_pending(folder, f"part-{number:05d}", 0, records)
    return build_part(folder, f"part-{number:05d}")


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    parts = [
        [record(0), record(0, fold=1), record(0, source="probe")],
        [replace(record(0), seed=1), replace(record(0, source="probe"), seed=2)],
        [record(1), EpochRecord(2, "train", ())],
        [EpochRecord(3, "train", (spectrum(values=(5e-324, 0.0)),))],
    ]
    for number, records in enumerate(parts):
        write_part(records, tmp_path, number)
    spectra, rows = (read_shards(tmp_path, kind) for kind in ("spectra", "divergences"))
    stored = records_of(spectra, rows)
    expected = [each for records in parts for each in records if each.spectra]
    assert len(stored) == len(expected)
    assert all(map(same, stored, expected))


def test_batches_of_several_ranks_stay_apart(tmp_path: Path) -> None:
    both = [spectrum(), replace(spectrum(seed=3), rank=1)]
    (path,) = write_part([EpochRecord(0, "train", tuple(both))], tmp_path, 0)
    tables = [read_shards(tmp_path, kind) for kind in ("spectra", "divergences")]
    assert [s.rank for s in records_of(*tables)[0].spectra] == [0, 1]
    pq.write_table(pq.read_table(path).drop_columns(["rank", "bound"]), path)
    (stored,) = records_of(read_shards(tmp_path, "spectra"), tables[1])
    assert [(s.rank, s.bound) for s in stored.spectra] == [(0, 0.0)] * 2


def test_parts_of_before_there_were_seeds_are_of_the_first(tmp_path: Path) -> None:
    write_part([record()], tmp_path, 0)
    for kind in ("spectra", "divergences"):
        path = tmp_path / kind / "part-00000.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["seed"]), path)
    write_part([replace(record(), seed=1)], tmp_path, 1)
    spectra, rows = (read_shards(tmp_path, kind) for kind in ("spectra", "divergences"))
    assert [one.seed for one in records_of(spectra, rows)] == [0, 1]
    frame = load_run(tmp_path)
    assert frame["seed"].dtype == "int64"
    assert set(frame["seed"]) == {0, 1}


def test_a_part_is_never_written_twice(tmp_path: Path) -> None:
    paths = write_part([record()], tmp_path, 0)
    before = [path.read_bytes() for path in paths]
    assert write_part([record(1)], tmp_path, 0) == paths
    assert [path.read_bytes() for path in paths] == before


def test_records_in_no_part_yet_are_read_too(tmp_path: Path) -> None:
    write_part([record(0)], tmp_path, 0)
    for number in (1, 2):
        write_pending(tmp_path, "part-00001", number, [record(number)])
    assert [path.name[:6] for path in pending_files(tmp_path, "spectra")] == [
        "000001",
        "000002",
    ]
    before = load_run(tmp_path)
    assert list(dict.fromkeys(before["epoch"])) == [0, 1, 2]
    # an interruption between a part's two files, and before what it was made of goes
    build_part(tmp_path, "part-00001")
    write_pending(tmp_path, "part-00001", 2, [record(2)])
    assert pending_files(tmp_path, "spectra") == []
    assert len(load_run(tmp_path)) == len(before)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    (path,) = write_part([EpochRecord(0, "train", (spectrum(),))], tmp_path, 0)
    table = pq.read_table(path)
    newer = {**table.schema.metadata, b"spectral.schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(InputError, match="schema version 99"):
        read_shards(tmp_path, "spectra")


def test_a_frame_says_which_epochs_have_a_null(tmp_path: Path) -> None:
    known = replace(divergence(), null="exact, all 70 relabellings (x) of 8 people")
    rows = {0: [divergence(), known], 1: [replace(known, null="none")], 4: [known]}
    for part, epoch in enumerate(rows):
        one = EpochRecord(epoch, "train", (spectrum(),), tuple(rows[epoch]))
        write_part([one], tmp_path, part)
    for kind in ("spectra", "divergences"):
        assert load_run(tmp_path, kind=kind).attrs["null_epochs"] == [0, 4]


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-00000\.parquet"):
        read_shards(tmp_path, "spectra")


def test_frame_from_a_folder(tmp_path: Path) -> None:
    write_part([EpochRecord(0, "train", (spectrum(shape=(3, 9)),))], tmp_path, 0)
    frame = load_run(tmp_path)
    assert np.shape(frame["values"].iloc[0]) == (3,)
    assert frame.loc[0, "d_out"] == 9
    assert load_run(tmp_path, kind="divergences").empty
    assert "p_max" in load_run(tmp_path, kind="divergences")
    with pytest.raises(InputError, match="spectra, divergences"):
        load_run(tmp_path, kind="norms")  # type: ignore[arg-type]


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no spectra"):
        load_run(tmp_path)


def test_columns_have_lasting_types(tmp_path: Path) -> None:
    write_part([record()], tmp_path, 0)
    schema = pq.read_schema(tmp_path / "spectra/part-00000.parquet")
    assert schema.field("values").type.value_type == pa.float64()
    assert schema.field("effective_rank").type == pa.float64()
    assert schema.field("epoch").type == pa.int64()
    rows = pq.read_schema(tmp_path / "divergences/part-00000.parquet")
    assert rows.field("n_a").type == pa.int64()
    assert rows.field("z").type == pa.float64()
    assert rows.field("reason").type == pa.string()
