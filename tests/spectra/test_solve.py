import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key
from spectral_mlops.spectra.solve import ACCURACY, solve
from tests.reference import reference_gradient_values, reference_singular_values
from tests.spectra.engine import (
    cancelling,
    check_all,
    close,
    normal,
    spectra,
    with_values,
)

POOLED = [None]


def one_layer(a: Tensor, d: Tensor) -> LayerFactors:
    return LayerFactors("x", a.unsqueeze(1), d.unsqueeze(1))


def fails(*arguments: object, **settings: object) -> Tensor:
    raise drivers.TorchLinAlgError("does not converge")


def scipy_fails(*arguments: object, **settings: object) -> Tensor:
    raise scipy.linalg.LinAlgError("nor does this")


@pytest.mark.parametrize("shape", [(4, 9, 6), (6, 9, 7), (5, 5, 5)])
@pytest.mark.parametrize("size", [1.0, 1e-150])
def test_cancelling_factors_take_the_qr_route(shape, size):
    a, d = cancelling(*shape)
    found = spectra([one_layer(a * size, d)], Groups(len(a), POOLED))
    gradient = found["x", 0, "gradient"]
    expected = reference_gradient_values(a, d)
    assert gradient.route == "qr"
    assert gradient.exact
    close(gradient, expected, size)
    assert found["x", 0, "activation"].route == "gram"


def test_only_the_cancelling_group_and_block_change_route():
    a, d = cancelling(4, 9, 6)
    plain_a, plain_d = normal(4, 9).double(), normal(4, 6, seed=1).double()
    both = torch.cat([plain_a, a]), torch.cat([plain_d, d])
    members = [torch.arange(4), torch.arange(4, 8)]
    found = check_all([one_layer(*both)], Groups(8, members))
    routes = [found["x", g, "gradient"].route for g in range(2)]
    assert routes == ["gram", "qr"]
    blocks = [torch.stack(pair).unsqueeze(2) for pair in ((plain_a, a), (plain_d, d))]
    union = check_all([LayerFactors("b", *blocks)], Groups(4, POOLED))
    assert union["b", 0, "gradient"].route == "qr"


def test_rows_that_were_overwritten_are_not_read():
    a, d = cancelling(4, 9, 6)
    problems = reduce_layers([one_layer(a, d)], Groups(4, POOLED), ["gradient"])
    a.add_(1.0)
    (one,) = solve(problems)
    assert one.route == "gram"
    assert not one.exact
    assert one.floor > ACCURACY * one.values[0]
    assert (one.values[one.values > 0] >= one.floor).all()


@pytest.mark.parametrize(("r", "d_in", "d_out"), [(10, 3, 2), (2, 3, 4), (2, 5, 2)])
def test_factors_that_cancel_wholly_have_no_values(r, d_in, d_out):
    a = torch.ones(r, d_in, dtype=torch.float64)
    d = normal(r, d_out, dtype=torch.float64)
    d = d - d.mean(0)
    one = spectra([one_layer(a, d)], Groups(r, POOLED))["x", 0, "gradient"]
    assert not one.values.any()
    assert one.below_floor == min(r, d_in, d_out)
    assert not one.exact


@pytest.mark.parametrize("spread", [0, 2, 6, 9])
@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("side", [0, 1])
def test_deficient_and_decaying_factors(spread, rank, side):
    decay = 10.0 ** -torch.linspace(0.0, spread, rank)
    low = (normal(12, rank, seed=1) * decay) @ normal(rank, 30, seed=2)
    rows = [low, normal(12, 20, seed=3)]
    check_all([one_layer(*(rows if side == 0 else rows[::-1]))], Groups(12, POOLED))


@pytest.mark.parametrize("offset", [1.0, 30.0, 1000.0])
def test_rows_around_a_mean_under_adjoints_that_sum_to_zero(offset):
    a, d = normal(16, 40, seed=1) + offset, normal(16, 25, seed=2)
    d = d - d.mean(0)
    groups = Groups(16, [torch.arange(7), torch.arange(7, 16), None])
    check_all([one_layer(a, d)], groups)


def test_silent_and_repeated_samples():
    a = normal(9, 20, seed=1)
    a[3], a[5] = 0.0, a[4]
    d = normal(9, 15, seed=2)
    found = check_all([one_layer(a, d)], Groups(9, POOLED))
    assert found["x", 0, "gradient"].values[-1] == 0
    assert found["x", 0, "activation"].below_floor == 2


def test_repeated_values_and_values_under_the_floor():
    rows = with_values(7, 9, [3.0, 3.0, 1.0, 1.0, 1e-12])
    found = check_all([one_layer(rows, rows)], Groups(7, POOLED))
    one = found["x", 0, "activation"]
    assert not one.values[4:].any()
    assert one.below_floor == 3
    assert one.exact
    assert 1e-12 < one.floor < 1e-6


