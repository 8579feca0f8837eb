"""People whose features were made differently are refused, whatever tells it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.cohorts.patterns import unnamed_folder
from spectral_mlops.cohorts.pipelines import check_pipelines
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

IDS = ["a", "b", "c", "d"]


def people(**columns):
    index = pd.Index(IDS, name="participant_id")
    return pd.DataFrame({"group": ["x", "y", "x", "y"], **columns}, index=index)


def card(folder, name, version="1"):
    folder.mkdir(parents=True, exist_ok=True)
    tools = {"GeneratedBy": [{"Name": name, "Version": version}]}
    (folder / "dataset_description.json").write_text(json.dumps(tools))
    return folder


def test_a_column_of_the_table_tells():
    table = people(Pipeline=["cpac", "cpac", "dparsf", None])
    said = r"labels: people come from 3 pipelines, 2 of Pipeline=cpac \(a, b\) and 1 of"
    with pytest.raises(InputError, match=said):
        check_pipelines(table, {}, "labels", False)
    assert check_pipelines(people(Pipeline=["cpac"] * 4), {}, "labels", False) == ()
    assert check_pipelines(people(), {}, "labels", False) == ()


def test_the_nearest_card_of_derivatives_tells(tmp_path):
    """Of two folders of derivatives, one pattern may find some people in each."""
    for name in ("one", "two"):
        card(tmp_path / name, "fMRIPrep", {"one": "20.2.1", "two": "23.1.0"}[name])
    paths = {
        who: tmp_path / ("one" if k < 3 else "two") / who / "func" / f"{who}_bold.nii"
        for k, who in enumerate(IDS)
    }
    said = r"3 of fMRIPrep 20.2.1 \(a, b, c\) and 1 of fMRIPrep 23.1.0 \(d\)"
    with pytest.raises(InputError, match=said):
        check_pipelines(people(), paths, "x", False)
    (note,) = check_pipelines(people(), paths, "x", True)
    assert note.startswith("2 pipelines pooled (pool_pipelines=true): 3 of fMRIPrep")
    card(tmp_path / "two", "fMRIPrep", "20.2.1")
    assert check_pipelines(people(), paths, "x", False) == ()


def test_folders_that_nothing_tells_about_are_named_by_the_user(tmp_path):
    """Without cards, two folders that a wild card finds may be two pipelines."""
    paths = {
        who: tmp_path / ("one" if k < 3 else "two") / "ts" / f"{who}.tsv"
        for k, who in enumerate(IDS)
    }
    said = (
        r"3 of a pipeline not stated \(no dataset_description.json\) in one/ts "
        r"\(a, b, c\) and 1 .* in two/ts \(d\); .*name one folder, or have a column"
    )
    with pytest.raises(InputError, match=said):
        check_pipelines(people(), paths, "*/ts/{participant_id}.tsv", False)
    (note,) = check_pipelines(people(), paths, "*/ts/{participant_id}.tsv", True)
    assert "2 pipelines pooled" in note
    named = ("{site}/ts/{participant_id}.tsv", "one/ts/{participant_id}.tsv")
    for pattern in (*named, "{participant_id}/ses-*/{id}.tsv", "a bids folder"):
        assert check_pipelines(people(), paths, pattern, False) == ()
    card(tmp_path, "ours", "1")  # one card above both tells
    assert check_pipelines(people(), paths, "*/ts/{participant_id}.tsv", False) == ()


@pytest.mark.parametrize(
    ("pattern", "path", "folder"),
    [
        ("d-*/ts/{participant_id}_*.tsv", "/work/d-1/ts/a_x.tsv", "d-1/ts"),
        ("/data/*/{id}/f?nc/{id}.tsv", "/data/two/a/func/a.tsv", "/data/two"),
        ("{site}/{id}.tsv", "/work/S/a.tsv", ""),
        ("ts/{id}.tsv", "/work/ts/a.tsv", ""),
        ("*/all.npz", "/work/ts/all.npz", ""),
    ],
)
def test_folders_that_a_wild_card_alone_leads_to(pattern, path, folder):
    assert unnamed_folder(pattern, Path(path)) == folder


def test_sessions_and_runs_are_no_pipelines(tmp_path):
    names = ["a_ses-1_bold.nii", "b_ses-2_bold.nii", "c_run-1_bold.nii", "d_bold.nii"]
    paths = {who: tmp_path / name for who, name in zip(IDS, names, strict=True)}
    assert check_pipelines(people(), paths, "x", False) == ()


def write_series(folder, names, rng):
    for who, name in zip(IDS, names, strict=True):
        text = "\n".join(
            "\t".join(f"{x:.4f}" for x in r) for r in rng.normal(size=(9, 3))
        )
        (folder / f"{who}_{name}_timeseries.tsv").write_text("A\tB\tC\n" + text + "\n")
    people().to_csv(folder / "labels.csv")


def test_time_courses_found_by_a_pattern(tmp_path, rng):
    write_series(tmp_path, ["desc-cpac", "desc-niak", "desc-cpac", "desc-cpac"], rng)
    settings = {"series": "{participant_id}_*.tsv", "labels": "labels.csv"}
    settings["positive"] = "x"
    with pytest.raises(
        InputError, match=r"3 of desc-cpac \(a, c, d\) and 1 of desc-ni"
    ):
        load_cohort(Component(name="timecourses", settings=settings), tmp_path)
    settings["pool_pipelines"] = True
    cohort = load_cohort(Component(name="timecourses", settings=settings), tmp_path)
    assert len(cohort.people) == 4


def test_connectivity_with_a_column(tmp_path, rng):
    vectors = np.array(
        [np.corrcoef(rng.normal(size=(4, 20)))[np.triu_indices(4, 1)] for _ in IDS]
    )
    table = pd.DataFrame(vectors, index=pd.Index(IDS, name="participant_id"))
    table.to_csv(tmp_path / "fnc.csv")
    people(preproc=["gsr", "none"] * 2).to_csv(tmp_path / "labels.csv")
    settings = {"features": "fnc.csv", "labels": "labels.csv", "order": "upper"}
    settings["positive"] = "x"
    with pytest.raises(InputError, match=r"2 of preproc not st.* and 2 of preproc=gsr"):
        load_cohort(Component(name="fnc", settings=settings), tmp_path)
    load_cohort(
        Component(name="fnc", settings=settings | {"pool_pipelines": True}), tmp_path
    )
