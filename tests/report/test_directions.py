import numpy as np
import pytest
import scipy.linalg

from spectral_mlops.records import Direction
from spectral_mlops.report.directions import angle_table, face_alike, join_folds


def basis(seed, width=8, k=2):
    x = np.random.default_rng(seed).normal(size=(width, k))
    return np.linalg.qr(x)[0].T


def records(vectors, group, grouping="dx", fold=0):
    return [
        Direction(
            1, "probe", fold, "fc", "gradient", grouping, group, i, 1.0, 0.5,
            vector.astype(np.float32), vector.shape, 5,
        )
        for i, vector in enumerate(vectors)
    ]  # fmt: skip


def test_angles_against_scipy():
    a, b, c = basis(1), basis(2, k=3), basis(3, k=1)
    everyone = records(basis(4), "all", "all")
    found = angle_table(
        [*records(c, "c"), *records(b, "b"), *records(a, "a"), *everyone]
    ).set_index(["group_a", "group_b"])
    assert list(found.index) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(found["rank"]) == [2, 1, 1]
    expected = np.degrees(scipy.linalg.subspace_angles(a.T, b[:2].T))
    row = found.loc["a", "b"]
    assert row["largest_degrees"] == pytest.approx(expected.max(), rel=1e-5)
    assert row["smallest_degrees"] == pytest.approx(expected.min(), rel=1e-5)


def test_a_subspace_and_itself_and_one_that_is_unknown():
    a = basis(1)
    turned = np.array([[0.6, 0.8], [-0.8, 0.6]]) @ a
    found = angle_table([*records(a, "a"), *records(turned, "b")])
    assert found["largest_degrees"][0] < 1e-3
    found = angle_table([*records(a, "a"), *records(a * np.nan, "b")])
    assert np.isnan(found["largest_degrees"][0])
    assert len(angle_table([])) == 0


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
