import numpy as np
import pytest

from spectral_mlops.report.directions import face_alike, join_folds


def basis(seed, width=8, k=2):
    x = np.random.default_rng(seed).normal(size=(width, k))
    return np.linalg.qr(x)[0].T


def test_joining_one_fold_gives_it_back():
    vectors = basis(1)
    vectors *= np.sign(vectors[np.arange(2), np.abs(vectors).argmax(1)])[:, None]
    found = join_folds([(vectors, np.array([0.7, 0.2]))])
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-12)
    np.testing.assert_allclose(found.shares, [0.7, 0.2])


def test_joining_does_not_see_signs_and_swaps():
    u, v = basis(1)
    found = join_folds(
        [
            (np.array([u, v]), np.array([0.6, 0.3])),
            (-np.array([v, u]), np.array([0.5, 0.4])),
        ]
    )
    assert abs(found.vectors[0] @ u) == pytest.approx(1)
    assert abs(found.vectors[1] @ v) == pytest.approx(1)
    np.testing.assert_allclose(found.shares, [0.5, 0.4])


def test_joining_folds_that_lack_features():
    u = np.array([[0.6, np.nan, 0.8, np.nan]])
    v = np.array([[0.6, 0.0, np.nan, np.nan]])
    found = join_folds([(u, np.ones(1)), (v, np.ones(1))]).vectors[0]
    assert np.isnan(found).tolist() == [False, False, False, True]


def test_facing_alike():
    a = basis(1)
    assert np.array_equal(face_alike(a * [[-1], [1]], a), a)
    assert np.array_equal(face_alike(-a, a[:1]), a * [[1], [-1]])
