import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from spectral_mlops.cohorts import FeatureScaler
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
