import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from spectral_mlops.cohorts import Cohort, FeatureScaler, layout_for
from spectral_mlops.errors import InputError


def test_vectors_equal_scikit_learn(rng):
    train, later = rng.normal(3, 2, size=(9, 5)), rng.normal(size=(4, 5))
    reference = StandardScaler().fit(train)
    scaler = FeatureScaler.fit(train)
    for features in (train, later):
        expected = reference.transform(features)
        np.testing.assert_allclose(scaler.transform(features), expected, atol=1e-6)
    assert scaler.transform(later).dtype == np.float32
    assert scaler.width == 5


def test_volumes_keep_voxels_with_a_training_mean_above_the_threshold(rng):
    train = rng.uniform(0, 0.6, size=(7, 3, 4, 5)).astype(np.float32)
    scaler = FeatureScaler.fit(train, threshold=0.3)
    keep = train.astype(float).mean(axis=0) > 0.3
    np.testing.assert_array_equal(scaler.mask, keep)
    kept = train[:, keep].astype(float)
    expected = (kept - kept.mean(axis=0)) / kept.std(axis=0)
    np.testing.assert_allclose(scaler.transform(train), expected, atol=1e-5)
    assert FeatureScaler.fit(train).width == (train.mean(axis=0) > 0.1).sum()


def test_a_scaler_sees_training_people_only(rng):
    cohort = rng.uniform(size=(10, 2, 3, 4))
    train = [0, 2, 3, 5, 8]
    before = FeatureScaler.fit(cohort[train])
    output = before.transform(cohort[train])
    others = [k for k in range(10) if k not in train]
    cohort[others] = 1e6 * rng.normal(size=(5, 2, 3, 4))
    after = FeatureScaler.fit(cohort[train])
    for name, array in before.to_arrays().items():
        np.testing.assert_array_equal(array, after.to_arrays()[name])
    np.testing.assert_array_equal(after.transform(cohort[train]), output)


def test_one_person_scales_alike_alone_and_among_others(rng):
    scaler = FeatureScaler.fit(rng.normal(size=(6, 4)))
    features = rng.normal(size=(5, 4))
    alone = np.concatenate([scaler.transform(features[k : k + 1]) for k in range(5)])
    np.testing.assert_array_equal(alone, scaler.transform(features))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
def test_constant_training_features_come_out_zero_for_everyone(rng, value):
    train = rng.normal(size=(6, 3))
    train[:, 1] = value
    scaler = FeatureScaler.fit(train.astype(np.float32))
    assert scaler.sd[1] == 1
    later = rng.normal(size=(4, 3))
    assert np.all(scaler.transform(train)[:, 1] == 0)
    assert np.all(scaler.transform(later)[:, 1] == 0)


def test_scaling_does_not_touch_its_input(rng):
    features = rng.normal(size=(6, 3)).astype(np.float32)
    features.flags.writeable = False
    scaled = FeatureScaler.fit(features).transform(features)
    assert scaled.flags.writeable
    assert not np.shares_memory(scaled, features)


def test_a_stored_scaler_is_the_same(rng, tmp_path):
    scaler = FeatureScaler.fit(rng.uniform(size=(6, 2, 3, 4)), threshold=0.5)
    np.savez(tmp_path / "scaler.npz", **scaler.to_arrays())
    with np.load(tmp_path / "scaler.npz", allow_pickle=False) as arrays:
        again = FeatureScaler.from_arrays(arrays)
    later = rng.uniform(size=(3, 2, 3, 4))
    np.testing.assert_array_equal(again.transform(later), scaler.transform(later))
    with pytest.raises(InputError, match=r"missing here: sd"):
        FeatureScaler.from_arrays({"mask": 1, "mean": 1, "constant": 1})


def test_bad_input_is_refused(rng):
    vectors, volumes = rng.normal(size=(4, 3)), rng.uniform(size=(4, 2, 2, 2))
    with pytest.raises(InputError, match=r"at least one training person"):
        FeatureScaler.fit(vectors[:0])
    with pytest.raises(
        InputError, match=r"threshold=0.2 selects voxels .*leave it out"
    ):
        FeatureScaler.fit(vectors, threshold=0.2)
    with pytest.raises(InputError, match=r"above threshold=2 \(the largest is 0"):
        FeatureScaler.fit(volumes, threshold=2)
    with pytest.raises(InputError, match=r"\(2, 2, 2\) where .* fitted on \(3,\)"):
        FeatureScaler.fit(vectors).transform(volumes)


def test_restore_puts_values_where_the_features_stood():
    rng = np.random.default_rng(0)
    volumes = rng.uniform(0.5, 1, size=(4, 3, 2, 2))
    volumes[:, 1] = 0.01  # left out by the mask
    volumes[:, 2, 0, 1] = 0.7  # constant
    scaler = FeatureScaler.fit(volumes)
    values = rng.normal(size=(2, scaler.width))
    full = scaler.restore(values)
    assert full.shape == (2, 3, 2, 2)
    lost = np.zeros((3, 2, 2), dtype=bool)
    lost[1], lost[2, 0, 1] = True, True
    assert np.array_equal(np.isnan(full[0]), lost)
    assert np.array_equal(full[:, ~lost], values[:, ~scaler.constant])
    with pytest.raises(InputError, match="features were kept"):
        scaler.restore(values[:, 1:])


# -- layouts ------------------------------------------------------------------------


