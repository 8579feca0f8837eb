"""Every case, every parameter, against slow references that share nothing."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spectral_mlops import capture
from tests.cases import CASES, Case, N, build
from tests.hooks.conftest import (
    DEVICES,
    LABELS,
    gradients_by_masking,
    gradients_one_by_one,
    loss_of,
    trained,
)

pytestmark = [
    # PyTorch's own words about its own layers.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MIXING = [name for name in CASES if build(name).mixes]
# Where rows, not losses, split a gradient: batch statistics mix the samples.
SPLIT_BY_ROW = ("batch-norm-train", "batch-norm-no-stats")


def watched(case: Case, seed: int = 3):
    torch.manual_seed(seed)
    with capture(case.model, LABELS, batch_dim=case.batch_dim) as captured:
        loss_of(case.model(*case.inputs), None, case.batch_dim).backward()
    return captured


def assert_same(found, expected, dtype: torch.dtype) -> None:
    """Relative to the parameter's gradient over all groups."""
    assert found.keys() == expected.keys()
    for group, gradients in expected.items():
        for parameter, gradient in gradients.items():
            size = max(expected[g][parameter].norm() for g in expected)
            if parameter not in found[group]:
                assert not size  # never reached
                continue
            assert found[group][parameter].shape == gradient.shape
            gap = (found[group][parameter] - gradient).norm()
            assert gap <= TOLERANCE[dtype] * size, (group, parameter)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in CASES if name not in MIXING])
def test_group_gradients_equal_sums_of_batches_of_one(name, dtype, device):
    case = build(name, dtype, device)
    expected = gradients_one_by_one(case)
    assert_same(watched(case).group_gradients(), expected, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [x for x in MIXING if x not in SPLIT_BY_ROW])
