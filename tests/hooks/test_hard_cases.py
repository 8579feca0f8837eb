"""Models that once were wrong, missed, or refused; each against masked passes."""

import copy
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spectral_mlops import capture
from spectral_mlops.errors import CaptureError, InputError
from tests.hooks.conftest import hooks_on, outputs_of, trained
from tests.networks import Gain

LABELS = list("abaca")
N = len(LABELS)


class Model(nn.Module):
    """A model of parts, and a function of it and the input."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward
        self.double()

    def forward(self, *inputs):
        return self.function(self, *inputs)


def loss_of(returned, mask=None):
    total = 0.0
    for y in outputs_of(returned):
        weight = torch.arange(1.0, 1 + y.numel()).reshape(y.shape).double().cos()
        if mask is not None:
            weight = weight * mask.reshape(-1, *[1] * (y.ndim - 1))
        total = total + (y.abs().square() * weight).sum()
    return total


def check(model, *inputs, method=None):
    """Compare group gradients with masked passes, and the twin's bits."""
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    with capture(model, LABELS, strict=True) as captured:
        loss_of(model(*inputs)).backward()
    torch.set_rng_state(state)
    loss_of(twin(*inputs)).backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    assert hooks_on(model) == 0
    found = captured.group_gradients()
    parameters = trained(model)
    for group in sorted(set(LABELS)):
        mask = torch.tensor([float(label == group) for label in LABELS]).double()
        expected = torch.autograd.grad(
            loss_of(model(*inputs), mask), list(parameters.values()),
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        for name, gradient in zip(parameters, expected, strict=True):
            got = found[group].get(name, torch.zeros_like(gradient))
            torch.testing.assert_close(got, gradient, atol=1e-9, rtol=1e-9)
    if method is not None:
        for name, how in method.items():
            (row,) = [r for r in captured.coverage() if r.parameter == name]
            assert row.method == how, row
    return captured


x2 = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double()
x3 = torch.randn(N, 6, 4, generator=torch.Generator().manual_seed(1)).double()
square = torch.randn(N, N, 4, generator=torch.Generator().manual_seed(2)).double()


def test_layers_whose_clean_names_are_the_same():
    inner = Model(lambda s, x: s.fc(x).tanh(), fc=nn.Linear(4, 4))
    model = Model(lambda s, x: s.fc(s.module(x)), module=inner, fc=nn.Linear(4, 3))
    captured = check(model, x2)
    names = [row.parameter for row in captured.coverage()]
    assert names == ["module.fc.weight", "module.fc.bias", "fc.weight", "fc.bias"]


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_parameters():
    model = Model(
        lambda s, x: s.out((x.to(torch.cdouble) @ s.w).abs()), out=nn.Linear(3, 2)
    )
    model.w = nn.Parameter(torch.randn(4, 3, dtype=torch.cdouble))
    captured = check(model, x2, method={"w": "replay"})
    assert captured.group_gradients()["a"]["w"].is_complex()
    layer = Model(lambda s, x: s.l(x.to(torch.cdouble)).abs(), l=nn.Linear(4, 3))
    layer.l.to(torch.cdouble)
    check(layer, x2, method={"l.weight": "replay"})


@pytest.mark.parametrize("steps", [N, 6, 2 * N])
def test_embeddings_of_positions_have_no_batch(steps):
    model = Model(
        lambda s, ids: s.out(torch.tanh(s.word(ids) + s.place(torch.arange(steps)))),
        word=nn.Embedding(9, 4), place=nn.Embedding(20, 4), out=nn.Linear(4, 2),
    )  # fmt: skip
    ids = torch.randint(0, 9, (N, steps), generator=torch.Generator().manual_seed(3))
    check(model, ids, method={"place.weight": "replay", "word.weight": "rows"})


def test_learned_queries_are_no_batch():
    model = Model(lambda s, x: x @ s.key(s.query).T, key=nn.Linear(4, 4))
    model.query = nn.Parameter(torch.randn(N, 4).double())
    check(model, x2, method={"key.weight": "replay"})


@pytest.mark.parametrize("x", [x3, square])
def test_a_time_first_transformer_in_a_batch_first_model(x):
    layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0)
    model = Model(lambda s, x: s.layer(x.transpose(0, 1)).transpose(0, 1), layer=layer)
    check(model, x, method={"layer.linear1.weight": "rows"})


