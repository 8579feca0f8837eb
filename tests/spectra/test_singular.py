import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_mlops.spectra.singular import (
    ACCURACY,
    DIRECT,
    GRAM,
    QR,
    ROUTES,
    LinAlgError,
    factor_singular_values,
    gradient_singular_values,
)
from tests.reference import (
    as_array,
    reference_gradient_values,
    reference_singular_values,
)

# More rows than columns, as many, fewer; wide inputs, wide outputs.
SHAPES = [(1, 1, 1), (1, 5, 3), (7, 1, 4), (7, 4, 1), (3, 8, 5), (3, 5, 8), (6, 6, 4),
          (20, 6, 4), (20, 4, 6), (5, 5, 5), (9, 40, 31)]  # fmt: skip


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_values(rows: int, columns: int, values: list[float], seed: int = 0) -> Tensor:
    """A float64 matrix that has exactly these singular values."""
    u = torch.linalg.qr(normal(rows, len(values), seed=seed, dtype=torch.float64)).Q
    v = torch.linalg.qr(normal(columns, len(values), seed=seed + 1).double()).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mT


def cancelling(r: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """Factors whose large parts cancel: σ(A)·σ(Δ) = 1 and σ_max(AᵀΔ) = 3e-6.

    The first sample direction carries A, the second Δ, and the third the product.
    """
    basis = torch.linalg.qr(normal(r, r, seed=3, dtype=torch.float64)).Q
    left = torch.linalg.qr(normal(d_in, r, seed=4, dtype=torch.float64)).Q
    right = torch.linalg.qr(normal(d_out, r, seed=5, dtype=torch.float64)).Q
    in_a, in_d = torch.full((r,), 1e-3).double(), torch.full((r,), 1e-3).double()
    in_a[0], in_a[1], in_d[0], in_d[1] = 1.0, 1e-8, 1e-8, 1.0
    in_d[2] = 3e-3
    return (basis * in_a) @ left.mT, (basis * in_d) @ right.mT


def close(values: Tensor, expected: np.ndarray) -> None:
    assert values.shape == expected.shape
    top = expected.max(initial=0.0)
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=ACCURACY * top)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_within_the_accuracy_of_an_svd(shape):
    r, d_in, d_out = shape
    a, d = normal(r, d_in, seed=1), normal(r, d_out, seed=2)
    solution = gradient_singular_values(a, d)
    close(solution.values, reference_gradient_values(a, d))
    assert ROUTES[solution.route] == "gram"
    assert solution.finite


@pytest.mark.parametrize("shape", SHAPES)
def test_factor_within_the_accuracy_of_an_svd(shape):
    r, width, _ = shape
    rows = normal(r, width)
    solution = factor_singular_values(rows)
    close(solution.values, reference_singular_values(rows))
    assert solution.route == GRAM


@settings(deadline=None, max_examples=60)
@given(
    r=st.integers(1, 12),
    d_in=st.integers(1, 12),
    d_out=st.integers(1, 12),
    rank=st.integers(0, 12),
    spread=st.floats(0.0, 8.0),
    seed=st.integers(0, 99),
)
def test_any_shape_rank_and_spread(r, d_in, d_out, rank, spread, seed):
    decay = 10.0 ** -torch.linspace(0.0, spread, max(rank, 1))[:rank]
    a = (normal(r, rank, seed=seed) * decay) @ normal(rank, d_in, seed=seed + 1)
    d = normal(r, d_out, seed=seed + 2)
    solution = gradient_singular_values(a, d)
    close(solution.values, reference_gradient_values(a, d))
    close(factor_singular_values(a).values, reference_singular_values(a))
    assert (solution.values.diff() <= 0).all()
    assert (solution.values[solution.values > 0] >= solution.floor).all()
    assert solution.below_floor <= (solution.values == 0).sum()


