import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts.volumes import block_average, read_volume, read_volumes
from spectral_mlops.errors import InputError

SHAPE = (7, 8, 9)  # unequal, so that no axis passes for another
RAS = np.array([[2.0, 0, 0, -6], [0, 3, 0, -9], [0, 0, 4, -16], [0, 0, 0, 1]])


@pytest.fixture
def known(rng):
    return rng.integers(0, 256, size=SHAPE).astype(np.float32) / np.float32(255)


def save(path, data, affine=RAS, slope=None, endian="<"):
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_dtype(data.dtype)
    image = nibabel.Nifti1Image(data, affine, header)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)
    return path


def test_scaled_bytes_are_read_as_their_values(known, tmp_path):
    data = np.round(known * 255).astype(np.uint8)
    path = save(tmp_path / "a.nii.gz", data, slope=1 / 255)
    voxels, affine = read_volume(path)
    np.testing.assert_allclose(voxels, known, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(affine, RAS)
    assert (voxels.dtype, voxels.flags.c_contiguous) == (np.float32, True)


@pytest.mark.parametrize("dtype", [">f4", ">i2", "<f8"])
def test_byte_order_and_type(known, tmp_path, dtype):
    data = np.round(known * 1000).astype(dtype)
    path = save(tmp_path / "a.nii", data, endian=dtype[0])
    assert path.read_bytes()[:4] == (348).to_bytes(
        4, "big" if ">" in dtype else "little"
    )
    voxels, _ = read_volume(path)
    np.testing.assert_array_equal(voxels, np.round(known * 1000))
    assert voxels.dtype == np.float32
    assert voxels.dtype.isnative


def test_left_handed_and_turned_axes_become_ras(known, tmp_path):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    las = save(tmp_path / "las.nii", known[::-1].copy(), RAS @ flip)
    assert nibabel.aff2axcodes(nibabel.load(las).affine) == ("L", "A", "S")
    turned = np.moveaxis(known, (0, 1, 2), (2, 0, 1)).copy()
    aps = save(tmp_path / "asr.nii", turned, RAS[:, [1, 2, 0, 3]])
    for path in (las, aps):
        voxels, affine = read_volume(path)
        np.testing.assert_array_equal(voxels, known)
        np.testing.assert_allclose(affine, RAS)
        assert voxels.flags.c_contiguous


def test_a_last_axis_of_one_is_no_axis(known, tmp_path):
    voxels, _ = read_volume(save(tmp_path / "a.nii", known[..., None]))
    np.testing.assert_array_equal(voxels, known)


def test_people_in_order_whatever_their_files_are(known, tmp_path):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    paths = {
        "b": save(tmp_path / "b.nii", known),
        "a": save(tmp_path / "a.nii.gz", (2 * known)[::-1].copy(), RAS @ flip),
        "c": save(tmp_path / "c.nii", (3 * known).astype(">f4"), endian=">"),
    }
    seen = []
    features, affine = read_volumes(paths, 1, lambda *args: seen.append(args))
    np.testing.assert_array_equal(features, [known, 2 * known, 3 * known])
    assert features.dtype == np.float32
    np.testing.assert_array_equal(affine, RAS)
    assert seen[-1] == ("reading volumes", 3, 3)


def block_average_by_loops(voxels, factor):
    x, y, z = (-(-n // factor) for n in voxels.shape)
    averaged = np.empty((x, y, z))
    for i, j, k in np.ndindex(x, y, z):
        i0, j0, k0 = i * factor, j * factor, k * factor
        averaged[i, j, k] = voxels[
            i0 : i0 + factor, j0 : j0 + factor, k0 : k0 + factor
        ].mean()
    return averaged


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 20])
def test_blocks_average_just_what_they_hold(rng, factor):
    voxels = rng.normal(size=SHAPE).astype(np.float32)
    expected = block_average_by_loops(voxels.astype(float), factor)
    np.testing.assert_allclose(block_average(voxels, factor), expected, atol=1e-6)
    ones = block_average(np.ones(SHAPE, dtype=np.float32), factor)
    np.testing.assert_array_equal(ones, np.ones(expected.shape))


def test_the_coarse_grid_is_centred_on_its_blocks(known, tmp_path):
    _, affine = read_volumes({"a": save(tmp_path / "a.nii", known)}, coarsen=2)
    centre = np.mean([RAS @ [i, j, k, 1] for i in (2, 3) for j in (4, 5)
                      for k in (0, 1)], axis=0)  # fmt: skip
    np.testing.assert_allclose(affine @ [1, 2, 0, 1], centre)


def test_other_shapes_and_grids_are_refused_naming_both(known, tmp_path):
    first = save(tmp_path / "first.nii", known)
    other = save(tmp_path / "other.nii", known[:, :, 1:].copy())
    message = r"other.nii has shape \(7, 8, 8\) but .*first.nii has \(7, 8, 9\)"
    with pytest.raises(InputError, match=rf"{message}.*one grid first"):
        read_volumes({"a": first, "b": other})
    moved = RAS.copy()
    moved[1, 3] += 0.5
    other = save(tmp_path / "moved.nii", known, moved)
    with pytest.raises(InputError, match=r"moved.nii has affine .*-8.5.*first.nii has"):
        read_volumes({"a": first, "b": other})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(known, tmp_path, value):
    known[2, 0, 5] = value
    with pytest.raises(InputError, match=r"a.nii holds 1 values .* voxel \(2, 0, 5\)"):
        read_volume(save(tmp_path / "a.nii", known))


def test_files_that_are_no_volume(known, tmp_path, write):
    with pytest.raises(InputError, match=r"no image .*absent.nii"):
        read_volume(tmp_path / "absent.nii")
    with pytest.raises(InputError, match=r"cannot be read as a NIfTI image"):
        read_volume(write("text.nii", "not an image"))
    series = save(tmp_path / "series.nii", np.stack([known, known], axis=-1))
    with pytest.raises(InputError, match=r"shape \(7, 8, 9, 2\): .*three axes"):
        read_volume(series)
    with pytest.raises(InputError, match=r"table of people is empty"):
        read_volumes({})
    with pytest.raises(InputError, match=r"coarsen=0"):
        read_volumes({"a": save(tmp_path / "a.nii", known)}, coarsen=0)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_named(known, tmp_path, damage):
    path = save(tmp_path / "a.nii.gz", known)
    whole = path.read_bytes()
    half = len(whole) // 2
    flipped = whole[:-8] + bytes(255 - byte for byte in whole[-8:-4]) + whole[-4:]
    path.write_bytes(whole[:half] if damage == "cut" else flipped)
    with pytest.raises(InputError, match=r"a.nii.gz cannot be read"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_promises_terabytes(known, tmp_path, name):
    import gzip

    plain = save(tmp_path / "plain.nii", known).read_bytes()
    dims = np.array([3, 30000, 30000, 30000], dtype="<i2").tobytes()
    forged = plain[:40] + dims + plain[48:]
    (tmp_path / name).write_bytes(gzip.compress(forged) if "gz" in name else forged)
    told = r"promises 30000x30000x30000 voxels, 108000000000000 bytes, and the file"
    with pytest.raises(InputError, match=told):
        read_volume(tmp_path / name)


def test_a_negative_shape(known, tmp_path):
    plain = save(tmp_path / "a.nii", known).read_bytes()
    dims = np.array([3, -7, 8, 9], dtype="<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(plain[:40] + dims + plain[48:])
    with pytest.raises(InputError, match=r"cannot be read as a NIfTI image"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_truncated_gz(known, tmp_path, share):
    path = save(tmp_path / "a.nii.gz", known)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"a.nii.gz cannot be read as a NIfTI image"):
        read_volume(path)


@pytest.mark.parametrize("colour", [True, False])
def test_values_that_are_no_real_numbers(known, tmp_path, colour):
    """Half of a complex number would be lost, and of colours there are three."""
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]) if colour else "c8"
    path = save(tmp_path / "a.nii.gz", np.zeros(SHAPE, kind))
    with pytest.raises(InputError, match=r"a.nii.gz holds values of type .*no. real"):
        read_volume(path)


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [np.nan, 0, 0, 0]])
def test_an_affine_that_leads_nowhere(known, tmp_path, row):
    plain = save(tmp_path / "a.nii", known).read_bytes()
    srow = np.array(row, dtype="<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(plain[:280] + srow + plain[296:])
    with pytest.raises(InputError, match=r"a.nii: its affine .* no place in space; "):
        read_volume(tmp_path / "a.nii")


def test_an_empty_map(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros(SHAPE, np.float32))
    with pytest.raises(InputError, match=r"a.nii holds zeros only; repair the map"):
        read_volume(path)