def test_contexts_inside_each_other():
    model = Model(lambda s, x: s.gain(s.l(x)), l=nn.Linear(4, 3), gain=Gain(3))
    with capture(model, LABELS) as outer, capture(model, LABELS) as inner:
        loss_of(model(x2)).backward()
    for captured in (outer, inner):
        assert max(captured.additivity_error().values()) < 1e-10
        total = sum(g["gain.gain"] for g in captured.group_gradients().values())
        torch.testing.assert_close(total, model.gain.gain.grad)


def test_a_reentrant_checkpoint_after_relabel_says_why_not():
    model = Model(
        lambda s, x: checkpoint(s.l, x, use_reentrant=True).tanh(), l=nn.Linear(4, 3)
    )
    x = x2.clone().requires_grad_()
    with capture(model, ["real"] * N) as captured:
        loss = loss_of(model(x))
        captured.relabel(["fake"] * N)
        (loss + loss_of(model(x))).backward()
    for row in captured.coverage():
        assert row.method == "none"
        assert "use_reentrant=False" in row.why


def test_outputs_of_a_time_first_model():
    model = Model(lambda s, x: s.gain(s.gru(x)[1][0]), gru=nn.GRU(4, 3), gain=Gain(3))
    x = x3.transpose(0, 1)
    with capture(model, LABELS, batch_dim=1) as captured:
        loss_of(model(x)).backward()
    assert max(captured.additivity_error().values()) < 1e-10
    mask = torch.tensor([float(label == "a") for label in LABELS]).double()
    (expected,) = torch.autograd.grad(loss_of(model(x), mask), model.gain.gain)
    torch.testing.assert_close(captured.group_gradients()["a"]["gain.gain"], expected)


def test_buffers_in_checkpoints_are_counted_once():
    norm = nn.BatchNorm1d(4)

    def block(s):
        return lambda z: s.l(s.norm(z))

    model = Model(
        lambda s, x: checkpoint(block(s), s.gain(x), use_reentrant=False),
        gain=Gain(4), norm=norm, l=nn.Linear(4, 3),
    )  # fmt: skip
    twin = copy.deepcopy(model)
    with (
        pytest.warns(UserWarning, match="Batch statistics"),
        capture(model, LABELS) as captured,
    ):
        loss_of(model(x2)).backward()
    loss_of(twin(x2)).backward()
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    assert max(captured.additivity_error().values()) < 1e-10


def test_copies_made_inside_carry_no_hooks():
    model = nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2)).double()
    with capture(model, LABELS):
        twin = copy.deepcopy(model)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        twin(x2)
        averaged(x2)
    assert hooks_on(model) == 0


def test_hooks_go_whatever_happens_at_the_end():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3)).double()
    model[1].requires_grad_(False)
    with capture(model, LABELS) as captured:
        model(x2.unsqueeze(0).transpose(0, 1))[0].sum().backward()
        model[1].float()
    assert hooks_on(model) == 0
    assert max(captured.additivity_error().values()) < 1e-10


def test_slopes_of_channels_without_positions():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)).double()
    check(model, x2, method={"1.weight": "rows"})


def test_what_lies_before_a_reentrant_checkpoint_is_not_there():
    model = Model(
        lambda s, x: checkpoint(s.l, s.gain(x), use_reentrant=True).tanh(),
        l=nn.Linear(4, 3), gain=Gain(4),
    )  # fmt: skip
    with capture(model, LABELS) as captured:
        loss_of(model(x2)).backward()
    table = {row.parameter: row for row in captured.coverage()}
    assert table["gain.gain"].method == "none"
    assert "use_reentrant=False" in table["gain.gain"].why
    assert table["l.weight"].method == "rows"


