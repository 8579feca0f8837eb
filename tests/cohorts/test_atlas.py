import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.cohorts.atlas import atlas_extractor
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

AFFINE = np.diag([3.0, 3, 3, 1])
SHAPE = (5, 6, 7)


def save(path, data, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def bold(rng):
    return (100 + rng.normal(size=(*SHAPE, 11))).astype(np.float32)


@pytest.fixture
def labels():
    regions = np.zeros(SHAPE, dtype=np.int16)
    regions[:2] = 4
    regions[3:, :3] = 9
    return regions


def test_regions_are_means_of_their_voxels(tmp_path, bold, labels):
    extract = atlas_extractor(save(tmp_path / "a.nii", labels), "labels", False)
    values, names = extract(save(tmp_path / "b.nii.gz", bold))
    expected = [bold[labels == label].mean(axis=0) for label in (4, 9)]
    np.testing.assert_allclose(values.T, expected, rtol=1e-6)
    assert names == ("4", "9")


def test_a_region_without_name_is_numbered_in_voxels_and_maps(tmp_path, bold, rng):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1, 2, 3] = mask[4, 5, 6] = 1
    extract = atlas_extractor(save(tmp_path / "m.nii", mask), "mask", False)
    values, names = extract(save(tmp_path / "b.nii", bold))
    np.testing.assert_allclose(values.T, bold[mask > 0], rtol=1e-6)
    assert names == ("mask1", "mask2")
    maps = rng.uniform(size=(*SHAPE, 3)).astype(np.float32)
    extract = atlas_extractor(save(tmp_path / "c.nii", maps), "maps", False)
    values, names = extract(tmp_path / "b.nii")
    design = maps.reshape(-1, 3).astype(float)
    expected = np.linalg.lstsq(design, bold.reshape(-1, 11).astype(float), rcond=None)
    np.testing.assert_allclose(values.T, expected[0], rtol=1e-4)
    assert names == ("maps1", "maps2", "maps3")


def test_the_repetition_time_of_a_header_is_not_believed(tmp_path, bold, labels):
    """2000 "seconds" and 0 stand in published files; nothing here is filtered by it."""
    extract = atlas_extractor(save(tmp_path / "a.nii", labels), "labels", False)
    found = []
    for number in (2.0, 2000.0, 0.0):
        image = nibabel.Nifti1Image(bold, AFFINE)
        image.header.set_zooms((3, 3, 3, number))
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, tmp_path / f"{number}.nii")
        found.append(extract(tmp_path / f"{number}.nii")[0])
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("kind", ["c8", "V3"])
def test_images_that_hold_no_real_numbers(tmp_path, labels, kind):
    names = [("R", "u1"), ("G", "u1"), ("B", "u1")]
    data = np.zeros((*SHAPE, 4), np.dtype(names) if kind == "V3" else kind)
    extract = atlas_extractor(save(tmp_path / "a.nii", labels), "labels", False)
    with pytest.raises(InputError, match="not real numbers"):
        extract(save(tmp_path / "b.nii", data))


def test_another_grid_is_refused_unless_asked_for(tmp_path, bold, labels):
    fine = np.repeat(np.repeat(np.repeat(labels, 3, 0), 3, 1), 3, 2)
    affine = np.eye(4)
    affine[:3, 3] = -1  # the same outer corner
    atlas = save(tmp_path / "a.nii", fine, affine)
    path = save(tmp_path / "b.nii", bold)
    with pytest.raises(InputError, match=r"\(5, 6, 7\) and the atlas.*resample=true"):
        atlas_extractor(atlas, "labels", False)(path)
    values, _ = atlas_extractor(atlas, "labels", True)(path)
    expected = [bold[labels == label].mean(axis=0) for label in (4, 9)]
    np.testing.assert_allclose(values.T, expected, rtol=1e-6)


def test_a_volume_is_no_series(tmp_path, bold, labels):
    extract = atlas_extractor(save(tmp_path / "a.nii", labels), "labels", False)
    with pytest.raises(InputError, match=r"shape \(5, 6, 7\); time courses need a 4-D"):
        extract(save(tmp_path / "b.nii", bold[..., 0]))
    with pytest.raises(InputError, match=r"There is no image .*c.nii"):
        extract(tmp_path / "c.nii")


def test_images_of_a_cohort(tmp_path, bold, labels):
    save(tmp_path / "atlas.nii", labels)
    for k, who in enumerate("wxyz"):
        save(tmp_path / f"{who}_bold.nii.gz", (k + 1) * bold[..., : 8 + k])
    people = "id\tgroup\nw\tpatient\nx\tcontrol\ny\tpatient\nz\tcontrol\n"
    (tmp_path / "people.tsv").write_text(people)
    settings = {
        "series": "{id}_bold.nii.gz",
        "labels": "people.tsv",
        "atlas": "atlas.nii",
        "lengths": "crop",
    }
    cohort = load_cohort(Component(name="timecourses", settings=settings), tmp_path)
    first = bold[labels == 4].mean(axis=0)
    np.testing.assert_allclose(cohort.features[2, :, 0], 3 * first[:8], rtol=1e-5)
    assert cohort.space.networks == ("4", "9")


def test_a_series_cut_off(tmp_path, bold, labels):
    extract = atlas_extractor(save(tmp_path / "a.nii", labels), "labels", False)
    path = save(tmp_path / "b.nii.gz", bold)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"b.nii.gz cannot be read as a NIfTI image"):
        extract(path)


@pytest.mark.parametrize("kind", ["labels", "mask"])
def test_voxels_without_a_value_are_told(tmp_path, bold, labels, kind):
    bold[0, 1, 2, 5] = np.nan
    regions = (labels > 0).astype(np.uint8) if kind == "mask" else labels
    extract = atlas_extractor(save(tmp_path / "a.nii", regions), kind, False)
    with pytest.raises(InputError, match=r"b.nii holds values that are not finite"):
        extract(save(tmp_path / "b.nii", bold))
