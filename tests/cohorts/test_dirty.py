"""What is wrong with the preset ``dirty`` meets the readers, policy by policy."""

import json

import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort, simulate
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

SMALL = {"people": 16, "components": 9, "voxel_mm": 9.0, "timepoints": 30}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A clean cohort, and the same people dirty but for the second row of one."""
    work = tmp_path_factory.mktemp("work")
    clean = simulate(work / "clean", "realistic", **SMALL, timecourses=True)
    dirty = simulate(work / "dirty", "dirty", **SMALL, timecourses=True)
    table = dirty / "participants.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    told = json.loads((dirty / "ground_truth" / "defects.json").read_text())
    return clean, dirty, told


def load(folder, modality, **settings):
    chosen = {"folder": str(folder), "modality": modality, "positive": "patient"}
    component = Component(name="bids", settings=chosen | settings)
    return load_cohort(component, folder.parent)


def test_a_simulated_folder_is_read_like_any_other(folders):
    clean = folders[0]
    own = {name: value for name, value in SMALL.items() if name != "people"}
    for modality in ("timecourses", "volume"):
        settings = own | {"people": 16, "folder": str(clean), "modality": modality}
        mine = load_cohort(Component(name="simulated", settings=settings), clean.parent)
        coarse = {"coarsen": 2} if modality == "volume" else {}
        theirs = load(clean, modality, **coarse)
        np.testing.assert_array_equal(mine.features, theirs.features)
        assert list(mine.people.index) == list(theirs.people.index)


def test_maps_are_those_of_the_clean_cohort(folders):
    """Stored to the left or big-endian, a map is the same map."""
    clean, dirty, told = folders
    (missing,) = told["listed_without_files"]
    with pytest.raises(InputError, match=rf"1 only in participants.tsv \({missing}\)"):
        load(dirty, "volume")
    found, whole = load(dirty, "volume", unmatched="drop"), load(clean, "volume")
    expected = whole.features[whole.rows(found.people.index)]
    np.testing.assert_allclose(found.features, expected, rtol=0, atol=1e-6)


def test_time_courses_are_read_once_every_policy_is_chosen(folders):
    clean, dirty, told = folders
    words = {"unmatched": "drop"}
    with pytest.raises(InputError, match=r"2 different lengths"):
        load(dirty, "timecourses", **words)
    words["lengths"] = "crop"
    with pytest.raises(InputError, match=r"dead="):
        load(dirty, "timecourses", **words)
    found = load(dirty, "timecourses", **words, dead="drop_subject")
    left_out = {told["network_is_nan"]["person"], told["network_is_constant"]["person"]}
    assert found.features.shape == (13, 24, 9)
    assert not left_out & set(found.people.index)
    whole = load(clean, "timecourses")
    expected = whole.features[whole.rows(found.people.index), :24]
    np.testing.assert_array_equal(found.features, expected)


def test_connectivity_is_read_without_those_who_lack_a_network(folders):
    _, dirty, told = folders
    settings = {
        "features": str(dirty / "fnc.csv"),
        "labels": str(dirty / "participants.tsv"),
        "order": "upper",
        "positive": "patient",
        "unmatched": "drop",
    }
    with pytest.raises(InputError, match=r"16 values of 2 people are missing"):
        load_cohort(Component(name="fnc", settings=settings), dirty.parent)
    settings["missing"] = "drop_subject"
    found = load_cohort(Component(name="fnc", settings=settings), dirty.parent)
    assert len(found.people) == 13
    assert told["network_is_nan"]["person"] not in found.people.index