def test_time_courses_are_scaled_by_component_over_what_is_there(rng):
    lengths = np.array([4, 6, 2])
    train = rng.normal(3, 2, size=(3, 6, 5)).astype(np.float32)
    for row, length in zip(train, lengths, strict=True):
        row[length:] = 0
    train[:, :, 1] = 0  # a component that is nowhere
    scaler = FeatureScaler.fit(train, layout="sequence", lengths=lengths)
    rows = np.concatenate([row[:n] for row, n in zip(train, lengths, strict=True)])
    expected = StandardScaler().fit(rows)
    found = scaler.transform(train, lengths)
    for row, scaled, n in zip(train, found, lengths, strict=True):
        np.testing.assert_allclose(scaled[:n], expected.transform(row[:n]), atol=1e-5)
        assert np.all(scaled[n:] == 0)
    assert np.all(found[:, :, 1] == 0)
    assert scaler.inputs == (6, 5)
    assert found.dtype == np.float32


def test_windows_are_scaled_like_time_courses(rng):
    windows = rng.normal(3, 2, size=(3, 4, 6, 5))
    found = FeatureScaler.fit(windows, layout="windows").transform(windows)
    expected = StandardScaler().fit_transform(windows.reshape(-1, 5))
    np.testing.assert_allclose(found.reshape(-1, 5), expected, atol=1e-5)


def test_volumes_stay_volumes_for_networks_that_want_them(rng):
    train = rng.uniform(0, 0.6, size=(7, 3, 4, 5)).astype(np.float32)
    flat = FeatureScaler.fit(train, threshold=0.3)
    whole = FeatureScaler.fit(train, threshold=0.3, layout="volume")
    found = whole.transform(train)
    assert found.shape == (7, 1, 3, 4, 5)
    np.testing.assert_array_equal(found[:, 0, whole.mask], flat.transform(train))
    assert np.all(found[:, 0, ~whole.mask] == 0)
    assert (whole.inputs, flat.inputs) == ((3, 4, 5), flat.width)


@pytest.mark.parametrize("order", ["upper", "lower"])
def test_connections_go_back_to_where_they_stand(rng, order):
    matrices = rng.normal(size=(5, 4, 4))
    matrices = matrices + matrices.transpose(0, 2, 1)
    at = np.triu_indices(4, 1) if order == "upper" else np.tril_indices(4, -1)
    vectors = matrices[:, at[0], at[1]]
    scaler = FeatureScaler.fit(vectors, layout="matrix", order=order)
    found = scaler.transform(vectors)
    assert scaler.inputs == (4, 4)
    assert found.shape == (5, 1, 4, 4)
    expected = matrices - matrices.mean(0)
    expected[:, range(4), range(4)] = 0
    sd = matrices.std(0)
    np.testing.assert_allclose(found[:, 0], expected / sd, atol=1e-5)


@pytest.mark.parametrize("layout", ["vector", "volume", "sequence"])
def test_a_stored_scaler_keeps_its_layout(rng, layout, tmp_path):
    people = rng.uniform(size=(5, 4, 3, 2) if layout == "volume" else (5, 4, 3))
    scaler = FeatureScaler.fit(people, layout=layout)
    np.savez(tmp_path / "scaler.npz", **scaler.to_arrays())
    with np.load(tmp_path / "scaler.npz", allow_pickle=False) as arrays:
        again = FeatureScaler.from_arrays(arrays)
    assert (again.layout, again.inputs) == (scaler.layout, scaler.inputs)
    np.testing.assert_array_equal(again.transform(people), scaler.transform(people))


def people_with(features, modality):
    frame = pd.DataFrame({"group": ["a", "b"]}, index=["s1", "s2"])
    return Cohort(frame, features, modality, "group", "b", "test")


@pytest.mark.parametrize(
    ("shape", "modality", "takes", "layout"),
    [
        ((6,), "fnc", ("vector",), "vector"),
        ((3, 4, 5), "volume", ("vector",), "vector"),
        ((3, 4, 5), "volume", ("volume",), "volume"),
        ((7, 4), "timecourses", ("matrix", "sequence"), "sequence"),
        ((7, 4), "timecourses", ("sequence", "windows"), "sequence"),
        ((3, 7, 4), "windows", ("sequence", "windows"), "windows"),
    ],
)
def test_the_layout_of_a_cohort(rng, shape, modality, takes, layout):
    cohort = people_with(rng.uniform(size=(2, *shape)), modality)
    assert layout_for(cohort, takes, "m") == layout


@pytest.mark.parametrize(
    ("shape", "modality", "takes", "words"),
    [
        ((6,), "fnc", "sequence", "'m' takes time courses, and test gives vectors of"),
        ((7, 4), "timecourses", "vector", "takes vectors .* gives time courses"),
        ((3, 4, 5), "volume", "sequence", "takes time courses, .* gives volumes"),
        ((3, 4, 5), "windows", "volume", "takes volumes, .* gives windows"),
        ((2, 3, 4, 5), "volume", "volume", "features of 4 axes"),
        ((6,), "fnc", "matrix", "does not say which triangle"),
    ],
)
def test_a_wrong_pair_is_refused(rng, shape, modality, takes, words):
    cohort = people_with(rng.uniform(size=(2, *shape)), modality)
    with pytest.raises(InputError, match=words):
        layout_for(cohort, (takes,), "m")