def test_arguments_by_keyword_in_any_order():
    model = Model(
        lambda s, x, h: s.out(s.gru(hx=h.transpose(0, 1), input=x.transpose(0, 1))[0])
        .transpose(0, 1),
        gru=nn.GRU(4, 3), out=nn.Linear(3, 2),
    )  # fmt: skip
    check_gru = torch.randn(N, 1, 3).double()
    model.out = nn.Identity()
    check(model, x3, check_gru)
    pair = Model(
        lambda s, x: s.pair(input2=x[:, :3], input1=x[:, 3:]), pair=nn.Bilinear(1, 3, 2)
    )
    check(pair, x2)
    up = Model(
        lambda s, x: s.up(output_size=[14], input=x), up=nn.ConvTranspose1d(6, 2, 3, 3)
    )
    check(up, x3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated")
def test_lazy_and_scripted_layers():
    with pytest.raises(CaptureError, match="has no shape yet"):
        capture(nn.Sequential(nn.LazyLinear(3)), LABELS)
    scripted = torch.jit.script(nn.Linear(4, 4).double())
    model = nn.Sequential(scripted, nn.Linear(4, 2).double())
    check_jit = capture(model, LABELS, strict=True)
    with check_jit as captured:
        model(x2).square().sum().backward()
    assert max(captured.additivity_error().values()) < 1e-10
    assert {row.method for row in captured.coverage()} == {"replay", "rows"}


def test_functional_calls_of_a_layer_inside():
    model = Model(
        lambda s, x: torch.func.functional_call(s.l, {"weight": x[:3]}, (x,)),
        l=nn.Linear(4, 3),
    )
    with capture(model, LABELS), pytest.raises(CaptureError, match="functionally"):
        model(x2)


def test_results_stay_readable_after_the_optimizer_has_stepped():
    model = Model(
        lambda s, x: x * s.l(s.query.expand(N, 3, 4)).sum(1), l=nn.Linear(4, 4)
    )
    model.query = nn.Parameter(torch.randn(4).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
    mask = torch.zeros(6, 6).double()
    with capture(model, LABELS) as captured, capture(attention, LABELS) as other:
        loss_of(model(x2)).backward()
        attention(x3, x3, x3, attn_mask=mask)[0].square().sum().backward()
        optimizer.step()
        mask.fill_(1.0)
    assert max(captured.additivity_error().values()) < 1e-10
    assert max(other.additivity_error().values()) < 1e-10


def test_a_model_that_learns_nothing_has_empty_results():
    x = x2.clone().requires_grad_()
    with capture(nn.Tanh(), LABELS) as captured:
        captured.model(x).sum().backward()
    assert captured.spectra() == []
    assert captured.group_gradients() == {"a": {}, "b": {}, "c": {}}


def test_the_mode_of_a_layer_is_that_of_its_call():
    norm = nn.BatchNorm1d(4)
    nn.init.normal_(norm.running_mean)
    model = Model(lambda s, x: s.norm(x), norm=norm)
    with capture(model, LABELS) as captured:
        model.eval()
        loss = loss_of(model(x2))
        model.train()
        (loss + loss_of(model(x2).sin())).backward()
        model.eval()
    assert max(captured.additivity_error().values()) < 1e-10
    attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True).double()
    with capture(attention, LABELS) as captured:
        loss = attention(x3, x3, x3)[0].square().sum()
        attention.eval()
        loss.backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_a_gradient_penalty_is_no_part_of_a_replay():
    model = Model(lambda s, x: s.gain(s.l(x)).sin(), l=nn.Linear(4, 3), gain=Gain(3))
    x = x2.clone().requires_grad_()
    with capture(model, LABELS) as captured:
        torch.autograd.grad(model(x).sum(), x)
        loss_of(model(x)).backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_a_users_hook_that_changes_the_output():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    model[0].register_forward_hook(lambda m, a, o: o * 2)
    with capture(model, LABELS) as captured:
        loss_of(model(x2)).backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_weights_that_are_used_by_themselves():
    tied = Model(
        lambda s, ids: torch.tanh(s.word(ids)) @ s.word.weight.T,
        word=nn.Embedding(9, 4),
    )
    ids = torch.randint(0, 9, (N, 6), generator=torch.Generator().manual_seed(3))
    captured = check(tied, ids, method={"word.weight": "replay"})
    (row,) = captured.coverage()
    assert "outside of its layer" in row.why
    spectra = {(s.layer, s.quantity) for s in captured.spectra()}
    assert spectra == {
        ("word", "activation"),
        ("word", "adjoint"),
        ("word.weight", "gradient"),
    }
    alone = Model(
        lambda s, x: s.out(F.linear(x, s.l.weight)), l=nn.Linear(4, 3),
        out=nn.Linear(3, 2),
    )  # fmt: skip
    captured = check(alone, x2, method={"l.weight": "replay", "out.weight": "rows"})


def test_a_layer_called_with_and_without_a_batch_in_two_calls():
    model = Model(
        lambda s, x, alone: s.l(x[0]).expand(N, 3) * x[:, :3] if alone else s.l(x),
        l=nn.Linear(4, 3),
    )
    with capture(model, LABELS) as captured:
        (loss_of(model(x2, False)) + loss_of(model(x2, True))).backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_what_is_switched_on_inside_is_said():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    model[0].requires_grad_(False)
    with capture(model, LABELS) as captured:
        model[0].requires_grad_(True)
        loss_of(model(x2)).backward()
    (row, _, *_) = captured.coverage()
    assert row.method == "none"
    assert "switched on" in row.why


def test_nan_does_not_pass_as_exact():
    model = nn.Linear(4, 3).double()
    x = x2.clone()
    x[0, 0] = torch.nan
    with (
        pytest.raises(CaptureError, match="do not add up"),
        capture(model, LABELS, strict=True) as captured,
    ):
        loss_of(model(x)).backward()
    assert "weight" in captured.unattributed()


def test_one_output_without_a_batch_leaves_the_others():
    model = Model(
        lambda s, x: {"logits": s.gain(s.l(x)), "penalty": s.gain.gain.square().sum()},
        l=nn.Linear(4, 3), gain=Gain(3),
    )  # fmt: skip
    with capture(model, LABELS) as captured:
        returned = model(x2)
        (loss_of(returned["logits"]) + returned["penalty"]).backward()
    table = {row.parameter: row for row in captured.coverage()}
    assert table["gain.gain"].method == "replay"
    rest = captured.unattributed()
    torch.testing.assert_close(rest["gain.gain"], 2 * model.gain.gain.detach())


@dataclass
class Answer:
    logits: Tensor


def test_answers_in_a_dataclass():
    model = Model(lambda s, x: Answer(s.gain(s.l(x))), l=nn.Linear(4, 3), gain=Gain(3))
    with capture(model, LABELS) as captured:
        loss_of(model(x2).logits).backward()
    assert {row.method for row in captured.coverage()} == {"rows", "replay"}
    assert max(captured.additivity_error().values()) < 1e-10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": {"a", "b"}}, "not a sequence"),
        ({"groups": pd.DataFrame({"a": [1], "b": [2]})}, "table of 2 columns"),
        ({"subjects": ["x", None, "y", "z", "w"]}, "sample 1 has none"),
        ({"loss_scale": 0.0}, "finite number"),
        ({"loss_scale": float("nan")}, "finite number"),
        ({"layers": "fc"}, "give a list"),
        ({"quantities": "gradients"}, "at least one"),
        ({"batch_dim": 1.0}, "count axes from 0"),
        ({"model": None}, "not a torch.nn.Module"),
    ],
)
def test_bad_input_gets_its_sentence(settings, words):
    plain = {"model": nn.Linear(4, 2), "groups": LABELS}
    with pytest.raises(InputError, match=words):
        capture(**(plain | settings))


