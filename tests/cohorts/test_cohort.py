import pickle
import re

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.errors import InputError, UnknownNameError


def test_rows_are_found_by_id(make_cohort):
    cohort = make_cohort()
    asked = ["sub-04", "sub-01", "sub-03"]
    assert cohort.rows(asked).tolist() == [4, 1, 0]
    np.testing.assert_array_equal(cohort.features[cohort.rows(asked)][:, 0], [12, 3, 0])
    assert cohort.people.loc[asked, "age"].tolist() == [64, 31, 20]


def test_no_ids_give_no_rows(make_cohort):
    assert make_cohort().rows([]).shape == (0,)


def test_unknown_id_is_named_with_the_nearest(make_cohort):
    with pytest.raises(UnknownNameError, match=r"sub-09.*look like sub-03"):
        make_cohort().rows(["sub-01", "sub-09"])


def test_labels_and_summary(make_cohort):
    cohort = make_cohort()
    assert cohort.labels.tolist() == ["hc", "sz", "hc", "sz", "hc"]
    assert cohort.labels.dtype.kind == "U"
    summary = cohort.summary()
    assert (summary.n, dict(summary.groups)) == (5, {"hc": 3, "sz": 2})
    assert summary.digest == cohort.digest
    assert summary.source == "made up"


def test_integer_labels_become_text(make_cohort):
    people = pd.DataFrame({"group": [0, 1, 0, 1, 1]}, index=list("abcde"))
    assert make_cohort(people=people, positive="1").groups == {"0": 2, "1": 3}


def test_digest_sees_ids_attributes_and_features(make_cohort):
    first = make_cohort()
    assert first.digest == make_cohort(source="elsewhere", notes=("n",)).digest
    other = first.features.copy()
    other[3, 2] += 1e-5
    changed_age = first.people.assign(age=[20.0, 31, 42, 53, 65])
    renamed = first.people.rename(index={"sub-05": "sub-06"})
    digests = {
        first.digest,
        make_cohort(features=other).digest,
        make_cohort(people=changed_age).digest,
        make_cohort(people=renamed).digest,
        make_cohort(features=first.features.reshape(5, 1, 3)).digest,
    }
    assert len(digests) == 5


def test_a_cohort_cannot_be_changed_from_outside(make_cohort):
    features = np.arange(15, dtype=np.float32).reshape(5, 3)
    people = pd.DataFrame({"group": list("aabba")}, index=list("vwxyz"))
    cohort = make_cohort(people=people, features=features, positive="b")
    people.loc["v", "group"] = "b"
    assert cohort.labels[0] == "a"
    with pytest.raises(ValueError, match=r"read-only"):
        cohort.features[0, 0] = 1
    assert features.flags.writeable


def test_features_become_float32(make_cohort):
    cohort = make_cohort(features=np.ones((5, 2, 3, 4), dtype=">f8"))
    assert cohort.features.dtype == np.float32
    assert cohort.features.dtype.isnative


NAN = np.ones((5, 3))
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.ones((4, 3))}, "5 people but 4 rows of features"),
        ({"features": NAN}, "1 features are not finite.*that of sub-05 at position 1"),
        ({"target": "gruop"}, "no column 'gruop'.*group, age.*Did you mean 'group'"),
        ({"positive": "SZ"}, "positive='SZ' is no label of 'group'.*hc, sz"),
    ],
)
def test_bad_parts_are_refused(make_cohort, changes, message):
    with pytest.raises(InputError, match=rf"made up: .*{message}"):
        make_cohort(**changes)


@pytest.mark.parametrize(
    ("groups", "index", "message"),
    [
        (list("aabba"), list("vwxyv"), "the id v stands more than once"),
        (list("aaaaa"), list("vwxyz"), "everyone has group=a;"),
        (["a", None, "b", "b", "b"], list("vwxyz"), "missing for 1 people (w)"),
    ],
)
def test_bad_people_are_refused(make_cohort, groups, index, message):
    people = pd.DataFrame({"group": groups}, index=index)
    with pytest.raises(InputError, match=re.escape(message)):
        make_cohort(people=people, positive="a")


def test_nobody_is_refused(make_cohort):
    people = pd.DataFrame({"group": []})
    with pytest.raises(InputError, match=r"there are no people"):
        make_cohort(people=people, features=np.ones((0, 3)))


