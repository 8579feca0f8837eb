import gzip

import pytest

from spectral_mlops.cohorts.delimited import is_missing, read_table
from spectral_mlops.errors import InputError, UnknownNameError


def test_cells_stay_text_and_marks_vanish(write):
    path = write("people.csv", '\ufeffID,note\n0040000," a, b "\r\n\n00700,n/a\n')
    table = read_table(path)
    assert table.header == ("ID", "note")
    assert table.rows == (["0040000", "a, b"], ["00700", "n/a"])
    assert table.lines == (2, 4)


def test_tsv_is_split_at_tabs(write):
    table = read_table(write("people.tsv", "a\tb,c\n1\t2,3\n"))
    assert table.column("b,c") == ["2,3"]


def test_unknown_column_lists_those_there_are(write):
    table = read_table(write("people.csv", "ID,Class\n1,0\n"))
    with pytest.raises(UnknownNameError, match=r"'Clas'.*ID, Class.*mean 'Class'"):
        table.column("Clas")


@pytest.mark.parametrize("cell", ["", "n/a", "N/A", "NaN", "NA", "null", "None"])
def test_missing_cells(cell):
    assert is_missing(cell)
    assert not is_missing("0" + cell)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "\n \n", "a.csv is empty"),
        ("a.csv", "ID,Class\n", "has a header but no rows"),
        ("a.csv", "ID,x\n1,2\n3\n", "line 3: 1 cells where the header has 2"),
        ("a.csv", "ID,x\n1,2,3\n", "line 2: 3 cells where the header has 2"),
        ("a.csv", 'ID,x\n1,"2\n', "line 2: .*quotes"),
        ("a.csv", "ID,x,x\n1,2,3\n", "'x' stands more than once"),
        ("a.csv", "ID;x\n1;2\n", "looks separated by ';'"),
        ("a.tsv", "ID,x\n1,2\n", "looks separated by ','"),
        ("a.csv", "ID,x\n1,2\0\n", "line 2: there are NUL bytes, so it is no UTF-8"),
        ("a.xlsx", "ID\n1\n", r"'.xlsx' .* \.csv \(comma\) or \.tsv \(tab\)"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(write, name, text, message):
    with pytest.raises(InputError, match=message):
        read_table(write(name, text))


def test_absent_and_wrongly_encoded_files(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read .*a.csv: No such file"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes("ID,Zürich\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"b.csv is not UTF-8 text \(byte 4\)"):
        read_table(tmp_path / "b.csv")
    for encoding, said in (("utf-16", r"is not UTF-8 text"), ("utf-16-le", "UTF-16")):
        (tmp_path / "c.csv").write_bytes("ID,x\n1,2\n".encode(encoding))
        with pytest.raises(InputError, match=rf"c.csv.*{said}"):
            read_table(tmp_path / "c.csv")


def test_a_packed_table_is_the_table(tmp_path):
    text = b"id\tgroup\r\n001\tx\r\n2\ty\r\n"
    (tmp_path / "a.tsv").write_bytes(text)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(text))
    plain, packed = read_table(tmp_path / "a.tsv"), read_table(tmp_path / "a.tsv.gz")
    assert (plain.header, plain.rows) == (packed.header, packed.rows)
    whole = gzip.compress(text * 90)
    for damaged in (whole[:-9], b"id\tgroup\n", whole[:10] + b"\xff" * 20):
        (tmp_path / "a.tsv.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a.tsv.gz is damaged .*copy it anew"):
            read_table(tmp_path / "a.tsv.gz")
