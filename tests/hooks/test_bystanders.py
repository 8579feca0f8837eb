"""What others do to the model in the meantime: users' hooks, fast paths, failures."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_mlops import capture, register_rows
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.hooks import RowRule, VectorRows, rules
from tests.hooks.conftest import hooks_on, trained
from tests.hooks.test_hard_cases import LABELS, Model, N, check, loss_of, x2, x3
from tests.networks import Gain


def nonlinear(gradient):
    return gradient.clamp(-0.1, 0.1) * 2


# -- users' hooks ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.LSTM])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_users_hook_on_the_output_changes_what_arrives(kind, inplace):
    """Gradients are clamped on their way."""
    more = {nn.LSTM: {"batch_first": True}, nn.Conv1d: {"kernel_size": 1}}
    layer = kind(6 if kind is nn.Conv1d else 4, 4, **more.get(kind, {}))

    def forward(s, x):
        found = s.layer(x.tanh())
        y = found[0] if isinstance(found, tuple) else found
        if y.requires_grad:
            y.register_hook(nonlinear)
        return s.out(y.relu_() if inplace else y)

    model = Model(forward, layer=layer, first=nn.Linear(4, 4), out=nn.Linear(4, 2))
    model.first.requires_grad_(False)
    captured = check(model, x3)
    methods = {row.method for row in captured.coverage()}
    assert methods == {"rows", "frozen"}


@pytest.mark.parametrize("how", ["full", "pre"])
def test_a_users_backward_hook_changes_what_arrives(how):
    model = Model(
        lambda s, x: s.out(s.inner(s.first(x).tanh())),
        first=nn.Linear(4, 4), inner=nn.Linear(4, 4), out=nn.Linear(4, 2),
    )  # fmt: skip
    if how == "full":
        model.inner.register_full_backward_hook(lambda m, into, out: (into[0] * 3,))
    else:
        model.inner.register_full_backward_pre_hook(lambda m, out: (nonlinear(out[0]),))
    before = hooks_on(model)
    with capture(model, LABELS, strict=True) as captured:
        loss_of(model(x2)).backward()
    assert hooks_on(model) == before
    found = captured.group_gradients()
    for group in "abc":
        mask = torch.tensor([float(label == group) for label in LABELS]).double()
        loss = loss_of(model(x2), mask)
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(trained(model), expected, strict=True):
            torch.testing.assert_close(found[group][name], gradient)


def test_a_users_hook_that_changes_what_a_layer_takes_and_gives():
    model = Model(
        lambda s, x: s.out(s.lstm(x)[0]),
        lstm=nn.LSTM(4, 3, batch_first=True), out=nn.Linear(3, 2),
    )  # fmt: skip
    model.lstm.register_forward_pre_hook(lambda m, given: (given[0].sin(),))
    model.lstm.register_forward_hook(lambda m, given, out: (out[0] * 2, out[1]))
    model.register_forward_hook(lambda m, given, out: out.exp())
    before = hooks_on(model)
    with capture(model, LABELS, strict=True) as captured:
        loss_of(model(x3)).backward()
    assert hooks_on(model) == before
    assert {row.method for row in captured.coverage()} == {"rows"}


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum(0)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return Times.apply(x, self.scale)


def test_a_users_rule_for_a_function_with_a_backward_of_its_own():
    @register_rows(Own)
    class OwnRows(RowRule):
        names = ("scale",)

        def rows(self, layer, call):
            return VectorRows({"scale": call.input * call.adjoint})

    try:
        model = Model(
            lambda s, x: s.out(s.own(x).relu_()), own=Own(), out=nn.Linear(4, 2)
        )
        check(model, x2, method={"own.scale": "rows"})
    finally:
        del rules.ROW_RULES._entries[Own]


# -- PyTorch's fast path -----------------------------------------------------------


class Probe(nn.Module):
    """A trained output on an encoder that is frozen."""

    def __init__(self, first: bool):
        super().__init__()
        settings = {"batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(16, 2, 24, 0.1, **settings)
        self.first = nn.Linear(16, 16) if first else nn.Identity()
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(16, 2)
        self.encoder.requires_grad_(False)

    def forward(self, x):
        return self.output(self.encoder(self.first(x))).mean(1)


@pytest.fixture
def made(monkeypatch):
    """One entry for each call of an encoder's layer that took the fast path."""
    calls = []
    fast = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch,
        "_transformer_encoder_layer_fwd",
        lambda *given: calls.append(1) or fast(*given),
    )
    return calls


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_frozen_transformers_take_the_path_that_they_take(made, train, first):
    """Hooks close it; a layer in front that is trained closes it too."""
    torch.manual_seed(0)
    model = Probe(first).train(train)
    plain, x = copy.deepcopy(model), torch.randn(N, 9, 16)
    torch.manual_seed(1)
    loss = plain(x).square().sum()
    loss.backward()
    count = len(made)
    assert count == (0 if train or first else 2)
    torch.manual_seed(1)
    with capture(model, LABELS, strict=True) as captured:
        watched = model(x).square().sum()
        watched.backward()
    assert len(made) == 2 * count
    assert torch.equal(watched, loss)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert a.grad is None if b.grad is None else torch.equal(a.grad, b.grad)
    assert hooks_on(model) == 0
    layers = {s.layer for s in captured.spectra() if s.quantity == "adjoint"}
    assert ("encoder.layers.1.linear2" in layers) == first
    method = {row.parameter: row.method for row in captured.coverage()}
    assert method["encoder.layers.0.linear1.weight"] == "frozen"