@pytest.fixture
def make_series(make_cohort, rng):
    """Five people's time courses, [5, 6, 2], zero after each one's length."""

    def make(lengths=(6, 1, 4, 6, 3), **changes):
        series = rng.normal(size=(5, 6, 2)).astype(np.float32)
        for rows, length in zip(series, lengths, strict=False):
            rows[int(length) :] = 0
        parts = {"features": series, "lengths": np.array(lengths)}
        return make_cohort(modality="timecourses", **(parts | changes))

    return make


def test_padded_time_courses_keep_their_lengths(make_series):
    cohort = make_series()
    assert cohort.lengths.tolist() == [6, 1, 4, 6, 3]
    assert cohort.lengths.dtype == np.intp
    assert not cohort.lengths.flags.writeable
    longer = make_series(lengths=(6, 1, 5, 6, 3), features=cohort.features)
    assert longer.digest != cohort.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (6, 0, 4, 6, 3)}, "sub-01 has length 0; expected 1 to 6"),
        ({"lengths": (7, 1, 4, 6, 3)}, "sub-03 has length 7"),
        ({"lengths": np.ones(4, int)}, r"shape \(4,\).*each of 5 people"),
        ({"lengths": np.ones(5), "features": np.ones((5, 6, 2))}, "type float64"),
        ({"features": np.ones((5, 6, 2))}, "sub-01 has length 1, but values other"),
        ({"features": np.ones((5, 6))}, r"expected \[people, time, components\]"),
        ({"features": np.ones((5, 2, 6, 2))}, "lengths belong to time courses"),
    ],
)
def test_bad_lengths_are_refused(make_series, changes, message):
    with pytest.raises(InputError, match=message):
        make_series(**changes)


def test_vectors_have_no_lengths(make_cohort):
    with pytest.raises(InputError, match=r"not to 'fnc' of shape \(5, 3\)"):
        make_cohort(lengths=np.ones(5, int))


def test_a_memory_map_stays_on_disk(make_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("spectral_mlops.cohorts.cohort.CHUNK_BYTES", 200)
    values = np.arange(5 * 24, dtype=np.float32).reshape(5, 2, 3, 4)
    np.save(tmp_path / "v.npy", values)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    cohort = make_cohort(features=mapped, modality="volume")
    assert isinstance(cohort.features, np.memmap)
    assert np.shares_memory(cohort.features, mapped)
    assert cohort.digest == make_cohort(features=values, modality="volume").digest
    values[4, 1, 2, 3] = np.inf
    np.save(tmp_path / "w.npy", values)
    with pytest.raises(InputError, match=r"1 features .* sub-04 at position 23"):
        make_cohort(features=np.load(tmp_path / "w.npy", mmap_mode="r"))


@pytest.mark.parametrize("rows", [slice(None), slice(2, 7)])
def test_a_memory_map_travels_by_name(make_cohort, tmp_path, rows):
    values = np.arange(7 * 3000, dtype=np.float32).reshape(7, 10, 300)
    np.save(tmp_path / "v.npy", values)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")[rows]
    ids = [f"s{k}" for k in range(len(mapped))]
    people = pd.DataFrame({"group": list("aabbabb")[: len(ids)]}, index=ids)
    cohort = make_cohort(people=people, features=mapped, positive="a")
    sent = pickle.dumps(cohort)
    assert len(sent) < 5000 < mapped.nbytes
    there = pickle.loads(sent)
    assert isinstance(there.features, np.memmap)
    assert not there.features.flags.writeable
    np.testing.assert_array_equal(there.features, values[rows])
    assert there.digest == cohort.digest


def test_other_cohorts_travel_whole(make_cohort, make_series, tmp_path):
    for cohort in (make_cohort(), make_series()):
        there = pickle.loads(pickle.dumps(cohort))
        assert there.digest == cohort.digest
        assert not there.features.flags.writeable
    np.save(tmp_path / "v.npy", np.ones((5, 4), dtype=np.float32))
    mapped = make_cohort(features=np.load(tmp_path / "v.npy", mmap_mode="r"))
    (tmp_path / "v.npy").unlink()
    there = pickle.loads(pickle.dumps(mapped))
    np.testing.assert_array_equal(there.features, np.ones((5, 4)))
