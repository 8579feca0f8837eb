"""CSV and TSV files, read cell by cell: nothing guessed, every line accounted for."""

import csv
import gzip
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest

SEPARATORS = {".csv": ",", ".tsv": "\t"}
MISSING = {"", "n/a", "na", "nan", "none", "null"}
"""Cells that mean "not known", in any case; ``n/a`` is what BIDS prescribes."""


@dataclass(frozen=True)
class Table:
    """The text of a delimited file.

    Attributes:
        path: The file.
        header: Column names, each once.
        rows: One list of cells a line, as long as the header, blanks stripped.
        lines: Line of the file that each row ends on, for messages.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[list[str], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> list[str]:
        """Return the cells of one column, top to bottom.

        Raises:
            UnknownNameError: If there is no such column; lists those there are.
        """
        if name not in self.header:
            raise UnknownNameError(
                f"{self.path} has no column '{name}'; its columns are "
                f"{', '.join(self.header)}.{nearest(name, list(self.header))}"
            )
        at = self.header.index(name)
        return [row[at] for row in self.rows]


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that its value is not known."""
    return cell.casefold() in MISSING


def read_table(path: Path) -> Table:
    """Read a delimited file with a header; the separator follows its ending.

    Args:
        path: ``.csv`` (comma) or ``.tsv`` (tab), also ``.gz`` of these, in UTF-8 with
            or without a mark.

    Returns:
        Its cells as text.

    Raises:
        InputError: If the file cannot be read, is empty, has no rows, repeats a
            column name, or a line has more or fewer cells than the header.
    """
    packed = path.suffix.lower() == ".gz"
    separator = SEPARATORS.get(
        (path.with_suffix("") if packed else path).suffix.lower()
    )
    if separator is None:
        raise InputError(
            f"{path}: '{path.suffix}' does not tell how cells are separated; give a "
            f"file that ends in {' (comma) or '.join(SEPARATORS)} (tab)."
        )
    header: tuple[str, ...] = ()
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with (gzip.open if packed else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as stream:
            reader = csv.reader(stream, delimiter=separator, strict=True)
            for cells in reader:
                if any("\0" in cell for cell in cells):
                    raise InputError(
                        f"{path}, line {reader.line_num}: there are NUL bytes, so it "
                        "is no UTF-8 text (but UTF-16, or no table); save it as UTF-8."
                    )
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                if not header:
                    header = tuple(cells)
                    _check_header(path, header, separator)
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells where the "
                        f"header has {len(header)}; check separators and quotes."
                    )
                rows.append(cells)
                lines.append(reader.line_num)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged ({error}); copy it anew.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; check separators and quotes."
        ) from error
    if not rows:
        what = "has a header but no rows" if header else "is empty"
        raise InputError(f"{path} {what}; give a header and one row a person.")
    return Table(path, header, tuple(rows), tuple(lines))


def _check_header(path: Path, header: tuple[str, ...], separator: str) -> None:
    """Refuse repeated names, and a header that another separator would split."""
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(
            f"{path}: the column name '{repeated[0]}' stands more than once in the "
            "header; give each column a name of its own."
        )
    others = [mark for mark in ",\t;" if mark != separator and mark in header[0]]
    if len(header) == 1 and others:
        raise InputError(
            f"{path}: the header looks separated by {others[0]!r}, but a file that "
            f"ends in '{path.suffix}' is read with {separator!r}; save it anew."
        )