def test_numbers_of_numpy_and_a_second_entry():
    context = capture(nn.Linear(4, 2), LABELS, rows_per_sample=np.int64(1))
    with context:
        pass
    with pytest.raises(CaptureError, match="One context is one batch"), context:
        pass


# -- found by a second look --------------------------------------------------------


def test_sparse_inputs():
    model = Model(lambda s, x, a: torch.sparse.mm(a, s.l(x)), l=nn.Linear(4, 3))
    with capture(model, LABELS) as captured:
        loss_of(model(x2, torch.eye(N).double().to_sparse())).backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_a_gradient_that_is_written_to_afterwards_is_noticed():
    model, gradient = nn.Linear(4, 3).double(), torch.randn(N, 3).double()
    with capture(model, LABELS) as captured:
        model(x2).backward(gradient)
    gradient.zero_()
    with pytest.raises(CaptureError, match="or the gradient given to it"):
        captured.group_gradients()


def tie(s, x):
    return F.linear(s.l(x).tanh(), s.l.weight)


@pytest.mark.parametrize("how", ["logged", "called before", "in an object"])
def test_uses_beside_a_layer_are_found_whatever_else_happens(how):
    class Holder:
        def __init__(self, x):
            self.x = x

    def forward(s, x):
        if how == "logged":
            s.l(x)
        return Holder(tie(s, x)) if how == "in an object" else tie(s, x)

    model = Model(forward, l=nn.Linear(4, 4))
    with capture(model, LABELS) as captured:
        if how == "called before":
            model.l(x2)
        returned = model(x2)
        loss_of(returned.x if how == "in an object" else returned).backward()
    (row,) = [r for r in captured.coverage() if r.parameter == "l.weight"]
    if how == "in an object":  # nothing the model returned shows it: so it is said
        assert captured.additivity_error()["l.weight"] > 1e-3
    else:
        assert row.method == "replay"
        assert max(captured.additivity_error().values()) < 1e-10


