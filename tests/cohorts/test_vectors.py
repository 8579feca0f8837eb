import numpy as np
import pytest

from spectral_mlops.cohorts.vectors import read_vectors
from spectral_mlops.errors import InputError


def test_numbers_and_gaps(write):
    path = write("f.csv", "c1,Id,c2\n0.5,007,-1e-2\nn/a,8,\n")
    vectors = read_vectors(path)
    assert vectors.ids == ("007", "8")
    assert vectors.names == ("c1", "c2")
    np.testing.assert_array_equal(vectors.values, [[0.5, -0.01], [np.nan, np.nan]])


@pytest.mark.parametrize("ids", [["a", "b"], np.array([b"a", b"b"])])
def test_npz_equals_text(write, tmp_path, ids):
    values = np.array([[0.25, -0.5], [1.0, 0.125]])
    np.savez(tmp_path / "f.npz", ids=ids, features=values.astype(">f4"))
    archive = read_vectors(tmp_path / "f.npz")
    text = read_vectors(write("f.csv", "Id,c,d\na,.25,-.5\nb,1,.125\n"))
    assert archive.ids == text.ids
    np.testing.assert_array_equal(archive.values, text.values)


def test_integer_ids_become_text(tmp_path):
    np.savez(tmp_path / "f.npz", ids=np.array([7, 12]), features=np.ones((2, 1)))
    assert read_vectors(tmp_path / "f.npz").ids == ("7", "12")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Id,c1\n1,0.5\n2,high\n", "line 3, column 'c1': 'high' is not a number"),
        ("Id,c1,Age\n1,0.5,20\n", "column 'Age' looks like age, .*table of labels"),
        ("Id,c1\n1,0.5\n1,0.4\n", r"id 1 stands more than once \(again in row 2"),
        ("Id,c1\n1,0.5\nn/a,0.4\n", "row 2 has no id"),
        ("who,c1\n1,0.5\n", "no column looks like the id .*id_column="),
    ],
)
def test_bad_text_is_refused(write, text, message):
    with pytest.raises(Exception, match=message) as caught:
        read_vectors(write("f.csv", text))
    assert type(caught.value).__module__ == "spectral_mlops.errors"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(2)}, r"holds x; expected the arrays 'ids' .* 'features'"),
        ({"ids": np.array(["a", None], dtype=object), "features": np.ones((2, 1))},
         r"Python objects, .* run code; save ids with np.array\(ids, dtype=str\)"),
        ({"ids": np.array([0.5, 1]), "features": np.ones((2, 1))}, "ids are float64"),
        ({"ids": np.array(["a"]), "features": np.ones((2, 1))}, r"\(1,\) and features"),
        ({"ids": np.array(["a"]), "features": np.array([["x"]])}, "features <U1"),
    ],
)  # fmt: skip
def test_bad_archives_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / "f.npz")


def test_things_that_are_no_archive(write, tmp_path):
    with pytest.raises(
        InputError, match=r"f.npz is not an NPZ file; expected the arrays"
    ):
        read_vectors(write("f.npz", "Id,c1\n"))
    with pytest.raises(InputError, match=r"Cannot read .*absent.npz"):
        read_vectors(tmp_path / "absent.npz")
    with (tmp_path / "plain.npz").open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(InputError, match=r"not an NPZ file"):
        read_vectors(tmp_path / "plain.npz")


def test_damaged_archives_and_ids_in_another_encoding(tmp_path, rng):
    path = tmp_path / "f.npz"
    np.savez(path, ids=np.array(["a", "b"]), features=rng.normal(size=(2, 300)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"f.npz is damaged \(Bad CRC.*copy it anew"):
        read_vectors(path)
    np.savez(path, ids=np.array(["é".encode("latin-1")]), features=np.ones((1, 3)))
    with pytest.raises(InputError, match="bytes of an id are no UTF-8 text"):
        read_vectors(path)
