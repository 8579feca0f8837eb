import pandas as pd
import pytest

from spectral_mlops.cohorts.phenotype import (
    echo_levels,
    join_phenotype,
    levels_of,
    read_pipeline,
    read_sidecar,
)
from spectral_mlops.errors import InputError


@pytest.fixture
def frame():
    ids = pd.Index(["sub-02", "sub-01", "sub-03"], dtype=object)
    return pd.DataFrame({"group": ["a", "b", "a"], "age": [1.0, 2, 3]}, index=ids)


@pytest.fixture
def add(tmp_path):
    def add(text, sidecar=None):
        folder = tmp_path / "phenotype"
        folder.mkdir(exist_ok=True)
        (folder / "panss.tsv").write_text(text)
        if sidecar is not None:
            (folder / "panss.json").write_text(sidecar)
        return tmp_path

    return add


def test_scores_are_joined_by_id(frame, add):
    folder = add(
        "participant_id\ttotal\thand\tage\tempty\nsub-01\t7\t1\tx\tn/a\n"
        "sub-09\t1\t2\ty\tn/a\nsub-02\tn/a\t2\tz\tn/a\n",
        '{"hand": {"Levels": {"1": "left", "2": "right"}}, "x": "text"}',
    )
    wide, notes = join_phenotype(frame, folder, ["panss"])
    assert list(wide.index) == list(frame.index)
    assert list(wide["total"].isna()) == [True, False, True]
    assert wide.loc["sub-01", "total"] == 7.0
    assert wide.loc["sub-02", "hand"] == "2"
    assert wide.loc["sub-02", "panss.age"] == "z"
    assert list(wide["age"]) == [1, 2, 3]
    assert notes == ("panss.tsv: 4 columns for 2 of 3 people, 1 others not used",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "participant_id\ta\nsub-01\t1\nsub-01\t2\n",
            "id sub-01 stands more than once",
        ),
        ("participant_id\ta\n1\t1\n", "none of the 3 people, .* its own look like 1"),
        ("participant_id\ta\nsub-01\n", "line 2: 1 cells where the header has 2"),
    ],
)
def test_bad_tables_are_refused(frame, add, text, message):
    with pytest.raises(InputError, match=message):
        join_phenotype(frame, add(text), ["panss"])


def test_sidecars(write):
    assert read_sidecar(write("a.json", "{}").with_name("absent.json")) == {}
    with pytest.raises(InputError, match=r"cannot be read as JSON.*repair"):
        read_sidecar(write("a.json", "{"))
    with pytest.raises(InputError, match=r"must map names"):
        read_sidecar(write("a.json", "[1]"))
    assert levels_of({"a": {"Levels": ["x"]}}, "a") == {}
    assert echo_levels({}, "dx", ["1"]) == ()
    said = echo_levels({"dx": {"Levels": {"1": "autism"}}}, "dx", ["2", "2"])
    assert said == (
        "'dx' as described: none of its labels",
        "'dx': no description of 2",
    )


def test_the_pipeline_is_echoed(tmp_path):
    silent = f"{tmp_path.name}: the pipeline is not stated (no GeneratedBy)"
    assert read_pipeline(tmp_path) == silent
    card = tmp_path / "dataset_description.json"
    card.write_text('{"GeneratedBy": ["x", {"Version": "1"}]}')
    assert read_pipeline(tmp_path) == silent
    made = '[{"Name": "fMRIPrep", "Version": "23.1"}, {"Name": "post"}]'
    card.write_text(f'{{"GeneratedBy": {made}}}')
    assert read_pipeline(tmp_path) == f"{tmp_path.name}: made by fMRIPrep 23.1, post"
