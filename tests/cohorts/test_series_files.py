import nibabel
import numpy as np
import pytest
from scipy.io import savemat

from spectral_mlops.cohorts.matlab import read_matlab
from spectral_mlops.cohorts.series_files import read_series
from spectral_mlops.errors import InputError, UnknownNameError

VALUES = np.array([[1.5, -2.0], [3.0, 0.25], [1e-3, 7.0]])  # three times, two names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "DM1\tVI2\n1.5\t-2\n3\t.25\n1e-3\t7\n"),
        ("a.csv", "DM1,VI2\n1.5,-2\n3,.25\n1e-3,7\n"),
        ("a.csv", "\ufeffDM1,VI2\r\n1.5,-2\r\n\r\n3,.25\r\n1e-3,7\r\n"),
        ("a.1D", "#DM1 VI2\n 1.5  -2\n 3 .25\n 1e-3 7"),
        ("a.txt", "DM1 VI2\n1.5 -2\n3 .25\n1e-3 7"),
    ],
)
def test_named_columns_are_components(write, name, text):
    series = read_series(write(name, text))
    np.testing.assert_array_equal(series.values, VALUES)
    assert [name.removeprefix("#") for name in series.names] == ["DM1", "VI2"]
    assert series.time_first


def test_numbers_alone_say_nothing_of_time(write):
    series = read_series(write("a.1D", "# written on Monday\n1.5 -2\n3 .25\n1e-3 7\n"))
    np.testing.assert_array_equal(series.values, VALUES)
    assert not series.names
    assert not series.time_first
    assert not read_series(write("b.tsv", "1\t2\n3\t4\n")).time_first


def test_missing_cells_are_nan(write):
    values = read_series(write("a.tsv", "a\tb\nn/a\t2\n\t4\n")).values
    np.testing.assert_array_equal(values, [[np.nan, 2], [np.nan, 4]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.tsv",
            "a\tb\n1\t2\n3\n",
            r"a.tsv, line 3: 1 cells where the first row has 2",
        ),
        ("a.tsv", "a\tb\tc\n1\t2\n", "3 names over 2 columns"),
        ("a.csv", "a,b\n1,2\n3,x\n", "line 3: 'x' is not a number"),
        (
            "a.csv",
            ",a,b\n0,1,2\n1,3,4\n",
            "first column has no name, so it counts rows",
        ),
        ("a.csv", "a,b\n", "holds no numbers"),
        ("a.tsv", "", "holds no numbers"),
        ("a.xls", "", "'.xls' is no known kind of time courses"),
        ("a.nii.gz", "", "cannot be read as a NIfTI image: Empty file"),
        ("a.npy", "", "is damaged"),
        ("a.npz", "hello", "is no NumPy file of plain arrays"),
        ("a.mat", "hello", "cannot be read as a MATLAB file"),
        ("a.mat", "", "cannot be read as a MATLAB file"),
    ],
)
def test_bad_files_say_where(write, name, text, message):
    with pytest.raises(InputError, match=message):
        read_series(write(name, text))


@pytest.mark.parametrize("name", ["a.tsv", "a.npz", "a.mat"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(InputError, match=r"Cannot read .*No such file"):
        read_series(tmp_path / name)


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.tsv").write_bytes("größe\n1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 2\)"):
        read_series(tmp_path / "a.tsv")


def test_python_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", tc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"no NumPy file of plain arrays"):
        read_series(tmp_path / "a.npz")


def test_the_usual_array_or_the_one_named(tmp_path):
    arrays = {"tc": VALUES, "ic": 2 * VALUES, "TR": np.array([[2.0]])}
    np.savez(tmp_path / "a.npz", **arrays)
    savemat(tmp_path / "a.mat", arrays)
    for name in ("a.npz", "a.mat"):
        np.testing.assert_array_equal(read_series(tmp_path / name).values, VALUES)
        series = read_series(tmp_path / name, "ic")
        np.testing.assert_array_equal(series.values, 2 * VALUES)
        with pytest.raises(UnknownNameError, match=r"no array 'tcc'.*'tc'"):
            read_series(tmp_path / name, "tcc")
        with pytest.raises(InputError, match=r"expected one array of numbers with 2"):
            read_series(tmp_path / name, "TR")
    savemat(tmp_path / "b.mat", {"first": VALUES, "other": VALUES})
    with pytest.raises(InputError, match=r"first \(3, 2\), other.*name it with var"):
        read_series(tmp_path / "b.mat")


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 1, 1), (1, 3, 1, 2)])
def test_gift_s_own_images_of_time_courses(tmp_path, shape):
    """``…_timecourses_ica_s1_.nii`` has two axes, and no place in space."""
    image = nibabel.Nifti1Image(VALUES.astype(np.float32).reshape(shape), np.eye(4))
    if len(shape) == 2:
        image.header["sform_code"] = image.header["qform_code"] = 0
        image.header["pixdim"][1:4] = 0
    nibabel.save(image, tmp_path / "a.nii.gz")
    found = read_series(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.values, VALUES.astype(np.float32))
    assert not found.time_first  # which axis is time is told by components=


