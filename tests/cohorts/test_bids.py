import json
import os

import nibabel
import numpy as np
import pandas as pd
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.cohorts.bids_files import find_derivatives, parse_name
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError, UnknownNameError

AFFINE = np.diag([3.0, 3, 3, 1])
SHAPE = (4, 5, 6)
GROUPS = {
    "sub-01": "CON",
    "sub-02": "SZ",
    "sub-03": "BP",
    "sub-04": "CON",
    "sub-05": "SZ",
}
GM = "space-MNI152NLin2009cAsym_label-GM_probseg.nii.gz"


@pytest.fixture
def folder(tmp_path):
    """A data set of five people in three groups."""
    rows = ["participant_id\tdx\tAge\tgender\tSITE_ID\tfunc_mean_fd"]
    rows += [
        f"{who}\t{dx}\t{20 + k}\tF\tA\tn/a"
        for k, (who, dx) in enumerate(GROUPS.items())
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    levels = {"dx": {"Levels": {"CON": "control", "SZ": {"Description": "patient"}}}}
    (tmp_path / "participants.json").write_text(json.dumps(levels))
    return tmp_path


@pytest.fixture
def maps(folder, rng):
    """One grey-matter map a person, by id; white matter beside it."""
    values = {}
    for who in GROUPS:
        anat = folder / who / "anat"
        anat.mkdir(parents=True)
        values[who] = rng.uniform(size=SHAPE).astype(np.float32)
        save(anat / f"{who}_{GM}", values[who])
        save(anat / f"{who}_{GM.replace('GM', 'WM')}", 1 - values[who])
        save(anat / f"{who}_T1w.nii.gz", values[who])
    return values


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)


def load(folder, **settings):
    given = {"folder": str(folder), "positive": "SZ"} | settings
    return load_cohort(Component(name="bids", settings=given), folder)


def test_volumes_by_entities(folder, maps):
    cohort = load(folder, entities={"label": "GM"})
    assert cohort.modality == "volume"
    assert isinstance(cohort.features, np.memmap)
    np.testing.assert_array_equal(cohort.features, list(maps.values()))
    assert cohort.groups == {"BP": 1, "CON": 2, "SZ": 2}
    assert cohort.people["age"].tolist() == [20, 21, 22, 23, 24]
    notes = "\n".join(cohort.notes)
    for part in (
        "group = 'dx', age = 'Age', sex = 'gender', site = 'SITE_ID', fd = 'func_mean",
        "'dx' as described: CON = control; SZ = patient",
        "'dx': no description of BP",
        "5 people joined by id",
        "volumes 4x5x6, voxels of [3.0, 3.0, 3.0] mm (coarsen=1)",
    ):
        assert part in notes
    other = load(folder, entities={"label": "WM", "space": "MNI152NLin2009cAsym"})
    np.testing.assert_allclose(other.features, 1 - cohort.features, atol=1e-6)


def test_two_files_that_fit_name_what_they_differ_in(folder, maps):
    del maps
    with pytest.raises(InputError, match=r"sub-01 has 2 files.*differ in label: name"):
        load(folder)
    (folder / "sub-02" / "ses-2" / "anat").mkdir(parents=True)
    again = folder / "sub-02" / "ses-2" / "anat" / f"sub-02_ses-2_{GM}"
    os.link(folder / "sub-02" / "anat" / f"sub-02_{GM}", again)
    with pytest.raises(InputError, match=r"sub-02 has 2 files .*differ in ses"):
        load(folder, entities={"label": "GM"})
    assert len(load(folder, entities={"label": "GM", "ses": ""}).people) == 5
    wanted = {"label": "GM", "session": "ses-2"}
    with pytest.raises(InputError, match=r"1 people joined by id, 4 only in part"):
        load(folder, entities=wanted)


def test_nobody_has_such_a_file(folder, maps):
    del maps
    with pytest.raises(InputError, match=r"with label-CSF; there are space-.*label-GM"):
        load(folder, entities={"label": "CSF"})
    with pytest.raises(InputError, match=r"names a person.*keep="):
        load(folder, entities={"subject": "01"})
    with pytest.raises(InputError, match=r"There is no folder .*absent"):
        load(folder, derivatives=str(folder / "absent"))


def test_people_without_files_and_files_without_people(folder, maps, rng):
    del maps
    (folder / "sub-03" / "anat" / f"sub-03_{GM}").unlink()
    save(folder / "sub-9" / "anat" / f"sub-9_{GM}", np.ones(SHAPE, np.float32))
    told = r"4 people joined by id, 1 only in .* \(sub-9\) and 1 only in .* \(sub-03\)"
    with pytest.raises(InputError, match=told):
        load(folder, entities={"label": "GM"})
    cohort = load(folder, entities={"label": "GM"}, unmatched="drop")
    assert list(cohort.people.index) == ["sub-01", "sub-02", "sub-04", "sub-05"]


