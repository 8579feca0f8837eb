"""Files with bytes that fell over: read, or refused on one line, and nothing else."""

import nibabel
import numpy as np
import pytest
from scipy.io import savemat

from spectral_mlops.cohorts.atlas import atlas_extractor
from spectral_mlops.cohorts.damage import MOST, reason_of
from spectral_mlops.cohorts.series_files import read_series
from spectral_mlops.cohorts.tables import read_people
from spectral_mlops.cohorts.vectors import read_vectors
from spectral_mlops.cohorts.volumes import read_volume
from spectral_mlops.errors import SpectralError

SHAPE, AFFINE = (4, 5, 6), np.diag([2.0, 3, 4, 1])
TABLE = "id,group,age\na,x,3\nb,y,4\nc,x,5\n"
TIMES = 60


def write(folder, name, rng):
    """Write a sound file of one kind; returns it, and what reads it."""
    path = folder / name
    series = rng.normal(size=(20, 3))
    if name == "map.nii":
        image = nibabel.Nifti1Image(rng.random(SHAPE, np.float32), AFFINE)
        nibabel.save(image, path)
        return path, read_volume
    if name == "bold.nii":
        regions = np.zeros(SHAPE, np.int16)
        regions[:2], regions[3] = 1, 2
        nibabel.save(nibabel.Nifti1Image(regions, AFFINE), folder / "atlas.nii")
        bold = rng.random((*SHAPE, 4), np.float32)
        nibabel.save(nibabel.Nifti1Image(bold, AFFINE), path)
        return path, atlas_extractor(folder / "atlas.nii", "labels", False)
    if name == "tc.mat":
        savemat(path, {"tc": series}, do_compression=True)
    elif name == "tc.npy":
        np.save(path, series)
    elif name == "tc.npz":
        np.savez(path, tc=series)
    elif name == "fnc.npz":
        np.savez_compressed(path, ids=np.array(["a", "b"]), features=series[:2])
        return path, read_vectors
    elif name == "people.csv":
        path.write_text(TABLE)
        return path, read_people
    else:
        path.write_text("A\tB\n1\t2\n3\t4\n5\t6\n")
    return path, read_series


KINDS = (
    *("map.nii", "bold.nii", "tc.mat", "tc.npy", "tc.npz", "fnc.npz"),
    *("people.csv", "tc.tsv"),
)


@pytest.mark.parametrize("name", KINDS)
def test_bytes_that_fell_over(tmp_path, name):
    rng = np.random.default_rng([ord(letter) for letter in name])
    path, read = write(tmp_path, name, rng)
    read(path)
    sound = path.read_bytes()
    header = min(len(sound), 352)
    said = []
    for _ in range(TIMES):
        damaged = bytearray(sound)
        for at in rng.integers(header, size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        if rng.random() < 0.1:
            del damaged[rng.integers(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            read(path)
        except SpectralError as error:
            said.append(str(error))
    assert said
    assert all(str(path) in one and "\n" not in one for one in said)


def test_reasons_are_short_and_on_one_line():
    assert reason_of(ValueError("lines\n and  blanks.")) == "lines and blanks"
    assert reason_of(EOFError()) == "EOFError"
    assert len(reason_of(b"\x00" * 900)) == MOST + 1