@pytest.mark.parametrize("shape", [(4, 9, 6), (6, 9, 7), (5, 5, 5)])
def test_cancelling_factors_take_the_qr_route(shape):
    a, d = cancelling(*shape)
    solution = gradient_singular_values(a, d)
    expected = reference_gradient_values(a, d)
    assert expected[0] == pytest.approx(3e-6, rel=1e-6)
    assert solution.route == QR
    close(solution.values, expected)
    assert solution.below_floor == 0


def test_gram_alone_would_miss_what_qr_finds():
    a, d = cancelling(4, 9, 6)
    gram = torch.linalg.eigvalsh((a @ a.mT) @ (d @ d.mT)).clamp_min(0.0).sqrt()
    expected = reference_gradient_values(a, d)
    assert np.abs(np.sort(gram.numpy())[::-1] - expected).max() > 1e-6 * expected[0]


def test_only_the_cancelling_member_of_a_batch_changes_route():
    a, d = cancelling(4, 9, 6)
    plain_a, plain_d = normal(4, 9).double(), normal(4, 6, seed=1).double()
    solution = gradient_singular_values(
        torch.stack([plain_a, a]), torch.stack([plain_d, d])
    )
    assert solution.route.tolist() == [GRAM, QR]
    close(solution.values[0], reference_gradient_values(plain_a, plain_d))
    close(solution.values[1], reference_gradient_values(a, d))


@pytest.mark.parametrize(("r", "d_in", "d_out"), [(10, 3, 2), (2, 3, 4), (2, 5, 2)])
def test_factors_that_cancel_wholly_have_no_values(r, d_in, d_out):
    a = torch.ones(r, d_in, dtype=torch.float64)
    d = normal(r, d_out, dtype=torch.float64)
    d = d - d.mean(0)
    assert np.abs(as_array(a.mT @ d)).max() < 1e-14
    solution = gradient_singular_values(a, d)
    assert not solution.values.any()
    assert solution.below_floor == min(r, d_in, d_out)


def fails(*args: object, **settings: object) -> Tensor:
    raise LinAlgError("does not converge")


@pytest.mark.parametrize("shape", [(3, 8, 5), (20, 6, 4), (20, 4, 6)])
def test_direct_route_where_the_solvers_fail(monkeypatch, shape):
    r, d_in, d_out = shape
    a, d = normal(2, r, d_in, seed=1), normal(2, r, d_out, seed=2)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    gradient, factor = gradient_singular_values(a, d), factor_singular_values(a)
    assert gradient.route.tolist() == factor.route.tolist() == [DIRECT, DIRECT]
    for i in range(2):
        close(gradient.values[i], reference_gradient_values(a[i], d[i]))
        close(factor.values[i], reference_singular_values(a[i]))


def test_direct_route_where_only_the_second_solver_fails(monkeypatch):
    a, d = normal(3, 8, seed=1), normal(3, 5, seed=2)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    solution = gradient_singular_values(a, d)
    assert solution.route == DIRECT
    close(solution.values, reference_gradient_values(a, d))


def test_qr_route_where_its_svd_fails(monkeypatch):
    a, d = cancelling(4, 9, 6)
    expected = reference_gradient_values(a, d)
    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    close(gradient_singular_values(a, d).values, expected)


def test_nan_where_no_solver_converges(monkeypatch):
    def scipy_fails(*args: object, **settings: object) -> np.ndarray:
        raise np.linalg.LinAlgError("nor does this")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    monkeypatch.setattr("scipy.linalg.svd", scipy_fails)
    solution = factor_singular_values(normal(4, 3))
    assert solution.values.shape == (3,)
    assert solution.values.isnan().all()
    assert solution.finite


@pytest.mark.parametrize("shape", [(3, 8, 5), (20, 6, 4), (6, 4, 9)])
def test_batched_equals_one_by_one(shape):
    r, d_in, d_out = shape
    a, d = normal(2, 3, r, d_in, seed=1), normal(2, 3, r, d_out, seed=2)
    together = gradient_singular_values(a, d)
    factors = factor_singular_values(a)
    assert together.values.shape == (2, 3, min(shape))
    assert together.floor.shape == together.route.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = gradient_singular_values(a[i, j], d[i, j])
            close(together.values[i, j], alone.values.numpy())
            close(factors.values[i, j], factor_singular_values(a[i, j]).values.numpy())


