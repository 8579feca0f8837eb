"""Data sets of OpenNeuro by number; the network is this machine's own file server."""

import http.server
import json
import threading
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

SHAPE = (4, 5, 6)
AFFINE = np.diag([3.0, 3, 3, 1])
SPACE = "space-MNI152NLin2009cAsym"
RELEASE = "ds000030/ds000030_R1.0.4/uncompressed"
GROUPS = ["CONTROL"] * 4 + ["SCHZ"] * 3


@pytest.fixture(autouse=True)
def no_own_data(monkeypatch, tmp_path):
    """No test reads what nilearn left on this machine, or asks a proxy."""
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    monkeypatch.setenv("NILEARN_SHARED_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def load(folder, **settings):
    given = {"dataset": "ds000030", "data_dir": "data", "positive": "SCHZ"} | settings
    return load_cohort(Component(name="openneuro", settings=given), folder)


def write(root, rng, old_names=False):
    """Seven people, their maps and images as that release names them, or BIDS."""
    root.mkdir(parents=True)
    lines = ["participant_id\tdiagnosis\tage\tgender"]
    lines += [f"sub-1000{k}\t{dx}\t3{k}\tF" for k, dx in enumerate(GROUPS)]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    below = root / "derivatives" / "fmriprep"
    below.mkdir(parents=True)
    tool = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "0.4.4"}]}
    (below / "dataset_description.json").write_text(json.dumps(tool))
    maps, images = [], []
    for k in range(len(GROUPS)):
        who = f"sub-1000{k}"
        anat, func = below / who / "anat", below / who / "func"
        grey = f"{who}_T1w_{SPACE}_class-GM_probtissue.nii.gz"
        bold = f"{who}_task-rest_bold_{SPACE}_preproc.nii.gz"
        other = bold.replace("rest", "bart")
        if not old_names:
            grey = f"{who}_{SPACE}_label-GM_probseg.nii.gz"
            bold, other = (
                f"{who}_task-{task}_{SPACE}_desc-preproc_bold.nii.gz"
                for task in ("rest", "bart")
            )
        maps.append(rng.uniform(size=SHAPE).astype(np.float32))
        images.append(rng.normal(size=(*SHAPE, 9)).astype(np.float32))
        for path, data in (
            (anat / grey, maps[-1]),
            (func / bold, images[-1]),
            (func / other, images[-1]),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return maps, images


@pytest.mark.parametrize("place", ["ds000030", RELEASE])
def test_a_folder_that_is_there_is_read_as_bids(tmp_path, rng, place):
    maps, _ = write(tmp_path / "data" / place, rng)
    cohort = load(tmp_path, entities={"label": "GM"})
    np.testing.assert_array_equal(cohort.features, maps)
    assert cohort.groups == {"CONTROL": 4, "SCHZ": 3}
    assert cohort.source == f"openneuro ({place})"
    assert "fmriprep: made by fMRIPrep 0.4.4" in cohort.notes


def test_derivatives_may_lie_elsewhere(tmp_path, rng):
    write(tmp_path / "data" / "ds000030", rng)
    inside = tmp_path / "data" / "ds000030" / "derivatives"
    (inside / "fmriprep").rename(tmp_path / "own")
    assert len(load(tmp_path, derivatives="own").people) == 7
    (inside / "mriqc").mkdir()
    with pytest.raises(InputError, match=r"'fmriprep' \(there are mriqc\).*set deriv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dataset": "ds30"}, "dataset='ds30' is not usable"),
        ({"dataset": "ds000115"}, r"no folder ds000115 in .*data.*or download=true"),
        (
            {"dataset": "ds000115", "download": True},
            r"ds000115 cannot be downloaded: nilearn knows the files of ds000030 alone",
        ),
        ({}, r"ds000030 has several releases \(ds000030_R1, ds000030_R2\); put one"),
        ({"data_dir": "empty"}, r"ds000030 has no participants.tsv; put one release"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, settings, sentence):
    for release in ("R1", "R2"):
        place = tmp_path / "data" / "ds000030" / f"ds000030_{release}" / "uncompressed"
        place.mkdir(parents=True)
        (place / "participants.tsv").write_text("participant_id\tdiagnosis\n")
    (tmp_path / "empty" / "ds000030").mkdir(parents=True)
    with pytest.raises(InputError, match=sentence):
        load(tmp_path, **settings)


@pytest.fixture
def served(tmp_path, rng, monkeypatch):
    """Serve the release; nilearn's index tells these addresses."""
    written = write(tmp_path / "far" / RELEASE, rng, old_names=True)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            asked.append(Path(self.path).name)

    far = str(tmp_path / "far")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=far)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    urls = [
        address + str(path.relative_to(far))
        for path in sorted((tmp_path / "far").rglob("*"))
        if path.is_file()
    ]

    def index(data_dir=None, verbose=1):
        place = Path(data_dir) / RELEASE
        place.mkdir(parents=True, exist_ok=True)
        return str(place / "urls.json"), urls

    monkeypatch.setattr("nilearn.datasets.fetch_ds000030_urls", index)
    yield written, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_nilearn_fetches_what_is_read_and_no_more(served, tmp_path):
    """Two of each group, their maps alone, by nilearn's own downloader."""
    (maps, _), asked = served
    settings = {"download": True, "n_subjects": 4, "unmatched": "drop"}
    cohort = load(tmp_path, suffix="probtissue", entities={"label": "GM"}, **settings)
    assert cohort.groups == {"CONTROL": 2, "SCHZ": 2}
    np.testing.assert_array_equal(cohort.features, [maps[k] for k in (0, 1, 4, 5)])
    assert "participants.tsv" in asked
    assert len([name for name in asked if name.endswith(".nii.gz")]) == 4
    assert cohort.source == f"openneuro ({RELEASE})"
    before = len(asked)
    settings["download"] = False
    load(tmp_path, suffix="probtissue", entities={"label": "GM"}, **settings)
    assert len(asked) == before


def test_images_of_one_task_through_an_atlas(served, tmp_path):
    (_, images), asked = served
    regions = np.zeros(SHAPE, np.int16)
    regions[:2], regions[3] = 1, 2
    nibabel.save(nibabel.Nifti1Image(regions, AFFINE), tmp_path / "atlas.nii")
    cohort = load(
        tmp_path,
        download=True,
        modality="timecourses",
        suffix="bold",
        entities={"task": "rest", "space": "MNI152NLin2009cAsym", "desc": "preproc"},
        atlas="atlas.nii",
    )
    assert len([name for name in asked if name.endswith(".nii.gz")]) == 7
    expected = images[6][regions == 2].mean(axis=0)
    np.testing.assert_allclose(cohort.features[6, :, 1], expected, rtol=1e-5, atol=1e-6)


def test_nothing_that_fits_is_said(served, tmp_path):
    with pytest.raises(InputError, match=r"has no file of derivatives 'fmriprep' with"):
        load(tmp_path, download=True, entities={"label": "CSF"})
