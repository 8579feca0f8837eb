import hashlib
import json
from typing import get_args

import nibabel
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict, cross_val_score
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
        ({"timepoints": 9}, "timepoints=9"),
        ({"preset": "dirty", "people": 7}, "'dirty' needs 8 people"),
    ],
)
def test_impossible_numbers_write_nothing(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        simulate(tmp_path / "a", **(SMALL | changes))
    assert list(tmp_path.iterdir()) == []


def test_unknown_preset(tmp_path):
    with pytest.raises(
        UnknownNameError, match=r"'esy'.*realistic, easy, confounded, dirty.*'easy'"
    ):
        simulate(tmp_path / "a", preset="esy")


def test_the_setting_knows_all_presets():
    assert set(get_args(Preset)) == set(PRESETS)


def signals(folder, who):
    path = folder / who / "func" / f"{who}_task-rest_desc-ica_timeseries.tsv"
    return pd.read_csv(path, sep="\t")


def test_time_courses_are_added_without_touching_the_rest(small, tmp_path):
    folder = simulate(tmp_path / "a", **SMALL, timecourses=True, timepoints=20)
    both = hashes(folder)
    assert hashes(small).items() <= both.items()
    assert len(both) == 16 + 8 + 16 + 1
    later = simulate(tmp_path / "b", **SMALL)
    simulate(later, **SMALL, timecourses=True, timepoints=20)
    assert hashes(later) == both
    with pytest.raises(InputError, match=r"of 20 time points, asked for is .*=21"):
        simulate(later, **SMALL, timecourses=True, timepoints=21)
    networks = json.loads((small / "fnc.json").read_text())["Networks"]
    table = signals(folder, "sub-001")
    assert (list(table.columns), table.shape) == (networks, (20, 12))
    card = json.loads((folder / "task-rest_desc-ica_timeseries.json").read_text())
    assert (card["RepetitionTime"], card["Networks"]) == (2.0, networks)


def test_time_courses_correlate_as_the_truth_says(tmp_path):
    settings = {"people": 4, "components": 8, "volumes": False, "seed": 5}
    folder = simulate(tmp_path / "a", **settings, timecourses=True, timepoints=6000)
    truth = np.load(folder / "ground_truth" / "truth.npz")["correlations"]
    table = pd.read_csv(folder / "fnc.csv", index_col=0)
    for row, who in enumerate(table.index):
        found = np.corrcoef(signals(folder, who).to_numpy().T)
        np.testing.assert_allclose(found, truth[row], rtol=0, atol=0.06)
        upper = found[np.triu_indices(8, 1)]
        assert np.corrcoef(upper, table.loc[who])[0, 1] > 0.98


def test_confounded_groups_differ_by_scanner_alone(tmp_path):
    settings = {"people": 200, "components": 20, "volumes": False}
    folder = simulate(tmp_path / "a", "confounded", **settings)
    people = pd.read_csv(folder / "participants.tsv", sep="\t", index_col=0)
    x = [people["group"] == "patient", people["site"] == "B"]
    assert np.corrcoef(x)[0, 1] == pytest.approx(0.8, abs=0.02)
    truth = np.load(folder / "ground_truth" / "truth.npz")
    assert truth["site_pattern"].std() == pytest.approx(0.13, rel=0.1)
    table = pd.read_csv(folder / "fnc.csv", index_col=0).to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    anywhere = cross_val_score(model, table, x[0], cv=5, scoring="roc_auc").mean()
    assert anywhere > 0.7
    said = cross_val_predict(model, table, x[0], cv=5, method="decision_function")
    for site in "AB":  # within a scanner, groups are exchangeable
        there = (people["site"] == site).to_numpy()
        assert abs(roc_auc_score(x[0][there], said[there]) - 0.5) < 0.25


def test_dirty_is_realistic_but_for_what_it_lists(tmp_path):
    settings = SMALL | {"timecourses": True, "timepoints": 20}
    clean = simulate(tmp_path / "clean", **settings)
    dirty = simulate(tmp_path / "dirty", "dirty", **settings)
    told = json.loads((dirty / "ground_truth" / "defects.json").read_text())
    (missing,), (twice,) = told["listed_without_files"], told["two_different_rows"]
    people = pd.read_csv(dirty / "participants.tsv", sep="\t")
    assert set(people["participant_id"][people["participant_id"].duplicated()]) == {
        twice
    }
    assert missing in set(people["participant_id"])
    assert not list(dirty.glob(f"{missing}/**/*"))
    fnc = pd.read_csv(dirty / "fnc.csv", index_col=0)
    assert set(fnc.index) == set(people["participant_id"]) - {missing}
    lacking = [told["network_is_nan"], told["network_is_constant"]]
    assert set(fnc.index[fnc.isna().any(axis=1)]) == {x["person"] for x in lacking}
    assert fnc.isna().sum().sum() == 2 * 11
    network = lacking[0]["network"]
    assert signals(dirty, lacking[0]["person"])[network].isna().all()
    assert signals(dirty, lacking[1]["person"])[network].std() == 0
    for who in fnc.index:
        rows = len(signals(dirty, who))
        assert rows == (16 if who in told["fewer_time_points"] else 20)
        (path,) = (dirty / who / "anat").glob("*.nii.gz")
        image, other = nibabel.load(path), nibabel.load(clean / path.relative_to(dirty))
        left = who in told["map_is_stored_to_the_left"]
        assert nibabel.aff2axcodes(image.affine)[0] == ("L" if left else "R")
        assert (image.header.endianness == ">") == (who in told["map_is_big_endian"])
        turned = nibabel.as_closest_canonical(image)
        np.testing.assert_allclose(turned.affine, other.affine)
        np.testing.assert_allclose(turned.get_fdata(), other.get_fdata(), atol=1e-6)


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
