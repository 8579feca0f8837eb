"""Records of a run on their way into parquet parts.

Epochs' records are written soon after they were logged, a few epochs together, to files
of their own under ``spool/records/PART/``. Ten epochs make a part, one file per kind
that never changes; the files it was made of then go.
"""

import shutil
from pathlib import Path

import pyarrow.parquet as pq

from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking.shards import KINDS, Kind, read_tables, table_of
from spectral_mlops.tracking.spool import FOLDER, sync, sync_file

RECORDS = f"{FOLDER}/records"


def write_pending(
    root: Path, part: str, number: int, records: list[EpochRecord]
) -> None:
    """Write records to the disk; again with the same number replaces them.

    Args:
        root: The run's folder.
        part: Name of the part they will be in, such as ``part-00000``.
        number: Of the first of these epochs, in the order they were logged.
        records: What to write.
    """
    folder = root / RECORDS / part
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        table = table_of(records, kind)
        if table.num_rows:
            path = folder / f"{number:06d}-{kind}.parquet"
            pq.write_table(table, path, compression="zstd")
            sync(path)
    sync(folder)


def remove_unrecorded(root: Path, count: int) -> None:
    """Remove records that a killed process wrote without coming to say so.

    Args:
        root: The run's folder.
        count: How many epochs' records the spool knows of.
    """
    for path in (root / RECORDS).glob("*/*.parquet"):
        if int(path.name.partition("-")[0]) >= count:
            path.unlink()


def build_part(root: Path, part: str) -> list[Path]:
    """Put a part's records together; nothing happens where that was done.

    Returns:
        The part's files, ``RUN/<kind>/<part>.parquet``, of the kinds that have rows.
    """
    folder = root / RECORDS / part
    for kind in KINDS:
        target = root / kind / f"{part}.parquet"
        waiting = sorted(folder.glob(f"*-{kind}.parquet"))
        if waiting and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            table = read_tables(waiting, kind)
            pq.write_table(table, target.with_suffix(".new"), compression="zstd")
            target.with_suffix(".new").replace(target)
            sync_file(target)
    shutil.rmtree(folder, ignore_errors=True)
    found = (root / kind / f"{part}.parquet" for kind in KINDS)
    return [path for path in found if path.exists()]


def pending_files(root: Path, kind: Kind) -> list[Path]:
    """Return the files of records that are in no part yet, in order."""
    return [
        path
        for path in sorted((root / RECORDS).glob(f"*/*-{kind}.parquet"))
        if not (root / kind / f"{path.parent.name}.parquet").exists()
    ]
