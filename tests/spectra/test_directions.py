import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

from spectral_mlops.spectra.directions import (
    gradient_columns,
    gradient_cosine,
    leading_left,
    principal_angles,
)
from tests.reference import as_array


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def plane(*angles: float, size: int = 6) -> Tensor:
    """Columns ``cos θ_i e_i + sin θ_i e_{i+k}``, the first the heaviest."""
    columns = torch.zeros(size, len(angles), dtype=torch.float64)
    for i, angle in enumerate(angles):
        columns[i, i] = math.cos(angle)
        columns[i + len(angles), i] = math.sin(angle)
    return columns * torch.arange(len(angles), 0, -1)


@pytest.mark.parametrize(
    "angles",
    [(0.3, 1.1), (0.0, math.pi / 2), (1e-9, 0.2), (math.pi / 4, math.pi / 4),
     (1e-9, 1e-5, 1.5), (0.2, math.pi / 2 - 1e-9)],
)  # fmt: skip
def test_known_rotations(angles):
    still, turned = plane(*[0.0] * len(angles)), plane(*angles)
    found = principal_angles(still, turned, len(angles))
    torch.testing.assert_close(
        found, torch.tensor(sorted(angles), dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


def test_only_the_leading_directions_count():
    a = plane(0.0, 0.0)
    b = plane(0.0, 1.2)
    assert principal_angles(a, b, 1).tolist() == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("d", "m", "n", "rank"), [(9, 4, 7, 3), (5, 8, 2, 2), (6, 6, 6, 1)]
)
def test_angles_against_scipy(d, m, n, rank):
    a, b = normal(d, m, seed=1), normal(d, n, seed=2)
    u, v = (scipy.linalg.svd(as_array(x))[0][:, :rank] for x in (a, b))
    expected = scipy.linalg.subspace_angles(u, v)[::-1]
    found = principal_angles(a, b, rank)
    assert found.tolist() == pytest.approx(list(expected), rel=1e-9)
    assert (found.diff() >= 0).all()


def test_angles_of_a_batch_equal_one_by_one():
    a, b = normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 5, seed=2)
    together = principal_angles(a, b, 3)
    assert together.shape == (2, 3, 3)
    for i in range(2):
        for j in range(3):
            alone = principal_angles(a[i, j], b[i, j], 3)
            torch.testing.assert_close(together[i, j], alone)


def test_a_subspace_is_at_no_angle_to_itself():
    a = normal(7, 4)
    assert principal_angles(a, a @ normal(4, 4, seed=1), 4).max() < 1e-13


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3)])
def test_cosine(shape):
    a, b = normal(*shape, seed=1), normal(*shape, seed=2)
    x, y = as_array(a).ravel(), as_array(b).ravel()
    expected = (x @ y) / math.sqrt((x @ x) * (y @ y))
    assert float(gradient_cosine(a, b)) == pytest.approx(expected, rel=1e-12)
    assert float(gradient_cosine(a, 3 * a)) == pytest.approx(1.0, rel=1e-12)
    assert float(gradient_cosine(a, -a)) == pytest.approx(-1.0, rel=1e-12)


def test_cosine_of_orthogonal_gradients_and_of_a_batch():
    a = torch.tensor([[[1.0, 0], [0, 0]], [[0, 2.0], [0, 0]]])
    b = torch.tensor([[[0.0, 1], [0, 0]], [[0, 1.0], [1, 0]]])
    found = gradient_cosine(a, b)
    assert found.tolist() == pytest.approx([0.0, math.sqrt(0.5)])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cosine_of_tiny_and_huge_float32_gradients(size):
    a, b = normal(4, 3, seed=1).float(), normal(4, 3, seed=2).float()
    expected = float(gradient_cosine(a, b))
    found = float(gradient_cosine(a * size, b * size))
    assert found == pytest.approx(expected, rel=1e-5)
    assert -1 < found < 1


def test_cosine_of_nothing_is_nan():
    zero = torch.zeros(2, 3, 4)
    zero[1] = 1.0
    found = gradient_cosine(zero, torch.ones(2, 3, 4))
    assert found[0].isnan()
    assert float(found[1]) == pytest.approx(1.0)


@pytest.mark.parametrize(("d", "m"), [(9, 4), (4, 9), (6, 6), (300, 3), (5, 1), (1, 4)])
@pytest.mark.parametrize("size", [1.0, 1e-100, 1e100])
def test_leading_left_against_dense(d, m, size):
    x = normal(d, m) * size
    u, s, _ = scipy.linalg.svd(as_array(x) / size)
    found = leading_left(x, 3)
    k = min(3, d, m)
    assert found.values.tolist() == pytest.approx(list(s[:k] * size), rel=1e-12)
    assert found.energy == pytest.approx((s**2).sum() * size**2, rel=1e-12)
    for vector, expected in zip(found.vectors, u.T[:k], strict=True):
        assert abs(float(vector @ torch.from_numpy(expected.copy()))) == pytest.approx(
            1
        )
        assert float(vector[vector.abs().argmax()]) > 0


def test_directions_far_below_the_first_are_still_exact_then_left_out():
    u = torch.linalg.qr(normal(40, 3)).Q
    v = torch.linalg.qr(normal(5, 3, seed=1)).Q
    found = leading_left(u * torch.tensor([1.0, 1e-5, 1e-8]) @ v.mT, 3)
    assert found.values.tolist() == pytest.approx([1.0, 1e-5], rel=1e-9)
    assert (found.vectors @ u).diagonal().abs().tolist() == pytest.approx([1, 1])
    gram = found.vectors @ found.vectors.mT
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64))


def test_of_equally_large_loadings_the_first_is_positive():
    x = torch.tensor([[0.0], [-1.0], [1.0]])
    expected = [0.0, math.sqrt(0.5), -math.sqrt(0.5)]
    assert leading_left(x, 1).vectors[0].tolist() == pytest.approx(expected)
    assert leading_left(-x, 1).vectors[0].tolist() == pytest.approx(expected)


def test_equal_singular_values_span_their_space():
    u = torch.linalg.qr(normal(7, 3)).Q
    x = u * torch.tensor([2.0, 2.0, 1.0])
    found = leading_left(x @ torch.linalg.qr(normal(3, 3, seed=2)).Q, 2)
    assert principal_angles(found.vectors.mT, u[:, :2], 2).max() < 1e-12


def test_nothing_has_no_direction():
    for x in (torch.zeros(4, 3), torch.zeros(4, 0)):
        assert leading_left(x, 2).vectors.shape == (0, 4)


@pytest.mark.parametrize(("r", "d_in", "d_out"), [(3, 7, 5), (9, 4, 6), (9, 8, 2)])
def test_gradient_columns_have_the_gradient_gram(r, d_in, d_out):
    a, d = normal(r, d_in), normal(r, d_out, seed=1)
    x, g = gradient_columns(a, d), a.mT @ d
    assert x.shape == (d_in, min(r, d_out))
    torch.testing.assert_close(x @ x.mT, g @ g.mT)