def test_groups_to_keep_and_to_name(folder, maps):
    del maps
    cohort = load(
        folder, entities={"label": "GM"}, keep=["CON", "SZ"], unmatched="drop"
    )
    assert cohort.groups == {"CON": 2, "SZ": 2}
    assert "keep: 1 people of other labels left out" in cohort.notes
    names = {"CON": "control", "SZ": "psychosis", "BP": "psychosis"}
    merged = load(
        folder, entities={"label": "GM"}, label_names=names, positive="psychosis"
    )
    assert merged.groups == {"control": 2, "psychosis": 3}
    with pytest.raises(InputError, match=r"which label of 'dx' counts as positive"):
        load(folder, entities={"label": "GM"}, positive=None)


def write_series(folder, who, values, name="desc-ica_timeseries.tsv"):
    path = folder / who / "func" / f"{who}_task-rest_{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["SC1\tDM1", *("\t".join(map(str, row)) for row in values)]
    path.write_text("\n".join(lines) + "\n")


def test_time_courses(folder, rng):
    values = {who: rng.normal(size=(8 + k, 2)) for k, who in enumerate(GROUPS)}
    for who, one in values.items():
        write_series(folder, who, one)
        write_series(folder, who, one[:, :1], "desc-confounds_timeseries.tsv")
    settings = {"modality": "timecourses", "entities": {"desc": "ica"}}
    cohort = load(folder, **settings, lengths="crop")
    np.testing.assert_allclose(
        cohort.features, [one[:8] for one in values.values()], rtol=1e-6
    )
    assert cohort.space.networks == ("SC1", "DM1")
    r = load(folder, **settings, lengths="pad", connectivity="correlation")
    expected = [[np.corrcoef(one.T)[0, 1]] for one in values.values()]
    np.testing.assert_allclose(r.features, expected, rtol=1e-5)


@pytest.fixture
def fmriprep(folder, rng):
    """Images with motion in them, and their confounds."""
    nuisance = {}
    for k, who in enumerate(GROUPS):
        stem = folder / who / "func" / f"{who}_task-rest"
        motion = rng.normal(size=(40, 6))
        names = [f"{a}_{b}" for a in ("trans", "rot") for b in "xyz"]
        table = pd.DataFrame(motion, columns=names)
        fd = np.full(40, 0.1)
        fd[0] = np.nan
        fd[20 + k] = 2.0
        table["framewise_displacement"] = fd
        table["std_dvars"] = 1.0
        table.loc[0, "std_dvars"] = np.nan
        stem.parent.mkdir(parents=True)
        table.to_csv(
            f"{stem}_desc-confounds_timeseries.tsv", sep="\t", na_rep="n/a", index=False
        )
        described = {name: {} for name in table.columns}
        with open(f"{stem}_desc-confounds_timeseries.json", "w") as stream:
            json.dump(described, stream)
        bold = rng.normal(size=(*SHAPE, 40)) + motion @ rng.normal(size=6)
        image = f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
        save(folder / image, bold.astype(np.float32))
        nuisance[who] = (motion, bold)
    regions = np.zeros(SHAPE, np.int16)
    regions[:2], regions[3] = 1, 2
    save(folder / "atlas.nii", regions)
    return nuisance, regions


BOLD = {"modality": "timecourses", "suffix": "bold", "atlas": "atlas.nii"}


def test_images_with_confounds_regressed(folder, fmriprep):
    nuisance, regions = fmriprep
    plain = load(folder, **BOLD)
    assert plain.features.shape == (5, 40, 2)
    assert "no confounds regressed (confounds=[])" in plain.notes
    clean = load(folder, **BOLD, confounds=["motion"], motion="basic")
    for row, raw, (motion, bold) in zip(
        clean.features, plain.features, nuisance.values(), strict=True
    ):
        means = np.stack([bold[regions == k].mean(axis=0) for k in (1, 2)], axis=1)
        np.testing.assert_allclose(raw, means, rtol=0, atol=1e-5)
        design = np.column_stack([motion - motion.mean(axis=0), np.ones(40)])
        fitted = design[:, :6] @ np.linalg.lstsq(design, means, rcond=None)[0][:6]
        np.testing.assert_allclose(row, means - fitted, rtol=0, atol=1e-4)
    told = "fMRIPrep confounds regressed: motion (motion=basic)"
    assert told in clean.notes


def test_confounds_by_their_older_name(folder, fmriprep):
    """Before release 20.2 fMRIPrep called them ``_regressors``."""
    settings = BOLD | {"confounds": ["motion"], "motion": "basic"}
    clean = load(folder, **settings)
    for path in folder.glob("sub-*/func/*confounds_timeseries.*"):
        path.rename(str(path).replace("timeseries", "regressors"))
    older = load(folder, **settings)
    np.testing.assert_array_equal(older.features, clean.features)
    del fmriprep


def test_scrubbing_uses_the_thresholds_given(folder, fmriprep):
    del fmriprep
    settings = BOLD | {"confounds": ["motion", "scrub"], "motion": "basic", "scrub": 0}
    cohort = load(folder, **settings)
    assert cohort.features.shape[1] == 39
    assert any("above FD 0.5 mm" in note for note in cohort.notes)
    loose = load(folder, **settings, fd_threshold=3.0)
    assert loose.features.shape[1] == 40


