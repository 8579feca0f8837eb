import os
import subprocess
import sys
from collections import namedtuple

import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.cohorts.cache import cached_volumes
from spectral_mlops.cohorts.volumes import Grid, gather_volumes, read_volumes
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

AFFINE = np.diag([2.0, 3, 4, 1])
SHAPE = (5, 6, 7)


def save(path, data, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def values(rng):
    return rng.normal(size=(4, *SHAPE)).astype(np.float32)


@pytest.fixture
def paths(tmp_path, values):
    """Four people, one of them in a left-handed file."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    files = {who: tmp_path / f"{who}.nii.gz" for who in "dacb"}
    for (who, path), one in zip(files.items(), values, strict=True):
        if who == "c":
            save(path, one[::-1].copy(), AFFINE @ flip)
        else:
            save(path, one)
    return files


def test_the_map_holds_what_reading_gives(paths, values, tmp_path):
    mapped, affine, notes = cached_volumes(paths, tmp_path / "cache")
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, values)
    np.testing.assert_array_equal(affine, AFFINE)
    assert notes[0] == "volumes 5x6x7, voxels of [2.0, 3.0, 4.0] mm (coarsen=1)"
    coarse, affine, _ = cached_volumes(paths, tmp_path / "cache", coarsen=2)
    expected = read_volumes(paths, 2)
    np.testing.assert_array_equal(coarse, expected[0])
    np.testing.assert_array_equal(affine, expected[1])


def test_the_second_time_nothing_is_read(paths, tmp_path, monkeypatch):
    first, affine, _ = cached_volumes(paths, tmp_path / "cache")
    monkeypatch.setattr("spectral_mlops.cohorts.cache.gather_volumes", None)
    for path in paths.values():
        os.utime(path, (0, 0))
    moved = {}
    for who, path in paths.items():
        moved[who] = path.rename(tmp_path / f"moved-{path.name}")
    again, same, notes = cached_volumes(moved, tmp_path / "cache")
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(affine, same)
    assert "read from the cache" in notes[-1]


def test_another_voxel_order_or_transform_is_another_entry(paths, values, tmp_path):
    folder = tmp_path / "cache"
    cached_volumes(paths, folder)
    cached_volumes(dict(reversed(paths.items())), folder)
    cached_volumes(paths, folder, coarsen=2)
    cached_volumes(paths, folder, grid=Grid((4, 4, 4), AFFINE))
    values[0, 1, 2, 3] += 1
    save(paths["d"], values[0])
    mapped, _, _ = cached_volumes(paths, folder)
    np.testing.assert_array_equal(mapped, values)
    assert len(list(folder.glob("*.npy"))) == len(list(folder.glob("*.json"))) == 5
    assert len(list(folder.iterdir())) == 10


@pytest.mark.parametrize("ending", [".npy", ".json"])
def test_a_damaged_entry_is_written_anew(paths, values, tmp_path, ending):
    cached_volumes(paths, tmp_path / "cache")
    entry = next((tmp_path / "cache").glob(f"*{ending}"))
    entry.write_bytes(entry.read_bytes()[:50])
    mapped, _, _ = cached_volumes(paths, tmp_path / "cache")
    np.testing.assert_array_equal(mapped, values)


def test_a_refused_file_leaves_nothing_behind(paths, values, tmp_path):
    values[3, 0, 0, 0] = np.nan
    save(paths["b"], values[3])
    with pytest.raises(InputError, match=r"b.nii.gz holds 1 values that are not"):
        cached_volumes(paths, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(InputError, match=r"There is no image .*absent.nii"):
        cached_volumes(paths | {"x": tmp_path / "absent.nii"}, tmp_path / "cache")


def test_a_full_disk_is_told_before_anything_is_written(paths, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(1, 1, 100)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs 0.0 GB and the disk has 0.0 GB free"):
        cached_volumes(paths, tmp_path / "cache")


def test_a_folder_that_is_a_file(paths, write):
    with pytest.raises(InputError, match=r"cannot be written \(File exists\)"):
        cached_volumes(paths, write("cache", ""))


def test_resampling_is_linear_and_counted(tmp_path):
    x = np.arange(8, dtype=np.float32)
    ramp = np.broadcast_to(x[:, None, None], (8, 8, 8)).copy()
    files = {"a": save(tmp_path / "a.nii", ramp, np.eye(4))}
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    files["b"] = save(tmp_path / "b.nii", ramp + np.float32(0.5), shifted)
    with pytest.raises(InputError, match=r"set resample_to=; nothing is resampled sil"):
        gather_volumes(files)
    kept, affine, notes = gather_volumes(files, grid=Grid((8, 8, 8), np.eye(4)))
    np.testing.assert_array_equal(affine, np.eye(4))
    np.testing.assert_array_equal(kept[0], ramp)
    np.testing.assert_allclose(kept[1, 1:7, 1:7, 1:7], ramp[1:7, 1:7, 1:7], atol=1e-5)
    assert notes[-1] == "1 of 2 volumes resampled linearly by nilearn"


@pytest.fixture
def load(tmp_path, paths):
    del paths
    text = "id\tgroup\nc\tpatient\na\tcontrol\nb\tpatient\nd\tcontrol\n"
    (tmp_path / "people.tsv").write_text(text)

    def load(**settings):
        files = {"images": "{id}.nii.gz", "labels": "people.tsv"} | settings
        return load_cohort(Component(name="volumes", settings=files), tmp_path)

    return load


def test_a_cohort_of_volumes_stays_on_disk(load, values):
    cohort = load()
    assert isinstance(cohort.features, np.memmap)
    np.testing.assert_array_equal(cohort.features[cohort.rows("dacb")], values)
    assert cohort.labels.tolist() == ["patient", "control", "patient", "control"]
    np.testing.assert_array_equal(cohort.space.affine, AFFINE)
    assert load().digest == load(in_memory=True).digest == cohort.digest
    with pytest.raises(InputError, match=r"names one file for everyone"):
        load(images="all.nii")


def test_mixed_grids_of_a_cohort(load, tmp_path, values):
    save(tmp_path / "b.nii.gz", values[3], AFFINE @ np.diag([1.1, 1, 1, 1]))
    with pytest.raises(InputError, match=r"b.nii.gz has affine .*c.nii.gz has"):
        load()
    notes = load(resample_to="first").notes
    assert any(note.startswith("1 of 4 volumes resampled") for note in notes)
    assert load(resample_to="a.nii.gz").features.shape == (4, *SHAPE)


MANY = """
import sys
from pathlib import Path
import pandas as pd
from spectral_mlops.cohorts import Cohort
from spectral_mlops.cohorts.cache import cached_volumes

def used():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if "RssAnon" in line).split()[1]) // 1024

folder = Path(sys.argv[1])
paths = {f"s{k}": folder / f"{k % 2}.nii" for k in range(60)}
cached_volumes(dict(list(paths.items())[:2]), folder / "cache")
before = used()
mapped, _, _ = cached_volumes(paths, folder / "cache")
people = pd.DataFrame({"group": ["a", "b"] * 30}, index=list(paths))
cohort = Cohort(people, mapped, "volume", "group", "b", "made up")
assert cohort.digest
print(used() - before, mapped.nbytes // 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sixty_whole_volumes_are_never_all_in_memory(tmp_path, rng):
    shape = (121, 145, 121)
    for name in "01":
        save(tmp_path / f"{name}.nii", rng.normal(size=shape).astype(np.float32))
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, size = map(int, done.stdout.split())
    assert size == 60 * np.prod(shape) * 4 // 2**20
    assert grown < 150  # MiB
