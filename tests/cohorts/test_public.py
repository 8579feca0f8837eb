import gzip

import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

AFFINE = np.diag([4.0, 4, 4, 1])
SHAPE = (4, 5, 6)


@pytest.fixture(autouse=True)
def no_own_data(monkeypatch, tmp_path):
    """No test reads what nilearn left on this machine."""
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    monkeypatch.setenv("NILEARN_SHARED_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)


def load(folder, name, **settings):
    given = {"data_dir": str(folder)} | settings
    return load_cohort(Component(name=name, settings=given), folder)


def write_abide(folder, rng, strategy="nofilt_noglobal"):
    """The table with its index columns, quoted commas and people without files."""
    root = folder / "ABIDE_pcp"
    files = root / "cpac" / strategy
    files.mkdir(parents=True)
    lines = [
        ",Unnamed: 0,SUB_ID,X,subject,SITE_ID,FILE_ID,DX_GROUP,AGE_AT_SCAN,SEX,note"
    ]
    values = {}
    for k in range(6):
        file = "no_filename" if k in (1, 4) else f"Pitt_005000{k}"
        lines.append(
            f'{k},{k},5000{k},{k},5000{k},PITT,{file},{1 + k % 2},2{k},1,"a, b"'
        )
        if file != "no_filename":
            one = rng.normal(size=(9 + k, 4)).round(5)
            values[f"5000{k}"] = one
            rows = ["#1\t#2\t#3\t#4", *("\t".join(map(str, row)) for row in one)]
            (files / f"{file}_rois_cc200.1D").write_text("\n".join(rows))
    table = root / "Phenotypic_V1_0b_preprocessed1.csv"
    table.write_text("\n".join(lines) + "\n")
    return values


def test_abide(tmp_path, rng):
    values = write_abide(tmp_path, rng)
    cohort = load(tmp_path, "abide_pcp", lengths="pad")
    assert cohort.groups == {"autism": 2, "control": 2}
    assert cohort.source == "abide_pcp (cpac, nofilt_noglobal, rois_cc200)"
    for who, one in values.items():
        row = cohort.rows([who])[0]
        np.testing.assert_allclose(cohort.features[row, : len(one)], one, rtol=1e-6)
    assert {"age", "sex", "site"} <= set(cohort.people)
    assert any("4 people joined by id, 2 only in the table" in n for n in cohort.notes)
    with pytest.raises(InputError, match=r"0 people joined"):
        load(tmp_path, "abide_pcp", lengths="pad", global_signal_regression=True)


def test_nothing_is_downloaded_unless_asked_for(tmp_path, rng, monkeypatch):
    asked = {}

    def fetch(**settings):
        asked.update(settings)
        write_abide(tmp_path, rng, "filt_noglobal")

    monkeypatch.setattr("nilearn.datasets.fetch_abide_pcp", fetch)
    with pytest.raises(InputError, match=r"no folder ABIDE_pcp in .*download=true"):
        load(tmp_path, "abide_pcp")
    assert not asked
    settings = {"lengths": "crop", "band_pass_filtering": True, "n_subjects": 4}
    cohort = load(tmp_path, "abide_pcp", download=True, **settings)
    assert cohort.features.shape == (4, 9, 4)
    assert (asked["data_dir"], asked["n_subjects"]) == (str(tmp_path), 4)
    assert asked["derivatives"] == ["rois_cc200"]
    assert asked["band_pass_filtering"] is True


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fetch(**settings):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("nilearn.datasets.fetch_oasis_vbm", fetch)
    with pytest.raises(InputError, match=r"oasis1 cannot be downloaded: no route"):
        load(tmp_path, "oasis_vbm", download=True)


def test_oasis(tmp_path, rng):
    root = tmp_path / "oasis1"
    lines = ["ID,M/F,Hand,Age,CDR"]
    maps = rng.uniform(size=(5, *SHAPE)).astype(np.float32)
    for k, rating in enumerate(["0", "0.5", "N/A", "1", "0"]):
        who = f"OAS1_000{k}_MR1"
        lines.append(f"{who},{'MF'[k % 2]},R,{60 + k},{rating}")
        name = f"mwrc1{who}_mpr_anon_fslswapdim_bet.nii.gz"
        save(root / who / name, maps[k])
        save(root / who / name.replace("mwrc1", "mwrc2"), maps[k])
    (root / "oasis_cross-sectional.csv").write_text("\n".join(lines) + "\n")
    names = {"0": "healthy", "0.5": "demented", "1": "demented"}
    settings = {"label_names": names, "positive": "demented"}
    cohort = load(tmp_path, "oasis_vbm", **settings)
    np.testing.assert_array_equal(cohort.features, maps[[0, 1, 3, 4]])
    assert cohort.people["sex"].tolist() == ["M", "F", "F", "M"]
    assert "unlabelled: 1 people left out" in cohort.notes
    with pytest.raises(InputError, match=r"counts as positive cannot be told"):
        load(tmp_path, "oasis_vbm")


@pytest.fixture
def atlas(tmp_path):
    regions = np.zeros(SHAPE, np.int16)
    regions[:2], regions[3] = 1, 2
    save(tmp_path / "atlas.nii", regions)
    return regions


def test_development_fmri(tmp_path, rng, atlas):
    root = tmp_path / "development_fmri"
    lines = ["participant_id\tAge\tChild_Adult\tGender"]
    for k in range(4):
        who = f"sub-pixar00{k}"
        lines.append(f"{who}\t{5 + 9 * k}\t{'child' if k % 2 else 'adult'}\tF")
        bold = rng.normal(size=(*SHAPE, 12)).astype(np.float32)
        stem = f"{who}_task-pixar_space-MNI152NLin2009cAsym_desc-preproc_bold"
        save(root / f"{stem}.nii.gz", bold)
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    cohort = load(tmp_path, "development_fmri", atlas="atlas.nii")
    assert cohort.features.shape == (4, 12, 2)
    expected = bold[atlas == 2].mean(axis=0)
    np.testing.assert_allclose(cohort.features[3, :, 1], expected, rtol=1e-5, atol=1e-6)
    assert cohort.people["age"].tolist() == [5, 14, 23, 32]
    with pytest.raises(InputError, match=r"is an image; say with atlas="):
        load(tmp_path, "development_fmri")


def test_cobre_of_niak(tmp_path, rng, atlas):
    root = tmp_path / "cobre"
    lines = ["ID\tCurrent Age\tGender\tSubject Type\tDiagnosis\tFD\tFD Scrubbed"]
    for k, kind in enumerate(["Control", "Patient", "Disenrolled", "Patient"]):
        lines.append(f"4000{k}\t3{k}\tMale\t{kind}\tNone\t0.2\t0.1")
        confound = rng.normal(size=20)
        bold = (rng.normal(size=(*SHAPE, 20)) + confound).astype(np.float32)
        save(root / f"fmri_004000{k}.nii.gz", bold)
        table = "\n".join(["motion_tx", *map(str, confound)]).encode()
        (root / f"fmri_004000{k}.tsv.gz").write_bytes(gzip.compress(table))
    text = ("\n".join(lines) + "\n").encode()
    (root / "phenotypic_data.tsv.gz").write_bytes(gzip.compress(text))
    raw = load(tmp_path, "cobre", atlas="atlas.nii")
    assert raw.groups == {"Control": 1, "Patient": 2}
    assert list(raw.people["fd"]) == [0.2, 0.2, 0.2]
    means = bold[atlas == 1].mean(axis=0)
    np.testing.assert_allclose(raw.features[2, :, 0], means, rtol=1e-4, atol=1e-5)
    clean = load(tmp_path, "cobre", atlas="atlas.nii", regress=True)
    left = clean.features[2, :, 0]
    assert abs(np.corrcoef(left, confound)[0, 1]) < 1e-5
    assert clean.source == "cobre (NIAK, confounds beside images regressed)"
    with pytest.raises(InputError, match=r"are not fMRIPrep's; set regress=true"):
        load(tmp_path, "cobre", atlas="atlas.nii", confounds=["motion"])
    (root / "phenotypic_data.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"has no phenotypic_data"):
        load(tmp_path, "cobre", atlas="atlas.nii")


@pytest.fixture
def censored(tmp_path, rng, atlas):
    """Three people, of whom two have frames marked for motion."""
    root = tmp_path / "cobre"
    lines = ["ID\tSubject Type\tFrames OK"]
    marks = {"40000": [], "40001": [0, 4, 5], "40002": [7]}
    images = {}
    for (who, bad), kind in zip(
        marks.items(), ["Control", *["Patient"] * 2], strict=True
    ):
        lines.append(f"{who}\t{kind}\t{12 - len(bad)}")
        images[who] = rng.normal(size=(*SHAPE, 12)).astype(np.float32)
        save(root / f"fmri_00{who}.nii.gz", images[who])
        scrub = [int(t in bad) for t in range(12)]
        rows = [
            f"{x:.4f}\t{s}" for x, s in zip(rng.normal(size=12), scrub, strict=True)
        ]
        table = "\n".join(["motion_tx\tscrub", *rows]).encode()
        (root / f"fmri_00{who}.tsv.gz").write_bytes(gzip.compress(table))
    text = ("\n".join(lines) + "\n").encode()
    (root / "phenotypic_data.tsv.gz").write_bytes(gzip.compress(text))
    return root, images, marks


def test_censored_frames_are_refused_dropped_or_kept(tmp_path, censored, atlas):
    _, images, marks = censored
    sentence = r"fmri_0040001.tsv.gz: 3 of 12 frames are marked as censored \('scrub'\)"
    with pytest.raises(InputError, match=sentence):
        load(tmp_path, "cobre", atlas="atlas.nii")
    kept = load(tmp_path, "cobre", atlas="atlas.nii", censored="keep")
    assert kept.features.shape == (3, 12, 2)
    told = "4 of 36 frames, of 2 people, are marked as censored and"
    assert f"censored='keep': {told} kept" in kept.notes
    with pytest.raises(InputError, match=r"3 different lengths"):
        load(tmp_path, "cobre", atlas="atlas.nii", censored="drop")
    settings = {"atlas": "atlas.nii", "censored": "drop", "lengths": "pad"}
    dropped = load(tmp_path, "cobre", **settings)
    assert f"censored='drop': {told} left out" in dropped.notes
    for row, (who, bad) in enumerate(marks.items()):
        left = [t for t in range(12) if t not in bad]
        expected = images[who][atlas == 1].mean(axis=0)[left]
        assert dropped.people.index[row] == who
        np.testing.assert_allclose(
            dropped.features[row, : len(left), 0], expected, rtol=1e-4, atol=1e-5
        )
        assert not dropped.features[row, len(left) :].any()
    load(tmp_path, "cobre", regress=True, **settings)


def test_marks_that_contradict_frames_ok_are_refused(tmp_path, censored):
    """Whoever writes 1 for good frames would leave the bad ones."""
    root, _, _ = censored
    path = root / "fmri_0040002.tsv.gz"
    settings = {"atlas": "atlas.nii", "censored": "drop", "lengths": "pad"}

    def rewrite(marks, name="scrub"):
        rows = "\n".join([f"motion_tx\t{name}", *(f"0.1\t{x}" for x in marks)])
        path.write_bytes(gzip.compress(rows.encode()))

    for marks, sentence in (
        ([0] * 7 + [1] + [0] * 3 + [1], r"leaves 10 frames and the table .* says 11"),
        ([1] * 7 + [0] + [1] * 4, r"leaves 1 frames and the table .* says 11"),
        ([0.5] * 12, r"column 'scrub' must be 1 for censored frames and 0 for others"),
        ([1] * 12, r"every frame is marked as censored"),
    ):
        rewrite(marks)
        with pytest.raises(InputError, match=sentence):
            load(tmp_path, "cobre", **settings)
    rewrite([0] * 12, "motion_ty")
    with pytest.raises(InputError, match=r"has no column of censored frames \(scrub, "):
        load(tmp_path, "cobre", **settings)