def test_confounds_that_are_not_there(folder, fmriprep):
    del fmriprep
    next(folder.glob("sub-02/func/*confounds*.tsv")).unlink()
    with pytest.raises(InputError, match=r"sub-02.*confounds cannot be loaded"):
        load(folder, **BOLD, confounds=["motion"], motion="basic")
    with pytest.raises(InputError, match=r"suffix='bold' needs modality='timecourses'"):
        load(folder, suffix="bold")


def test_settings_that_would_do_nothing(folder):
    with pytest.raises(InputError, match=r"dead, lengths would do nothing with modal"):
        load(folder, lengths="crop", dead="zero")
    with pytest.raises(InputError, match=r"would do nothing: confounds="):
        load(folder, modality="timecourses", confounds=["motion"])


def test_names_are_taken_apart():
    entities, suffix, ending = parse_name("sub-01_ses-a_desc-x-y_bold.nii.gz")
    assert entities == {"sub": "01", "ses": "a", "desc": "x-y"}
    assert (suffix, ending) == ("bold", ".nii.gz")


def test_other_suffixes_with_the_same_end_do_not_count(tmp_path):
    for name in ("sub-1_probseg.nii", "sub-1_x_probseg.json", "sub-1_dprobseg.nii"):
        (tmp_path / "sub-1").mkdir(exist_ok=True)
        (tmp_path / "sub-1" / name).write_text("")
    found = find_derivatives(tmp_path, "probseg", (".nii",), {})
    assert found == {"sub-1": tmp_path / "sub-1" / "sub-1_probseg.nii"}


@pytest.fixture
def ucla_series(ucla, tmp_path, rng):
    """The real tables beside made-up time courses of everyone but three."""
    for name in ("participants.tsv", "phenotype"):
        (tmp_path / name).symlink_to(ucla / name)
    ids = pd.read_csv(ucla / "participants.tsv", sep="\t")["participant_id"]
    for who in ids[3:]:
        write_series(tmp_path, who, rng.normal(size=(5, 2)))
    return tmp_path


def test_ucla_tables_as_published(ucla_series):
    settings = {"modality": "timecourses", "positive": "SCHZ"}
    with pytest.raises(InputError, match=r"269 people joined by id, 3 only in part"):
        load(ucla_series, **settings)
    settings["unmatched"] = "drop"
    cohort = load(ucla_series, **settings, phenotype=["hamilton", "demographics"])
    assert cohort.groups == {"ADHD": 43, "BIPOLAR": 49, "CONTROL": 127, "SCHZ": 50}
    assert cohort.people["hamd_17"].dtype.kind == "f"
    assert {"demographics.age", "sex", "site", "fd"} - set(cohort.people) == {"fd"}
    assert cohort.people["demographics.age"].equals(cohort.people["age"])
    patients = cohort.people["group"] == "SCHZ"
    assert cohort.people.loc[patients, "hamd_17"].notna().sum() > 40
    two = load(ucla_series, **settings, keep=["CONTROL", "SCHZ"])
    assert two.groups == {"CONTROL": 127, "SCHZ": 50}
    with pytest.raises(UnknownNameError, match=r"no table 'hamilto'.*'hamilton'"):
        load(ucla_series, **settings, phenotype=["hamilto"])


def test_a_simulated_folder_is_read_as_its_own_loader_reads_it(tmp_path):
    simulated = {
        "people": 8,
        "components": 7,
        "voxel_mm": 9.0,
        "folder": "made",
        "modality": "volume",
    }
    expected = load_cohort(Component(name="simulated", settings=simulated), tmp_path)
    settings = {"folder": "made", "entities": {"label": "GM"}, "coarsen": 2}
    cohort = load_cohort(Component(name="bids", settings=settings), tmp_path)
    assert cohort.digest == expected.digest
    np.testing.assert_array_equal(cohort.space.affine, expected.space.affine)
    assert any("patient = carries the planted effect" in note for note in cohort.notes)


def test_people_of_two_pipelines_are_not_pooled_silently(folder, maps):
    """Some people's maps are in another space; a file of its own each, so all fit."""
    for who in ("sub-02", "sub-05"):
        old = folder / who / "anat" / f"{who}_{GM}"
        old.rename(old.with_name(old.name.replace("2009cAsym", "6Asym_res-2")))
    entities = {"label": "GM"}
    sentence = (
        r"people come from 2 pipelines, 3 of space-MNI152NLin2009cAsym no res "
        r"\(sub-01, sub-03, sub-04\) and 2 of space-MNI152NLin6Asym res-2 "
        r"\(sub-02, sub-05\); .* "
        r"take one of them, or set pool_pipelines=true\."
    )
    with pytest.raises(InputError, match=sentence):
        load(folder, entities=entities)
    cohort = load(folder, entities=entities, pool_pipelines=True)
    assert any(
        note.startswith("2 pipelines pooled (pool_pipelines=true): 3 of space-")
        for note in cohort.notes
    )
    one = load(
        folder,
        entities=entities | {"space": "MNI152NLin2009cAsym"},
        unmatched="drop",
        positive="BP",
    )
    assert one.groups == {"BP": 1, "CON": 2}