def test_group_gradients_equal_masked_backward_passes(name, dtype, device):
    case = build(name, dtype, device)
    expected = gradients_by_masking(case, seed=3)
    assert_same(watched(case).group_gradients(), expected, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_groups_add_up_to_what_reached_each_parameter(name, dtype, device):
    case = build(name, dtype, device)
    captured = watched(case)
    errors = captured.additivity_error()
    assert errors.keys() == trained(case.model).keys()
    assert max(errors.values()) <= TOLERANCE[dtype]
    assert not captured.unattributed()
    total: dict[str, Tensor] = {}
    for gradients in captured.group_gradients().values():
        for parameter, gradient in gradients.items():
            total[parameter] = total.get(parameter, 0) + gradient
    for parameter, tensor in trained(case.model).items():
        if tensor.grad is not None:
            sizes = [g[parameter].norm() for g in captured.group_gradients().values()]
            gap = (total[parameter] - tensor.grad).norm()
            assert gap <= TOLERANCE[dtype] * max(*sizes, tensor.grad.norm())


REPLAYED = {
    "bare": {"matrix", "scale"},
    "bare-3d": {"matrix", "scale"},
    "matrix": {"code.", "gru."},
    "nested": {"1.0.matrix", "1.0.scale"},
    "outputs": {"gain"},
    "parametrized": {"0."},
    "parametrized-attention": {"self_attn."},
    "recurrent-cells": {"lstm.", "gru."},
    "spectral-norm": {"0."},
    "subclass": {"0."},
    "views": {"gain"},
    "without-batch": {"context."},
}
"""All that has no rows, by the beginning of its name."""


@pytest.mark.parametrize("name", CASES)
def test_what_has_a_rule_is_seen_by_rows(name):
    """A rule that gave way to a replay would be as exact, and have no factors."""
    case = build(name)
    for row in watched(case).coverage():
        replayed = row.parameter.startswith(tuple(REPLAYED.get(name, ())))
        trained_ = row.parameter in trained(case.model)
        expected = ("replay" if replayed else "rows") if trained_ else "frozen"
        assert row.method == expected, row
        assert row.split == {"rows": "row", "replay": "loss", "frozen": ""}[expected]
        assert bool(row.why) == (expected != "rows")


@pytest.mark.parametrize("name", CASES)
def test_two_backward_passes_of_one_graph_add_up(name):
    """Whatever a rule keeps of the first is still there for the second."""
    case = build(name)
    once = watched(case).group_gradients()
    case.model.zero_grad()
    torch.manual_seed(3)
    with capture(case.model, LABELS, batch_dim=case.batch_dim) as captured:
        loss = loss_of(case.model(*case.inputs), None, case.batch_dim)
        loss.backward(retain_graph=True)
        loss.mul(-3).backward()
    assert max(captured.additivity_error().values()) <= 1e-10
    twice = {
        group: {name: -2 * gradient for name, gradient in gradients.items()}
        for group, gradients in once.items()
    }
    assert_same(captured.group_gradients(), twice, torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_factors_re_form_the_group_gradient(name):
    case = build(name)
    captured = watched(case)
    gradients = captured.group_gradients()
    table = captured.coverage()
    layers = {
        row.layer: row.parameter
        for row in table
        if row.method == "rows" and trained(case.model)[row.parameter].ndim > 1
    }
    vectors = vector_parameters(case.model)
    layers = {k: v for k, v in layers.items() if v not in vectors}
    shared = {"tied": {"there", "back"}, "tied-embedding": {"embedding", "output"}}
    for layer, parameter in layers.items():
        if layer in shared.get(name, ()):
            continue  # the gradient is the sum over the layers that hold the weight
        shape = trained(case.model)[parameter].shape
        for group, factors in captured.factors(layer).items():
            everyone = group == "all"
            assert factors.samples == (N if everyone else LABELS.count(group))
            whole = sum(g[parameter] for g in gradients.values())
            expected = whole if everyone else gradients[group][parameter]
            formed = formed_from(factors, case.model, layer).reshape(shape)
            torch.testing.assert_close(formed, expected, atol=1e-10, rtol=1e-10)


def vector_parameters(model: torch.nn.Module) -> set[str]:
    """Scales, shifts and added keys are vectors, whatever their shape."""
    norms = torch.nn.LayerNorm | torch.nn.RMSNorm
    return {
        f"{holder}.{local}".lstrip(".")
        for holder, module in model.named_modules()
        for local, _ in module.named_parameters(recurse=False)
        if isinstance(module, norms) or local in ("bias_k", "bias_v")
    }


def formed_from(factors, model: torch.nn.Module, layer: str) -> Tensor:
    """``ΔᵀA``, in the order of the weight."""
    a = factors.A
    module = dict(model.named_modules()).get(layer)
    if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
        a = F.one_hot(a, module.num_embeddings).double()
        return torch.einsum("nsi,nso->io", a, factors.adjoint)
    if getattr(module, "transposed", False):
        # [C_in/G · k, C_out/G] of every block, with the input's channels first
        kernel = torch.Size(module.kernel_size).numel()
        blocks = torch.einsum("...nsi,...nso->...io", a, factors.adjoint)
        blocks = blocks.unflatten(-2, (-1, kernel)).transpose(-1, -2)
        return blocks.flatten(0, -4) if blocks.ndim > 3 else blocks
    return torch.einsum("...nsi,...nso->...oi", a, factors.adjoint)


@pytest.mark.parametrize("name", CASES)
def test_spectra_are_those_of_the_group_gradient(name):
    case = build(name)
    captured = watched(case)
    gradients = captured.group_gradients()
    shapes = {n: p.shape for n, p in trained(case.model).items()}
    holder = {row.layer: row.parameter for row in reversed(captured.coverage())}
    seen = set()
    for s in captured.spectra():
        if s.quantity != "gradient" or s.group == "all":
            continue
        parameter = s.layer if s.layer in shapes else holder[s.layer]
        module = dict(case.model.named_modules()).get(s.layer)
        if getattr(module, "groups", 1) > 1:
            continue  # a union over blocks: test_factors.py
        g = gradients[s.group][parameter]
        matrix = g.flatten(1)
        if isinstance(module, torch.nn.modules.conv._ConvNd) and module.transposed:
            matrix = g.movedim(1, 0).flatten(1)  # [C_out, C_in · k]
        expected = torch.linalg.svdvals(matrix)
        values = torch.from_numpy(s.values)
        short = min(len(values), len(expected))
        top = expected[0] if len(expected) else 0.0
        assert (values[:short] - expected[:short]).abs().max() <= 1e-6 * top
        assert not (expected[short:] > 1e-6 * top).any()
        seen.add(parameter)
    matrices = {
        row.parameter
        for row in captured.coverage()
        if row.method in ("rows", "replay") and len(shapes[row.parameter]) > 1
    }
    grouped = {
        f"{n}.weight".lstrip(".")
        for n, m in case.model.named_modules()
        if getattr(m, "groups", 1) > 1
    }
    assert seen >= matrices - grouped - vector_parameters(case.model)
