"""One scan under two ids is refused, whatever the loader."""

import nibabel
import numpy as np
import pandas as pd
import pytest

from spectral_mlops.cohorts import Cohort, load_cohort
from spectral_mlops.cohorts.copies import SAMPLE, check_copies
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError


def cohort(features):
    ids = pd.Index([f"s{k}" for k in range(len(features))])
    people = pd.DataFrame({"group": ["a", "b"] * (len(features) // 2)}, index=ids)
    return Cohort(people, features, "fnc", "group", "b", "here")


@pytest.mark.parametrize("width", [10, SAMPLE, 3 * SAMPLE + 5])
def test_two_people_with_one_scan(width):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, width)).astype(np.float32)
    check_copies(cohort(features))
    features[5] = features[2]
    said = rf"here: s2 and s5 have the same {width} features, bit for bit: one scan"
    with pytest.raises(InputError, match=said):
        check_copies(cohort(features))
    features[7] = features[2]
    with pytest.raises(InputError, match=r"s2 and s5 .* \(1 more such pairs\)"):
        check_copies(cohort(features))


def test_alike_is_not_the_same():
    """People who differ in one feature only, between those that are looked at."""
    features = np.zeros((4, 3 * SAMPLE), np.float32)
    places = np.linspace(0, 3 * SAMPLE - 1, SAMPLE).astype(int)
    between = np.setdiff1d(np.arange(3 * SAMPLE), places)
    features[range(4), between[:4]] = 1
    check_copies(cohort(features))
    check_copies(cohort(np.ones((6, 9), np.float32)))  # few numbers say little


def test_a_file_copied_over_another(tmp_path):
    rng = np.random.default_rng(1)
    for name in "wxyz":
        image = nibabel.Nifti1Image(rng.random((4, 5, 6), np.float32), np.eye(4))
        nibabel.save(image, tmp_path / f"{name}.nii")
    (tmp_path / "y.nii").write_bytes((tmp_path / "w.nii").read_bytes())
    (tmp_path / "labels.csv").write_text("id,group\nw,a\nx,b\ny,a\nz,b\n")
    settings = {"images": "{id}.nii", "labels": "labels.csv", "positive": "b"}
    with pytest.raises(InputError, match=r"w and y have the same 120 features"):
        load_cohort(Component(name="volumes", settings=settings), tmp_path)