def test_uses_beside_a_layer_under_autocast():
    model = Model(tie, l=nn.Linear(4, 4)).float()
    with capture(model, LABELS) as captured:
        with torch.autocast("cpu", torch.bfloat16):
            returned = model(x2.float())
        loss_of(returned.double()).backward()
    (row,) = [r for r in captured.coverage() if r.parameter == "l.weight"]
    assert row.method == "replay"
    assert max(captured.additivity_error().values()) < 1e-2


def test_a_transformer_called_sample_by_sample():
    layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)
    model = Model(lambda s, x: torch.stack([s.t(z) for z in x]), t=layer)
    check(model, square, method={"t.linear1.weight": "replay"})


def test_queries_repeated_for_every_sample_are_a_batch():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Model(
        lambda s, x: s.a(s.query.expand(N, -1, -1), x, x, need_weights=False)[0],
        a=attention,
    )
    model.query = nn.Parameter(torch.randn(1, 3, 4).double())
    check(model, x3, method={"a.in_proj_weight": "rows", "query": "replay"})


def test_numbers_of_people_are_a_batch_in_any_order():
    model = Model(lambda s, i: s.l(s.e(i - 1)), e=nn.Embedding(9, 4), l=nn.Linear(4, 2))
    for ids in ([1, 2, 3, 4, 5], [2, 1, 3, 4, 5]):
        model.zero_grad()
        check(model, torch.tensor(ids), method={"e.weight": "rows"})
    folded = nn.Embedding(9, 4)
    with capture(folded, LABELS, rows_per_sample=3) as captured:
        folded(torch.randint(0, 9, (15, 6))).square().sum().backward()
    assert {row.method for row in captured.coverage()} == {"rows"}


def test_stored_statistics_of_an_instance_norm():
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True).double()
    x = x3.mT
    with capture(norm, LABELS) as captured:
        norm.eval()
        loss = loss_of(norm(x))
        norm.train()
        (loss + loss_of(norm(x * 3 + 1))).backward()
    assert max(captured.additivity_error().values()) < 1e-10


def test_a_model_saved_inside_has_no_hooks():
    model, file = nn.Sequential(nn.Linear(4, 4)), io.BytesIO()
    with capture(model, LABELS):
        torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x2.float()), model(x2.float()))


def test_a_returned_penalty_is_unattributed():
    model = Model(lambda s, x: (s.l(x), s.l.weight.square().sum()), l=nn.Linear(4, 3))
    with capture(model, LABELS) as captured:
        logits, penalty = model(x2)
        (loss_of(logits) + penalty).backward()
    assert {row.method for row in captured.coverage()} == {"rows"}
    rest = captured.unattributed()
    torch.testing.assert_close(rest["l.weight"], 2 * model.l.weight.detach())


def test_samples_without_names_are_other_people_after_relabel():
    model = nn.Linear(4, 3).double()
    with capture(model, LABELS) as captured:
        loss = loss_of(model(x2))
        captured.relabel(LABELS)
        (loss + loss_of(model(x2))).backward()
    assert {s.subjects for s in captured.spectra() if s.group == "all"} == {10}