def test_parts_of_a_model_evaluated_by_themselves_take_it_too(made):
    torch.manual_seed(0)
    model, x = Probe(True), torch.randn(N, 9, 16)
    model.encoder.requires_grad_(True)
    with capture(model, LABELS, strict=True) as captured:
        model.encoder.eval()
        with torch.no_grad():
            model.encoder(x[:2])
            model.encoder.layers[1](x[:2])
        assert len(made) == 3
        model.encoder.train()
        model(x).square().sum().backward()
    assert {row.method for row in captured.coverage()} == {"rows"}


# -- failures, modes ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["failed", "checkpoint"])
def test_random_numbers_of_a_call_that_came_to_nothing(how):
    """A call in evaluation mode draws none, whatever was drawn before."""
    layer = nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True)
    model = Model(lambda s, x: s.layer(x)[0], layer=layer)
    with capture(model, LABELS) as captured:
        if how == "failed":
            with pytest.raises(RuntimeError):
                model(torch.randn(N, 6, 7).double())
        else:
            again = checkpoint(model, x3, use_reentrant=False)
            again.square().sum().backward()
        model.eval()
        loss_of(model(x3)).backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_a_forward_pass_that_failed_and_is_tried_again():
    model = Model(
        lambda s, x: s.out(s.lstm(x)[0]),
        lstm=nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True), out=nn.Linear(3, 2),
    )  # fmt: skip
    with capture(model, LABELS, strict=True) as captured:
        with pytest.raises(RuntimeError):
            model(torch.randn(N, 6, 7).double())
        loss_of(model(x3)).backward()
    assert hooks_on(model) == 0
    assert captured.factors("out")["all"].samples == N


def test_evaluation_in_inference_mode_in_between():
    model = Model(lambda s, x: s.gain(s.l(x)[0]), l=nn.GRU(4, 3), gain=Gain(3))
    x = x3.transpose(0, 1)
    with capture(model, LABELS, batch_dim=1) as captured:
        with torch.inference_mode():
            model(x[:, :2])
        model(x).square().sum().backward()
        with torch.inference_mode():
            model(x[:, :2])
    assert max(captured.additivity_error().values()) < 1e-10
    assert {row.method for row in captured.coverage()} == {"rows", "replay"}


def test_what_autograd_saves_may_be_elsewhere():
    model = Model(
        lambda s, x: s.attention(*[s.lstm(x)[0]] * 3)[0],
        lstm=nn.LSTM(4, 4, 2, dropout=0.3, batch_first=True),
        attention=nn.MultiheadAttention(4, 2, 0.2, batch_first=True),
    )
    state = torch.get_rng_state()
    with torch.autograd.graph.save_on_cpu(), capture(model, LABELS) as captured:
        loss_of(model(x3)).backward()
    torch.set_rng_state(state)
    with capture(model, LABELS) as plain:
        loss_of(model(x3)).backward()
    for group, gradients in plain.group_gradients().items():
        for name, gradient in gradients.items():
            found = captured.group_gradients()[group][name]
            torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


def test_copies_and_pickles_have_no_hooks_on_parameters():
    model = nn.Sequential(nn.LSTM(4, 3, 2, dropout=0.1), Gain(3))
    attention = nn.MultiheadAttention(4, 2)
    for watched in (model, attention):
        with capture(watched, LABELS):
            assert any(p._backward_hooks for p in watched.parameters())
            for twin in (
                pickle.loads(pickle.dumps(watched)),
                copy.deepcopy(watched),
            ):
                assert not any(p._backward_hooks for p in twin.parameters())
                names = [sorted(m.__dict__) for m in watched.modules()]
                assert [sorted(m.__dict__) for m in twin.modules()] == names