def test_an_image_of_a_brain_needs_an_atlas(tmp_path):
    image = nibabel.Nifti1Image(np.ones((3, 4, 5, 6), np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a.nii is an image; say with atlas="):
        read_series(tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    one = nibabel.Nifti1Image(VALUES.astype(np.float32), np.eye(4))
    nibabel.save(one, tmp_path / "b.nii.gz")
    cut = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(cut[:-6])
    with pytest.raises(InputError, match=r"b.nii.gz cannot be read as a NIfTI"):
        read_series(tmp_path / "b.nii.gz")
    (tmp_path / "a.nii").write_bytes(whole[:400])
    with pytest.raises(InputError, match=r"the file cannot hold more than 400"):
        read_series(tmp_path / "a.nii")


def test_texts_of_matlab(tmp_path):
    cells = np.array(["sub-07", "8"], dtype=object)
    savemat(tmp_path / "a.mat", {"ids": cells, "mixed": np.array([1, "a"], object)})
    arrays = read_matlab(tmp_path / "a.mat")
    assert {name: list(array) for name, array in arrays.items()} == {
        "ids": ["sub-07", "8"]
    }


def test_a_cut_off_matlab_file(tmp_path, rng):
    savemat(tmp_path / "a.mat", {"tc": rng.normal(size=(90, 5))}, do_compression=True)
    whole = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot be read as a MATLAB file.*copy it"):
        read_series(tmp_path / "a.mat")


def test_arrays_that_promise_more_than_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((150, 9)))
    plain = (tmp_path / "a.npy").read_bytes()
    forged = plain.replace(b"(150, 9), }           ", b"(15000000000, 900000),}")
    (tmp_path / "a.npy").write_bytes(forged)
    with pytest.raises(InputError, match=r"a.npy says that it holds more than memory"):
        read_series(tmp_path / "a.npy")


def test_an_archive_cut_off(tmp_path):
    np.savez(tmp_path / "a.npz", tc=np.ones((150, 9)))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a.npz is damaged .*copy it anew"):
        read_series(tmp_path / "a.npz")


def test_a_version_73_that_promises_more_than_memory(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        size = (10**9, 10**9)
        item = file.create_dataset("tc", size, "f8", chunks=(1000, 1000))
        item.attrs["MATLAB_class"] = np.bytes_("double")
    with pytest.raises(InputError, match=r"a.mat cannot be read as a MATLAB file"):
        read_series(tmp_path / "a.mat")


def save_new(path, arrays, texts=()):
    """Write a MATLAB file of version 7.3 as MATLAB lays it out."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            item = file.create_dataset(name, data=array.T)
            item.attrs["MATLAB_class"] = np.bytes_("double")
        if texts:
            held = file.create_group("#refs#")
            cells = np.empty((1, len(texts)), dtype=h5py.ref_dtype)
            for k, text in enumerate(texts):
                codes = np.array([[ord(char)] for char in text], dtype=np.uint16)
                one = held.create_dataset(f"t{k}", data=codes)
                one.attrs["MATLAB_class"] = np.bytes_("char")
                cells[0, k] = one.ref
            item = file.create_dataset("ids", data=cells)
            item.attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def test_version_73_is_turned_back(tmp_path):
    save_new(tmp_path / "a.mat", {"tc": VALUES}, ["sub-07", "8"])
    np.testing.assert_array_equal(read_series(tmp_path / "a.mat").values, VALUES)
    assert list(read_matlab(tmp_path / "a.mat")["ids"]) == ["sub-07", "8"]


def test_version_73_needs_h5py(tmp_path, monkeypatch):
    (tmp_path / "a.mat").write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(90))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(InputError, match=r"version 7.3.*spectral-mlops\[mat73\]"):
        read_series(tmp_path / "a.mat")


def test_a_damaged_version_73(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "a.mat").write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(90))
    with pytest.raises(InputError, match=r"cannot be read as a MATLAB file"):
        read_series(tmp_path / "a.mat")
