import hashlib
import json
from typing import get_args

import nibabel
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spectral_mlops.cohorts import PRESETS, load_cohort, simulate, simulator
from spectral_mlops.cohorts.simulator import Preset
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError, UnknownNameError

SMALL = {"people": 16, "components": 12, "voxel_mm": 9.0}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("cohorts") / "small", **SMALL)


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_arguments_give_the_same_bytes(small, tmp_path):
    first, again = hashes(small), hashes(simulate(tmp_path / "again", **SMALL))
    assert first == again
    assert len(first) == 16 + 8
    other = hashes(simulate(tmp_path / "other", **SMALL, seed=1))
    assert {name for name in first if first[name] == other[name]} == {
        "README",
        "fnc.json",
        "participants.json",
    }


def test_connectivity_does_not_depend_on_volumes(small, tmp_path):
    folder = simulate(tmp_path / "a", **SMALL, volumes=False)
    for name in ("fnc.csv", "participants.tsv"):
        assert (folder / name).read_bytes() == (small / name).read_bytes()
    assert not list(folder.glob("sub-*"))


def test_the_folder_reads_like_any_other_study(small):
    people = pd.read_csv(small / "participants.tsv", sep="\t", index_col=0)
    assert list(people.columns) == ["group", "age", "sex", "site", "fd"]
    described = json.loads((small / "participants.json").read_text())
    assert list(described) == list(people.columns)
    card = json.loads((small / "dataset_description.json").read_text())
    assert card["GeneratedBy"][0]["Name"] == "spectral_mlops.cohorts.simulator"
    for who in people.index:
        name = f"{who}_space-MNI152NLin2009cAsym_label-GM_probseg.nii.gz"
        image = nibabel.load(small / who / "anat" / name)
        assert image.get_data_dtype() == np.uint8
        assert image.dataobj.slope == pytest.approx(1 / 255)
        assert image.header["sform_code"] == 4
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")


def test_the_truth_is_kept(small):
    truth = np.load(small / "ground_truth" / "truth.npz", allow_pickle=False)
    matrices = truth["correlations"]
    assert matrices.shape == (16, 12, 12)
    table = pd.read_csv(small / "fnc.csv", index_col=0)
    rows, columns = np.triu_indices(12, 1)
    np.testing.assert_allclose(table, matrices[:, rows, columns], atol=6e-7)
    networks = json.loads((small / "fnc.json").read_text())["Networks"]
    assert table.columns[0] == f"{networks[0]}-{networks[1]}"
    assert table.columns[-1] == f"{networks[-2]}-{networks[-1]}"
    assert truth["delta"].shape == (12, 12)
    assert truth["atrophy"].shape == truth["template"].shape
    spec = json.loads((small / "ground_truth" / "spec.json").read_text())
    assert (spec["preset"], spec["effect"], spec["seed"]) == ("realistic", 1.0, 0)


def test_a_cohort_that_stands_is_reused(small):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert simulate(small, **SMALL) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_another_cohort_is_not_overwritten(small, tmp_path, write):
    message = "preset='realistic', effect=1.0, asked for is preset='easy', effect=2.0"
    with pytest.raises(InputError, match=rf"{message}; name another folder"):
        simulate(small, **SMALL, preset="easy")
    write("mine.txt", "x")
    with pytest.raises(InputError, match=r"is not a simulated cohort; name another"):
        simulate(tmp_path, **SMALL)
    with pytest.raises(InputError, match=r"is not a simulated cohort"):
        simulate(tmp_path / "mine.txt", **SMALL)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    folder = simulate(tmp_path / "empty", **SMALL, volumes=False)
    assert (folder / "fnc.csv").is_file()


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of paper")

    monkeypatch.setattr(simulator.layout, "write_truth", fail)
    with pytest.raises(RuntimeError, match=r"out of paper"):
        simulate(tmp_path / "a", **SMALL, volumes=False)
    assert list(tmp_path.iterdir()) == []


def test_a_faster_process_wins(tmp_path, monkeypatch):
    write_truth = simulator.layout.write_truth

    def overtaken(*args):
        write_truth(*args)
        monkeypatch.setattr(simulator.layout, "write_truth", write_truth)
        simulate(tmp_path / "a", **SMALL, volumes=False)

    monkeypatch.setattr(simulator.layout, "write_truth", overtaken)
    folder = simulate(tmp_path / "a", **SMALL, volumes=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (folder / "ground_truth" / "truth.npz").is_file()


def test_progress_is_told(tmp_path):
    seen = []
    simulate(tmp_path / "a", **SMALL, progress=lambda *args: seen.append(args))
    assert seen == [("simulating grey matter", k, 16) for k in range(1, 17)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": 3}, "people=3"),
        ({"components": 6}, "components=6"),
        ({"voxel_mm": 1.0}, "voxel_mm=1.0: .* between 2 and 20"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_numbers_write_nothing(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        simulate(tmp_path / "a", **(SMALL | changes))
    assert list(tmp_path.iterdir()) == []


def test_unknown_preset(tmp_path):
    with pytest.raises(UnknownNameError, match=r"'esy'.*null, realistic, easy.*'easy'"):
        simulate(tmp_path / "a", preset="esy")


def test_the_setting_knows_all_presets():
    assert set(get_args(Preset)) == set(PRESETS)


def auc(cohort):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    features = cohort.features.reshape(len(cohort.people), -1)
    y = cohort.labels == cohort.positive
    return cross_val_score(model, features, y, cv=5, scoring="roc_auc").mean()


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [("null", 0.42, 0.58), ("realistic", 0.65, 0.78), ("easy", 0.84, 0.95)],
)
def test_presets_are_as_hard_as_they_say(tmp_path, preset, low, high):
    scores = []
    for seed in range(5):
        settings = {"preset": preset, "seed": seed, "volumes": False}
        cohort = load_cohort(Component(name="simulated", settings=settings), tmp_path)
        scores.append(auc(cohort))
    assert low < np.mean(scores) < high