@pytest.mark.parametrize(("r", "d"), [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_below_the_floor_are_zero_and_counted(r, d, dtype):
    rows = with_values(r, d, [2.0, 1.0, 1e-3, 1e-12]).to(dtype)
    solution = factor_singular_values(rows)
    np.testing.assert_allclose(solution.values[:3], [2.0, 1.0, 1e-3], rtol=1e-4)
    assert not solution.values[3:].any()
    assert solution.below_floor == min(r, d) - 3
    assert 1e-12 < solution.floor < 1e-6


def test_float64_keeps_what_float32_rounds_away():
    rows = with_values(5, 4, [1.0, 1e-2, 8e-8])
    fine, coarse = (factor_singular_values(x) for x in (rows, rows.float()))
    np.testing.assert_allclose(fine.values[:3], [1.0, 1e-2, 8e-8], rtol=0.05)
    assert (fine.below_floor, coarse.below_floor) == (1, 2)


def test_nothing_is_counted_below_the_floor_of_full_rank():
    assert factor_singular_values(normal(7, 4)).below_floor == 0
    assert gradient_singular_values(normal(4, 7), normal(4, 9)).below_floor == 0


def test_repeated_values():
    rows = with_values(7, 5, [3.0, 3.0, 3.0, 0.5, 0.5])
    close(factor_singular_values(rows).values, np.array([3.0, 3.0, 3.0, 0.5, 0.5]))
    close(
        gradient_singular_values(torch.eye(4), 2 * torch.eye(4)).values, np.full(4, 2.0)
    )


def test_zero_rows_add_nothing():
    a, d = normal(3, 6, seed=1), normal(3, 5, seed=2)
    more_a, more_d = (torch.cat([x, torch.zeros(4, x.shape[1])]) for x in (a, d))
    values = gradient_singular_values(more_a, more_d).values
    close(values[:3], reference_gradient_values(a, d))
    assert not values[3:].any()


@pytest.mark.parametrize(("r", "d_in", "d_out"), [(3, 4, 5), (9, 4, 2)])
def test_all_zero(r, d_in, d_out):
    solution = gradient_singular_values(torch.zeros(r, d_in), normal(r, d_out))
    assert solution.values.tolist() == [0.0] * min(r, d_in, d_out)
    assert factor_singular_values(torch.zeros(r, d_in)).values.count_nonzero() == 0
    assert solution.finite
    assert solution.floor == solution.below_floor == 0  # zero, not too small to tell


def test_the_largest_numbers_there_are():
    rows = torch.tensor([[0.0, 1e308, 0.0], [1.7e308, 0.0, 0.0]], dtype=torch.float64)
    assert factor_singular_values(rows).values.tolist() == [1.7e308, 1e308]
    rows = torch.tensor([[3.4e38, 0.0, 0.0]])
    assert factor_singular_values(rows).values.tolist() == rows.amax(1).tolist()


@pytest.mark.parametrize("shape", [(0, 4, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_empty_shapes(shape, batch):
    r, d_in, d_out = shape
    a, d = torch.zeros(*batch, r, d_in), torch.zeros(*batch, r, d_out)
    solution = gradient_singular_values(a, d)
    assert solution.values.shape == (*batch, 0)
    assert solution.floor.shape == solution.below_floor.shape == batch
    assert solution.finite.shape == solution.route.shape == batch
    assert factor_singular_values(a).values.shape == (*batch, min(r, d_in))


def test_no_matrices_at_all():
    solution = gradient_singular_values(torch.zeros(0, 3, 4), torch.zeros(0, 3, 5))
    assert solution.values.shape == (0, 3)
    assert factor_singular_values(torch.zeros(0, 3, 4)).values.shape == (0, 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(3, 8, 5), (20, 6, 4)])
@pytest.mark.parametrize("where", ["activation", "adjoint"])
def test_one_member_that_is_not_finite_leaves_the_others_right(bad, shape, where):
    r, d_in, d_out = shape
    a, d = normal(3, r, d_in, seed=1), normal(3, r, d_out, seed=2)
    expected = [reference_gradient_values(a[i], d[i]) for i in (0, 2)]
    (a if where == "activation" else d)[1, 0, 1] = bad
    solution = gradient_singular_values(a, d)
    assert solution.finite.tolist() == [True, False, True]
    assert solution.values[1].isnan().all()
    close(solution.values[0], expected[0])
    close(solution.values[2], expected[1])
    factor = factor_singular_values(a if where == "activation" else d)
    assert factor.finite.tolist() == [True, False, True]
    assert factor.values.isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("power", [-100, -30, -1, 1, 17, 120])
def test_powers_of_two_scale_exactly(power):
    a, d = normal(4, 7, seed=1), normal(4, 5, seed=2)
    plain = gradient_singular_values(a, d)
    scaled = gradient_singular_values(a * 2.0**power, d)
    assert torch.equal(scaled.values, plain.values * 2.0**power)
    assert torch.equal(scaled.floor, plain.floor * 2.0**power)
    both = gradient_singular_values(a * 2.0**power, d * 2.0**-power)
    assert torch.equal(both.values, plain.values)
    factor = factor_singular_values(a * 2.0**power).values
    assert torch.equal(factor, factor_singular_values(a).values * 2.0**power)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e-30, torch.float32), (1e30, torch.float32), (3e38, torch.float32),
     (1e-200, torch.float64), (1e200, torch.float64), (1.5e308, torch.float64)],
)  # fmt: skip
@pytest.mark.parametrize("r", [3, 9])
def test_tiny_and_huge_rows(size, dtype, r):
    unit = torch.linspace(-1.0, 1.0, r * 5, dtype=torch.float64).reshape(r, 5).cos()
    unit = unit / unit.abs().max() / 8
    rows = (unit * size).to(dtype)
    expected = reference_singular_values(rows.double() / size)
    close(factor_singular_values(rows).values / size, expected)
    d = normal(r, 4, dtype=dtype) / 64
    expected = reference_gradient_values(rows.double() / size, d)
    close(gradient_singular_values(rows, d).values / size, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_widened_before_any_product(dtype):
    a, d = normal(3, 8, seed=1, dtype=dtype), normal(3, 5, seed=2, dtype=dtype)
    solution = gradient_singular_values(a, d)
    assert solution.values.dtype == torch.float64
    close(solution.values, reference_gradient_values(a, d))
    close(factor_singular_values(a).values, reference_singular_values(a))
    large = torch.full((3, 4), 6e4).to(dtype)  # its square is no half
    close(factor_singular_values(large).values, reference_singular_values(large))


@pytest.mark.parametrize(("rows", "classes"), [(30, 10), (30, 2), (6, 10), (64, 3)])
def test_softmax_adjoint_has_one_value_less_than_classes(rows, classes):
    logits = normal(rows, classes).requires_grad_()
    target = torch.arange(rows) % classes
    torch.nn.functional.cross_entropy(logits, target).backward()
    assert logits.grad is not None
    solution = factor_singular_values(logits.grad)
    assert solution.values.count_nonzero() == min(rows, classes - 1)
    a = normal(rows, 40, seed=7)
    gradient = gradient_singular_values(a, logits.grad)
    assert gradient.values.count_nonzero() == min(rows, classes - 1)


def test_rows_that_require_gradients_are_left_alone():
    a = normal(3, 4).requires_grad_()
    before = a.detach().clone()
    assert not gradient_singular_values(a, normal(3, 5)).values.requires_grad
    assert not factor_singular_values(a).values.requires_grad
    assert torch.equal(a.detach(), before)


def test_transposed_and_strided_rows():
    a, d = normal(8, 6).mT[::2], normal(5, 6, seed=1).mT[::2]
    close(gradient_singular_values(a, d).values, reference_gradient_values(a, d))
