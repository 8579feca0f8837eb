import numpy as np
import pytest

from spectral_mlops.cohorts.anatomy import draw_volumes, load_anatomy
from spectral_mlops.cohorts.demographics import draw_people


@pytest.fixture(scope="module")
def coarse():
    return load_anatomy(9.0)


def at(anatomy, mm):
    """Return the voxel nearest to a point of MNI space."""
    voxel = np.linalg.inv(anatomy.affine) @ [*mm, 1]
    return tuple(np.round(voxel[:3]).astype(int))


def test_the_template_is_grey_matter_in_mni_space(coarse):
    assert coarse.template.min() == 0
    assert 0.5 < coarse.template.max() <= 1
    assert coarse.template[at(coarse, (38, 6, 0))] > 0.3  # right insula
    assert coarse.template[at(coarse, (26, -20, 28))] < 0.2  # white matter
    assert coarse.template[0, 0, 0] == 0  # air
    left, right = np.array_split(coarse.template, 2, axis=0)
    assert abs(left.sum() / right.sum() - 1) < 0.2


def test_finer_grids_cover_the_same_brain(coarse):
    fine = load_anatomy(4.5)
    volume = [a.template.sum() * a.voxel_mm**3 for a in (coarse, fine)]
    assert abs(volume[0] / volume[1] - 1) < 0.05


def test_atrophy_is_strongest_at_its_foci(coarse):
    assert coarse.atrophy.min() >= 0.04
    assert coarse.atrophy.max() <= 0.13
    assert coarse.atrophy[at(coarse, (38, 6, 0))] > 0.08
    assert coarse.atrophy[at(coarse, (0, -90, 0))] == pytest.approx(0.04, abs=1e-3)


def test_the_effect_is_what_was_planted(coarse):
    people = draw_people(12, 1.0, (0,))
    null = np.stack(list(draw_volumes(coarse, people, 0.0, (0, 2))))
    full = np.stack(list(draw_volumes(coarse, people, 1.0, (0, 2))))
    assert null.min() >= 0
    assert null.max() <= 1
    patient = (people["group"] == "patient").to_numpy()
    np.testing.assert_array_equal(null[~patient], full[~patient])
    inside = (null[patient] > 0).all(0) & (full[patient] > 0).all(0)
    inside &= (null[patient] < 1).all(0)
    growth = (
        1 - 0.005 * (people["age"] - 38) + np.where(people["sex"] == "M", 1, -1) / 50
    )
    lost = (null - full)[patient][:, inside].mean(axis=0)
    planted = (coarse.template * coarse.atrophy)[inside] * growth[patient].mean()
    assert np.corrcoef(lost, planted)[0, 1] > 0.999
    assert lost.sum() == pytest.approx(planted.sum(), rel=0.05)
