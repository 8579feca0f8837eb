"""NIfTI files store integers with a scale: what is read, lost and written."""

import gzip

import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts.cache import cached_volumes
from spectral_mlops.cohorts.defects import Defects
from spectral_mlops.cohorts.layout import volume_path, write_volume
from spectral_mlops.cohorts.volumes import read_volume
from spectral_mlops.errors import InputError
from spectral_mlops.report.brain import direction_to_nifti

SHAPE = (7, 8, 9)
AFFINE = np.array([[2.0, 0, 0, -6], [0, 3, 0, -9], [0, 0, 4, -16], [0, 0, 0, 1]])
SLOPE_AT, INTER_AT = 112, 116  # bytes of scl_slope and scl_inter in a header


@pytest.fixture
def floats(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def small_integers(rng):
    return rng.integers(-300, 300, size=SHAPE).astype(np.int16)


def header_of(dtype, endian="<"):
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_dtype(dtype)
    return header


def saved(path, data, header):
    nibabel.save(nibabel.Nifti1Image(data, AFFINE, header), path)
    return path


def stored_slope(path):
    """The slope as the file has it, read without nibabel."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return float(np.frombuffer(raw[SLOPE_AT : SLOPE_AT + 4], "<f4")[0])


def with_scale(path, slope, inter, endian="<"):
    """Write slope and intercept into a plain file as they are."""
    raw = bytearray(path.read_bytes())
    raw[SLOPE_AT : INTER_AT + 4] = np.array([slope, inter], f"{endian}f4").tobytes()
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_floats_that_somebody_saved_as_integers(floats, tmp_path, name, dtype):
    """They come back within half a step of what was saved; no reader can do better."""
    path = saved(tmp_path / name, floats, header_of(dtype))
    step = abs(stored_slope(path))
    assert step > 0  # nibabel writes it negative where that fits better
    voxels, _ = read_volume(path)
    gap = np.abs(voxels - floats).max()
    assert gap <= 0.51 * step
    assert gap > 0.1 * step  # it was lost in the file
    image = nibabel.load(path)
    scale = image.dataobj.slope, image.dataobj.inter
    exact = np.asarray(image.dataobj.get_unscaled()) * scale[0] + scale[1]
    np.testing.assert_allclose(voxels, exact, rtol=1e-5, atol=1e-6)
    assert voxels.dtype == np.float32


def test_an_image_derived_with_an_integer_header_is_read_as_stored(floats, tmp_path):
    """`Nifti1Image(data, affine, header)` keeps the header's integers: the trap."""
    first = saved(tmp_path / "int.nii", (100 * floats).astype(np.int16), None)
    header = nibabel.load(first).header
    derived = saved(tmp_path / "derived.nii", floats, header)
    assert nibabel.load(derived).get_data_dtype() == np.int16
    voxels, _ = read_volume(derived)
    assert 0 < np.abs(voxels - floats).max() <= 0.51 * abs(stored_slope(derived))
    header.set_data_dtype(np.float32)
    mended = saved(tmp_path / "mended.nii", floats, header)
    np.testing.assert_array_equal(read_volume(mended)[0], floats)


@pytest.mark.parametrize("endian", ["<", ">"])
def test_slope_and_intercept_count_once(small_integers, tmp_path, endian):
    dtype = np.dtype(np.int16).newbyteorder(endian)
    data = small_integers.astype(dtype)
    path = saved(tmp_path / "a.nii", data, header_of(dtype, endian))
    with_scale(path, 0.25, -3, endian)
    voxels, _ = read_volume(path)
    np.testing.assert_array_equal(voxels, small_integers * 0.25 - 3)
    raw = np.asarray(nibabel.load(path).dataobj.get_unscaled())
    np.testing.assert_array_equal(raw, small_integers)
    assert np.isnan(nibabel.load(path).header["scl_slope"])  # says nothing once loaded


@pytest.mark.parametrize(
    ("slope", "inter"), [(np.nan, np.nan), (np.nan, 0), (0, 0), (0, 7), (1, 0)]
)
def test_a_slope_that_is_none_scales_nothing(small_integers, tmp_path, slope, inter):
    path = saved(tmp_path / "a.nii", small_integers, header_of(np.int16))
    with_scale(path, slope, inter)
    np.testing.assert_array_equal(read_volume(path)[0], small_integers)


def test_an_intercept_that_is_none_is_refused(small_integers, tmp_path):
    path = saved(tmp_path / "a.nii", small_integers, header_of(np.int16))
    with_scale(path, 2, np.nan)
    with pytest.raises(InputError, match=r"a.nii cannot be read as a NIfTI image"):
        read_volume(path)


def test_masks_of_bytes_stay_zeros_and_ones(floats, tmp_path):
    mask = (floats > 0).astype(np.uint8)
    path = saved(tmp_path / "mask.nii.gz", mask, None)
    np.testing.assert_array_equal(read_volume(path)[0], mask)


def test_64_bit_integers(small_integers, tmp_path):
    """nibabel refuses to write them unasked; files that have them are read."""
    with pytest.raises(ValueError, match="int64"):
        nibabel.Nifti1Image(small_integers.astype(np.int64), AFFINE)
    data = small_integers.astype(np.int64)
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(data, AFFINE, dtype=np.int64), path)
    voxels, _ = read_volume(path)
    np.testing.assert_array_equal(voxels, small_integers)
    assert voxels.dtype == np.float32


@pytest.mark.parametrize("coarsen", [1, 2])
def test_the_cache_holds_floats_not_the_steps_of_the_file(floats, tmp_path, coarsen):
    paths = {
        "a": saved(tmp_path / "a.nii", floats, header_of(np.int16)),
        "b": saved(tmp_path / "b.nii.gz", 3 * floats, header_of(np.float32)),
    }
    first, _, _ = cached_volumes(paths, tmp_path / "cache", coarsen)
    again, _, notes = cached_volumes(paths, tmp_path / "cache", coarsen)
    assert notes[-1].startswith("read from the cache")
    assert first.dtype == again.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    if coarsen == 1:
        np.testing.assert_array_equal(again[0], read_volume(paths["a"])[0])
        np.testing.assert_array_equal(again[1], 3 * floats)
    else:
        block = (3 * floats[:2, :2, :2]).astype(np.float64).mean()
        assert again[1][0, 0, 0] == pytest.approx(block, rel=1e-6)


def test_directions_are_written_as_the_floats_they_are(floats, tmp_path):
    mask = floats > 0
    vector = floats[mask].astype(np.float64)
    path = direction_to_nifti(vector, mask, AFFINE, tmp_path / "direction.nii.gz")
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.float32
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[mask], floats[mask])


@pytest.mark.parametrize("defects", [{}, {"flipped": ("a",)}, {"big_endian": "a"}])
def test_simulated_maps_are_of_steps_that_are_stated(rng, tmp_path, defects):
    """Rounded once, to 1/255, the step of published maps, and never again."""
    grey = rng.random(SHAPE)
    write_volume(tmp_path, "a", grey, AFFINE, Defects(**defects))
    voxels, affine = read_volume(volume_path(tmp_path, "a"))
    np.testing.assert_allclose(voxels * 255, np.round(grey * 255), rtol=0, atol=2e-5)
    assert np.abs(voxels - grey).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_allclose(affine, AFFINE)
