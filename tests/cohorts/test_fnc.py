import numpy as np
import pytest

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

PEOPLE = ["0007", "12", "3", "44", "5", "61"]
LABELS = dict(zip(PEOPLE, "010110", strict=True))


@pytest.fixture
def matrices(rng):
    mixing = rng.normal(size=(8, 3))
    series = mixing @ rng.normal(size=(6, 3, 50)) + 0.5 * rng.normal(size=(6, 8, 50))
    return np.stack([np.corrcoef(one) for one in series])


@pytest.fixture
def vectors(matrices):
    return matrices[:, *np.triu_indices(8, 1)]


@pytest.fixture
def load(tmp_path, vectors):
    """Write both files, in different row orders, and load them."""

    def load(values=vectors, ids=PEOPLE, labels=LABELS, shuffled=True, **settings):
        names = ",".join(f"c{k}" for k in range(values.shape[1]))
        rows = [
            ",".join([who, *("n/a" if np.isnan(v) else repr(float(v)) for v in row)])
            for who, row in zip(ids, values, strict=True)
        ]
        (tmp_path / "f.csv").write_text("\n".join([f"Id,{names}", *rows]) + "\n")
        people = sorted(labels) if shuffled else list(labels)
        lines = ["SUB_ID\tClass", *(f"{who}\t{labels[who]}" for who in people)]
        (tmp_path / "l.tsv").write_text("\n".join(lines) + "\n")
        files = {"features": "f.csv", "labels": "l.tsv", "order": "upper"}
        return load_cohort(Component(name="fnc", settings=files | settings), tmp_path)

    return load


def test_rows_are_joined_by_id(load, vectors):
    cohort = load()
    assert list(cohort.people.index) == PEOPLE
    assert cohort.labels.tolist() == list(LABELS.values())
    np.testing.assert_array_equal(cohort.features, vectors.astype(np.float32))
    assert (cohort.modality, cohort.target, cohort.positive) == ("fnc", "group", "1")


def test_the_order_of_rows_changes_nothing_but_the_order(load, vectors):
    first = load()
    order = [4, 0, 5, 2, 1, 3]
    again = load(vectors[order], [PEOPLE[k] for k in order])
    rows = again.rows(PEOPLE)
    np.testing.assert_array_equal(again.features[rows], first.features)
    np.testing.assert_array_equal(again.labels[rows], first.labels)


def test_what_was_found_is_echoed(load):
    notes = "\n".join(load().notes)
    for part in (
        "id = 'SUB_ID', group = 'Class'",
        "group: 3 0, 3 1",
        "positive: '1'",
        "6 people joined by id",
        "28 connections of 8 networks, correlations",
        "order upper: 6 of 6 matrices",
    ):
        assert part in notes


def test_the_lower_triangle(load, matrices):
    vectors = matrices[:, *np.tril_indices(8, -1)]
    assert load(vectors, order="lower").features.shape == (6, 28)
    with pytest.raises(InputError, match=r"set order='lower'"):
        load(vectors)
    notes = load(vectors, check_order=False).notes
    assert "order upper: not checked (check_order=false)" in notes


def test_fisher_z_is_recognised_and_kept(load, vectors):
    z = np.arctanh(vectors) * 1.0
    assert np.abs(z).max() > 1
    cohort = load(z)
    assert any("Fisher z" in note for note in cohort.notes)
    np.testing.assert_array_equal(cohort.features, z.astype(np.float32))


def test_ids_in_one_file_only(load):
    others = {**LABELS, "98": "0", "99": "1"}
    del others["12"]
    told = r"5 people joined by id, 1 only in f.csv \(12\) and 2 only in l.tsv \(98, 99"
    with pytest.raises(InputError, match=rf"{told}.*set unmatched='drop'"):
        load(labels=others)
    cohort = load(labels=others, unmatched="drop")
    assert "12" not in cohort.people.index
    assert any("left out as unmatched='drop' asks" in note for note in cohort.notes)


def test_lost_zeros_are_recognised(load):
    labels = {who.lstrip("0"): label for who, label in LABELS.items()}
    with pytest.raises(InputError, match=r"1 of them agree but for 'sub-', leading"):
        load(labels=labels)


def test_nobody_in_both_files_is_refused_even_when_dropping(load):
    labels = {f"x{who}": label for who, label in LABELS.items()}
    with pytest.raises(InputError, match=r"0 people joined"):
        load(labels=labels, unmatched="drop")


def test_missing_values(load, vectors):
    gaps = vectors.copy()
    gaps[3, 5] = gaps[3, 9] = gaps[4, 2] = np.nan
    message = "3 values of 2 people .*that of 44 in column 'c5'.*missing='drop_subject'"
    with pytest.raises(InputError, match=message):
        load(gaps)
    cohort = load(gaps, missing="drop_subject")
    assert list(cohort.people.index) == ["0007", "12", "3", "61"]
    assert "missing='drop_subject' left out 2: 44, 5" in cohort.notes
    gaps[:, 1] = np.nan
    with pytest.raises(InputError, match=r"leaves nobody; column 'c1'"):
        load(gaps, missing="drop_subject")


def test_a_number_of_columns_that_is_no_triangle(load, vectors):
    with pytest.raises(InputError, match=r"27 columns .* 21 \(n=7\) and 28 \(n=8\)"):
        load(vectors[:, :-1])


def test_a_kept_diagonal_is_explained(load, matrices):
    with pytest.raises(InputError, match=r"36 columns are 8\(8\+1\)/2.*28 columns rem"):
        load(matrices[:, *np.triu_indices(8)])


def test_named_labels_and_positive(load):
    names = {"0": "control", "1": "patient"}
    assert load(label_names=names).positive == "patient"
    assert load(label_names=names, positive="control").positive == "control"
    with pytest.raises(InputError, match=r"positive='sz' is no label of 'Class'"):
        load(positive="sz")


def test_npz(load, tmp_path, vectors):
    expected = load()
    np.savez(tmp_path / "f.npz", ids=np.array(PEOPLE), features=vectors)
    files = {"features": "f.npz", "labels": "l.tsv", "order": "upper"}
    cohort = load_cohort(Component(name="fnc", settings=files), tmp_path)
    assert cohort.digest == expected.digest


def test_mlsp_as_published(mlsp):
    files = {
        "features": mlsp / "train_FNC.csv",
        "labels": mlsp / "train_labels.csv",
        "order": "upper",
    }
    cohort = load_cohort(Component(name="fnc", settings=files), mlsp)
    assert cohort.features.shape == (86, 378)
    assert cohort.groups == {"0": 46, "1": 40}
    assert cohort.people.index[0] == "120873"
    assert any("86 of 86 matrices" in note for note in cohort.notes)
    with pytest.raises(InputError, match=r"order='upper' 86; .*set order='upper'"):
        load_cohort(Component(name="fnc", settings=files | {"order": "lower"}), mlsp)