def test_softmax_adjoint_has_one_value_less_than_classes():
    logits = normal(30, 10).requires_grad_()
    torch.nn.functional.cross_entropy(logits, torch.arange(30) % 10).backward()
    assert logits.grad is not None
    rows = one_layer(normal(30, 40, seed=1), logits.grad)
    found = check_all([rows], Groups(30, [torch.arange(6), torch.arange(6, 30)]))
    for quantity in ("gradient", "adjoint"):
        assert np.count_nonzero(found["x", 0, quantity].values) == 6
        assert np.count_nonzero(found["x", 1, quantity].values) == 9


@pytest.mark.parametrize("size", [63, 66, 200])
def test_sizes_around_the_switches(size):
    check_all(
        [one_layer(normal(size, 210), normal(size, 205, seed=1))], Groups(size, POOLED)
    )


def test_steps_are_solved_together_in_order():
    parts = [
        reduce_layers(
            [one_layer(normal(5, 9, seed=s), normal(5, 8))], Groups(5, POOLED)
        )
        for s in range(3)
    ]
    together = solve([problem for part in parts for problem in part])
    alone = [one for part in parts for one in solve(part)]
    assert [one.key for one in together] == [one.key for one in alone]
    for x, y in zip(together, alone, strict=True):
        np.testing.assert_allclose(x.values, y.values, rtol=1e-12)


def test_nothing_to_solve():
    assert solve([]) == []


@pytest.mark.parametrize("shape", [(3, 8, 5), (20, 6, 4)])
def test_second_driver_where_the_first_fails(monkeypatch, shape):
    r, d_in, d_out = shape
    problems = [one_layer(normal(r, d_in, seed=1), normal(r, d_out, seed=2))]
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    found = check_all(problems, Groups(r, POOLED))
    assert {one.route for one in found.values()} == {"direct"}


def test_one_that_fails_leaves_the_others_alone(monkeypatch):
    solver = torch.linalg.eigvalsh

    def sometimes(gram: Tensor) -> Tensor:
        if (gram.diagonal(dim1=-2, dim2=-1).sum(-1) > 1e6).any():
            raise drivers.TorchLinAlgError("this one is hard")
        return solver(gram)

    monkeypatch.setattr(torch.linalg, "eigvalsh", sometimes)
    a, d = normal(8, 20, seed=1), normal(8, 15, seed=2)
    a[4:] *= 1e4
    groups = Groups(8, [torch.arange(4), torch.arange(4, 8)])
    found = check_all([one_layer(a, d)], groups)
    assert [found["x", g, "activation"].route for g in (0, 1)] == ["gram", "direct"]


def test_marked_where_no_driver_converges(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    monkeypatch.setattr(scipy.linalg, "svd", scipy_fails)
    found = spectra([one_layer(normal(4, 9), normal(4, 7))], Groups(4, POOLED))
    for one in found.values():
        assert one.status == "not converged"
        assert one.values.shape == (4,)
        assert np.isnan(one.values).all()
        assert not one.exact


def test_singular_gram_whose_eigenvectors_fail(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    given = one_layer(normal(1, 9).expand(4, 9), normal(4, 7))
    check_all([given], Groups(4, POOLED))
    monkeypatch.setattr(np.linalg, "svd", scipy_fails)
    found = spectra([given], Groups(4, POOLED))
    assert found["x", 0, "gradient"].status == "not converged"
    assert found["x", 0, "activation"].status == "ok"


def test_qr_route_where_its_svd_fails(monkeypatch):
    a, d = cancelling(4, 9, 6)
    expected = reference_gradient_values(a, d)
    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    found = spectra([one_layer(a, d)], Groups(4, POOLED))
    close(found["x", 0, "gradient"], expected)


def test_roots_of_any_gram():
    rows = normal(3, 5, 9, dtype=torch.float64)
    rows[1, 2] = 0.0
    rows[2, 3] = rows[2, 1]
    gram = rows @ rows.mT
    for some in (gram, gram[:1], gram[1:2], torch.zeros(2, 4, 4).double()):
        lower = drivers.root(some)
        torch.testing.assert_close(lower @ lower.mT, some, rtol=0, atol=1e-13)


def test_members_left_unsolved_keep_their_place():
    given = [one_layer(normal(4, 9), normal(4, 7))]
    problems = reduce_layers(given, Groups(4, POOLED))
    problems[0] = dataclasses.replace(problems[0], status="out of memory")
    solved = solve(problems)
    assert solved[0].key == problems[0].keys[0]
    assert solved[0].status == "out of memory"
    assert {one.status for one in solved[len(problems[0].keys) :]} == {"ok"}


def test_keys_are_plain():
    (one,) = solve(
        reduce_layers([LayerFactors(("step", 3), normal(2, 1, 5))], Groups(2, POOLED),
                      ["activation"])
    )  # fmt: skip
    assert one.key == Key(("step", 3), 0, "activation")
    close(one, reference_singular_values(normal(2, 1, 5).flatten(0, 1)))
