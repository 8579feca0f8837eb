import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort, simulate
from spectral_mlops.cohorts.volumes import block_average
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

SMALL = {"people": 12, "components": 9, "voxel_mm": 9.0}


def load(workdir, **settings):
    component = Component(name="simulated", settings=SMALL | settings)
    return load_cohort(component, workdir)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def test_the_cohort_is_made_once_in_its_own_folder(workdir):
    first = load(workdir, preset="easy", seed=4)
    folder = workdir / "cohort" / "easy-12-4"
    assert folder.is_dir()
    assert first.digest == load(workdir, preset="easy", seed=4).digest
    assert first.digest == load(workdir, folder=folder, preset="easy", seed=4).digest
    assert first.source == "simulated 'easy', seed 4"
    assert first.positive == "patient"


def test_connectivity_also_loads_as_anyone_s_files(workdir):
    simulated = load(workdir)
    folder = workdir / "cohort" / "realistic-12-0"
    files = {
        "features": folder / "fnc.csv",
        "labels": folder / "participants.tsv",
        "order": "upper",
    }
    read = load_cohort(Component(name="fnc", settings=files), workdir)
    assert read.digest == simulated.digest
    assert simulated.features.shape == (12, 36)
    with pytest.raises(InputError, match=r"set order='upper'"):
        load_cohort(Component(name="fnc", settings=files | {"order": "lower"}), workdir)


def test_volumes_are_those_on_disk(workdir):
    cohort = load(workdir, modality="volume", coarsen=3)
    assert cohort.modality == "volume"
    folder = workdir / "cohort" / "realistic-12-0"
    for row, who in enumerate(cohort.people.index):
        (path,) = folder.glob(f"{who}/anat/*.nii.gz")
        image = nibabel.load(path).get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(cohort.features[row], block_average(image, 3))
    assert list(cohort.people.columns) == ["group", "age", "sex", "site", "fd"]
    assert any("27.0, 27.0, 27.0" in note for note in cohort.notes)


def test_all_modalities_are_of_the_same_people(workdir):
    volumes, vectors = load(workdir, modality="volume"), load(workdir)
    signals = load(workdir, modality="timecourses", timepoints=30)
    assert volumes.people.equals(vectors.people)
    assert signals.people.equals(vectors.people)
    assert len({cohort.digest for cohort in (volumes, vectors, signals)}) == 3


def test_time_courses_are_those_on_disk(workdir):
    cohort = load(workdir, modality="timecourses", timepoints=30)
    assert (cohort.modality, cohort.features.shape) == ("timecourses", (12, 30, 9))
    assert len(cohort.space.networks) == 9
    folder = workdir / "cohort" / "realistic-12-0"
    for row, who in enumerate(cohort.people.index):
        (path,) = folder.glob(f"{who}/func/*.tsv")
        table = np.loadtxt(path, skiprows=1)
        np.testing.assert_allclose(cohort.features[row], table, rtol=1e-6)
    path.unlink()
    with pytest.raises(InputError, match=rf"{who} stands in participants.tsv but"):
        load(workdir, modality="timecourses", timepoints=30)


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        ("fnc", "1 only in participants.tsv"),
        ("timecourses", "stands in participants.tsv but|crop them to one length"),
        ("volume", "There is no image"),
    ],
)
def test_dirty_files_are_refused_with_a_sentence(tmp_path, modality, words):
    settings = {"preset": "dirty", "modality": modality, "timepoints": 20}
    with pytest.raises(InputError, match=r"stands on lines .* differ in other columns"):
        load(tmp_path, **settings)
    table = tmp_path / "cohort" / "dirty-12-0" / "participants.tsv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))  # without the second row of one person
    with pytest.raises(InputError, match=words):
        load(tmp_path, **settings)


def test_without_volumes(workdir):
    cohort = load(workdir, volumes=False)
    assert (workdir / "cohort" / "realistic-12-0-fnc").is_dir()
    assert cohort.digest == load(workdir).digest
    with pytest.raises(InputError, match=r"modality='volume' needs volumes=true"):
        load(workdir, volumes=False, modality="volume")


def test_a_folder_with_another_cohort_is_refused(workdir):
    folder = simulate(workdir / "mine", **SMALL, volumes=False)
    with pytest.raises(InputError, match=r"seed=0, asked for is seed=1"):
        load(workdir, folder=folder, seed=1, volumes=False)
