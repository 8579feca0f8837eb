"""Every case, every parameter, against one masked backward pass per group."""

import copy

import pytest
import torch

from spectral_mlops import capture
from tests.cases import CASES, N, build
from tests.hooks.conftest import (
    LABELS,
    gradients_by_masking,
    hooks_on,
    loss_of,
    outputs_of,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_group_gradients_equal_masked_backward_passes(name, dtype):
    case = build(name, dtype)
    expected = gradients_by_masking(case, seed=3)
    torch.manual_seed(3)
    with capture(case.model, LABELS, batch_dim=case.batch_dim) as captured:
        loss_of(case.model(case.x)).backward()
    found = captured.group_gradients()
    assert found.keys() == expected.keys()
    for group, gradients in expected.items():
        assert found[group].keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            assert found[group][parameter].shape == gradient.shape
            gap = (found[group][parameter] - gradient).norm()
            assert gap <= TOLERANCE[dtype] * gradient.norm()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_groups_add_up_to_what_reached_each_parameter(name, dtype):
    case = build(name, dtype)
    with capture(case.model, LABELS, batch_dim=case.batch_dim) as captured:
        loss_of(case.model(case.x)).backward()
    errors = captured.additivity_error()
    trained = {n for n, p in case.model.named_parameters() if p.requires_grad}
    assert errors.keys() == trained
    assert max(errors.values()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CASES)
def test_factors_re_form_the_group_gradient(name):
    case = build(name)
    with capture(case.model, LABELS, batch_dim=case.batch_dim) as captured:
        loss_of(case.model(case.x)).backward()
    gradients = captured.group_gradients()
    for row in captured.coverage():
        if row.method != "rows" or not row.parameter.endswith("weight"):
            continue
        if name == "tied":  # the sum over the layers that hold the weight
            continue
        for group, factors in captured.factors(row.layer).items():
            formed = torch.einsum("nsi,nso->oi", factors.A, factors.adjoint)
            if group == "all":
                assert factors.samples == N
                total = sum(g[row.parameter] for g in gradients.values())
                torch.testing.assert_close(formed, total)
            else:
                assert factors.samples == LABELS.count(group)
                torch.testing.assert_close(formed, gradients[group][row.parameter])


@pytest.mark.parametrize("name", CASES)
def test_watching_changes_nothing(name):
    watched, plain = build(name), build(name)
    plain = plain._replace(model=copy.deepcopy(watched.model))
    keys = list(watched.model.state_dict())
    torch.manual_seed(5)
    with capture(watched.model, LABELS, batch_dim=watched.batch_dim):
        output = watched.model(watched.x)
        loss_of(output).backward()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    expected = plain.model(plain.x)
    loss_of(expected).backward()
    for a, b in zip(outputs_of(output), outputs_of(expected), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())
    assert list(watched.model.state_dict()) == keys
    assert hooks_on(watched.model) == 0
    pairs = zip(watched.model.parameters(), plain.model.parameters(), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