def test_two_models_of_one_loss_are_watched_apart():
    first = nn.Sequential(nn.Linear(4, 4), Gain(4)).double()
    second = nn.Sequential(Gain(4), nn.Linear(4, 2)).double()
    with capture(first, LABELS) as a, capture(second, list("xyxxy")) as b:
        loss_of(second(first(x2).tanh())).backward()
    for captured, model in ((a, first), (b, second)):
        assert max(captured.additivity_error().values()) < 1e-10
        for name, parameter in model.named_parameters():
            total = sum(g[name] for g in captured.group_gradients().values())
            torch.testing.assert_close(total, parameter.grad)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]).double()
    loss = loss_of(second(first(x2).tanh()), mask)
    for name, parameter in second.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        torch.testing.assert_close(b.group_gradients()["x"][name], expected)


# -- gradients of gradients, of some parameters, kept ones --------------------------


def test_a_penalty_on_gradients_of_weights_is_no_part_of_any_group():
    model = Model(
        lambda s, x: s.out(s.first(x).tanh()), first=nn.Linear(4, 4),
        out=nn.Linear(4, 2),
    )  # fmt: skip
    with capture(model, LABELS) as captured:
        loss = loss_of(model(x2))
        found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        (loss + sum(g.square().sum() for g in found)).backward()
    assert captured.unattributed().keys() == {"out.weight"}


def test_gradients_that_are_there_already_stay_apart():
    model = Model(lambda s, x: s.l(x)[0], l=nn.GRU(4, 3, batch_first=True))
    loss_of(model(x3)).backward()
    with capture(model, LABELS) as captured:
        model.zero_grad(set_to_none=False)
        loss_of(model(x3)).backward()
        before = captured.group_gradients()
        model.zero_grad(set_to_none=False)
    assert max(captured.additivity_error().values()) < 1e-10
    for group, gradients in captured.group_gradients().items():
        for name, gradient in gradients.items():
            assert torch.equal(gradient, before[group][name])


def test_sparse_gradients_of_embeddings():
    words = torch.randint(0, 9, (N, 6), generator=torch.Generator().manual_seed(3))
    for layer in (nn.Embedding(9, 3, sparse=True), nn.EmbeddingBag(9, 3, sparse=True)):
        model = layer.double()
        with capture(model, LABELS, strict=True) as captured:
            loss_of(model(words)).backward()
        assert model.weight.grad.is_sparse
        assert {row.method for row in captured.coverage()} == {"rows"}
        found = captured.group_gradients()["a"]["weight"]
        mask = torch.tensor([float(label == "a") for label in LABELS]).double()
        (expected,) = torch.autograd.grad(loss_of(model(words), mask), model.weight)
        torch.testing.assert_close(found, expected.to_dense())


# -- what cannot be watched ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated")
def test_transforms_of_the_model_get_their_sentence():
    layer = nn.Linear(4, 3).double()
    states = torch.func.stack_module_state([copy.deepcopy(layer) for _ in range(2)])

    def ensemble(parameters, buffers, x):
        return torch.func.functional_call(layer, (parameters, buffers), (x,))

    with capture(layer, LABELS):
        for call in (
            lambda: torch.func.vmap(layer)(x2),
            lambda: torch.func.jvp(layer, (x2,), (x2,)),
            lambda: torch.func.vmap(ensemble, in_dims=(0, 0, None))(*states, x2),
        ):
            with pytest.raises(CaptureError, match="called functionally"):
                call()
    assert hooks_on(layer) == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_get_their_sentence(layout):
    layer = nn.Linear(4, 3)
    parts = [torch.randn(i + 1, 4) for i in range(N)]
    x = torch.nested.nested_tensor(parts, layout=layout)
    with capture(layer, LABELS), pytest.raises(CaptureError, match="nested tensor"):
        layer(x)
    assert hooks_on(layer) == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_inside_are_replayed():
    def forward(s, x):
        parts = torch.nested.as_nested_tensor([z[: 1 + i] for i, z in enumerate(x)])
        return s.l(parts).to_padded_tensor(0.0)

    model = Model(forward, l=nn.Linear(4, 3))
    captured = check(model, x3, method={"l.weight": "replay"})
    assert "nested" in captured.coverage()[0].why


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_scripted_models_get_their_sentence():
    for model in (
        torch.jit.script(nn.Linear(4, 3)),
        torch.jit.trace(nn.Linear(4, 3), torch.ones(2, 4)),
    ):
        with pytest.raises(InputError, match="takes no hooks"):
            capture(model, LABELS)


def test_copies_on_several_devices_get_their_sentence():
    model = nn.DataParallel(nn.Linear(4, 3))
    with capture(model, LABELS) as captured:  # on no device or one it is a plain call
        model(x2.float()).square().sum().backward()
    assert {row.parameter for row in captured.coverage()} == {"weight", "bias"}
    model.device_ids = [0, 1]
    with pytest.raises(CaptureError, match="train with DistributedDataParallel"):
        capture(model, LABELS)
