"""What ordinary training does around a watched batch."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor, capture
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.hooks import recorder
from spectral_mlops.hooks.layers import attention
from tests.cases import build
from tests.hooks.conftest import LABELS, everything_in, hooks_on, loss_of, trained
from tests.networks import Bare, Folded, Gain


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Gain(4), nn.Linear(4, 3)).double()


def total(captured, name):
    return sum(group[name] for group in captured.group_gradients().values())


# -- batches, labels ---------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_an_empty_batch_reaches_nothing(named):
    model, x = network(), torch.empty(0, 5).double()
    groups = {"dx": []} if named else []
    with capture(model, groups) as captured:
        model(x).square().sum().backward()
    assert captured.group_gradients() == ({"dx": {}} if named else {})
    assert max(captured.additivity_error().values()) == 0
    assert not [s for s in captured.spectra() if s.values.any()]


def test_an_empty_batch_without_any_backward_pass():
    with capture(network(), []) as captured:
        pass
    assert captured.group_gradients() == {}
    assert captured.spectra() == []


@pytest.mark.parametrize("name", ["conv3d", "lstm-deep", "attention", "bag-max"])
def test_a_group_of_one_and_a_group_of_nobody(name):
    case = build(name)
    with capture(case.model, ["only"] + ["b"] * 6) as captured:
        loss = loss_of(case.model(*case.inputs))
        captured.relabel(["b"] * 7)
        (loss + loss_of(case.model(*case.inputs))).backward()
    assert max(captured.additivity_error().values()) < 1e-10
    found = {(s.layer, s.quantity, s.group): s for s in captured.spectra()}
    for (_, _, group), s in found.items():
        assert s.samples == {"only": 1, "b": 13, "all": 14}[group]


def test_slices_folded_into_the_batch_axis():
    torch.manual_seed(1)
    model, x = Folded().double(), torch.randn(7, 3, 2, 5).double()
    layers = ("slice.0", "slice.1", "embed")
    by_name = dict.fromkeys(layers, 3)
    for rows_per_sample in (3, by_name):
        with capture(model, LABELS, rows_per_sample=rows_per_sample) as captured:
            model(x).square().sum().backward()
        assert max(captured.additivity_error().values()) < 1e-10
        chosen = torch.tensor([label == "b" for label in LABELS])
        alone = copy.deepcopy(model)
        alone.zero_grad()
        alone(x[chosen]).square().sum().backward()
        for name, parameter in trained(alone).items():
            torch.testing.assert_close(
                captured.group_gradients()["b"][name], parameter.grad
            )
        assert captured.factors("slice.0")["b"].A.shape == (4, 3 * 4, 4)
        assert captured.factors("embed")["b"].A.shape == (4, 3, 12)
        model.zero_grad()
    with capture(model, LABELS) as captured:
        model(x).square().sum().backward()
    with pytest.raises(CaptureError, match=r"'slice.0' has 21 rows.*there are 7"):
        captured.spectra()


def test_the_model_itself_may_be_called_with_folded_rows():
    model, x = network(), torch.randn(12, 5).double()
    with capture(model, list("abab"), rows_per_sample=3) as captured:
        model(x).square().sum().backward()
    assert max(captured.additivity_error().values()) < 1e-12
    alone = network()
    alone(x[[0, 1, 2, 6, 7, 8]]).square().sum().backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(
            captured.group_gradients()["a"][name], parameter.grad
        )


def test_a_batch_axis_elsewhere_gets_its_sentence():
    case = build("linear-time-first")
    words = r"6 samples \(axis 0.*batch_dim="
    with capture(case.model, LABELS), pytest.raises(CaptureError, match=words):
        case.model(*case.inputs)
    words = r"batch_dim=3.*\(6, 7, 5\), which has no axis 3"
    with (
        capture(case.model, LABELS, batch_dim=3),
        pytest.raises(CaptureError, match=words),
    ):
        case.model(*case.inputs)
    inner = nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 2)).double()
    with capture(inner, LABELS) as captured:
        inner(torch.randn(7, 3, 5).double()).sum().backward()
    with pytest.raises(CaptureError, match=r"another than the model's \(batch_dim=0\)"):
        captured.group_gradients()


# -- forwards and backwards --------------------------------------------------------


def test_a_forward_that_is_never_backwarded_is_no_part():
    model, x = network(), torch.randn(4, 5).double()
    with capture(model, list("abab")) as captured:
        model(torch.randn(4, 5).double())
        model(x).square().sum().backward()
    alone = network()
    alone(x).square().sum().backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(total(captured, name), parameter.grad)
    assert captured.factors("0")["all"].A.shape == (4, 1, 5)


def test_generator_and_discriminator():
    """Real and fake batches, two losses, and gradients that pass through both."""
    torch.manual_seed(2)
    model = nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(2, 5), nn.Tanh()),
            "discriminator": nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)),
        }
    ).double()
    real, noise = torch.randn(4, 5).double(), torch.randn(4, 2).double()
    plain = copy.deepcopy(model)

    def step(networks, relabel):
        generator, discriminator = networks["generator"], networks["discriminator"]
        discriminator(real).exp().sum().backward()
        relabel(["a", "b", "b", "b"])
        fake = generator(noise)
        discriminator(fake.detach()).square().sum().backward()
        discriminator(fake).cos().sum().backward()

    with capture(model, ["a", "a", "a", "b"]) as captured:
        step(model, captured.relabel)
    step(plain, lambda _: None)
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        torch.testing.assert_close(total(captured, name), a.grad)
    assert max(captured.additivity_error().values()) < 1e-12
    # Group a: three real people and one fake one.
    alone = copy.deepcopy(model)
    alone.zero_grad()
    fake = alone["generator"](noise[:1])
    (
        alone["discriminator"](real[:3]).exp().sum()
        + alone["discriminator"](fake.detach()).square().sum()
        + alone["discriminator"](fake).cos().sum()
    ).backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(
            captured.group_gradients()["a"][name], parameter.grad
        )


def test_accumulation_is_a_context_per_micro_batch():
    model, x = network(), torch.randn(8, 5).double()
    plain = copy.deepcopy(model)
    for part in (x[:4], x[4:]):
        (plain(part).square().sum() / 8).backward()
    sums = {}
    for part in (x[:4], x[4:]):
        with capture(model, list("aabb"), loss_scale=1 / 8) as captured:
            (model(part).square().sum() / 8).backward()
        assert max(captured.additivity_error().values()) < 1e-12
        for name in trained(model):
            sums[name] = sums.get(name, 0) + total(captured, name)
    for name, parameter in trained(model).items():
        torch.testing.assert_close(sums[name], parameter.grad)
        assert torch.equal(parameter.grad, plain.get_parameter(name).grad)


@pytest.mark.parametrize("alone", [False, True])
def test_evaluation_in_between_is_that_of_an_unwatched_model(alone):
    """Without gradients a transformer takes its fast path, which hooks close."""
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = layer if alone else nn.Sequential(nn.Linear(8, 8), layer)
    plain = copy.deepcopy(model)
    x = torch.randn(7, 5, 8)
    results = []
    for network_, watch in ((model, True), (plain, False)):
        torch.manual_seed(4)
        context = capture(network_, LABELS) if watch else nullcontext()
        with context as captured:
            network_.eval()
            with torch.no_grad():
                first = network_(torch.ones(3, 5, 8))
            network_(x)  # no loss
            network_.train()
            network_(x).square().sum().backward()
            network_.eval()
            with torch.no_grad():
                second = network_(torch.ones(3, 5, 8))
        results.append((first, second, [p.grad for p in network_.parameters()]))
        if watch:
            assert max(captured.additivity_error().values()) < 1e-5
    (a, b, gradients), (c, d, others) = results
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert all(torch.equal(x, y) for x, y in zip(gradients, others, strict=True))


def test_a_failed_evaluation_leaves_the_layers_watched():
    model, x = network(), torch.randn(4, 5).double()
    with capture(model, list("abab")) as captured:
        with torch.no_grad(), pytest.raises(RuntimeError):
            model(torch.randn(4, 9).double())
        model(x).sum().backward()
    assert max(captured.additivity_error().values()) < 1e-12


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "evaluation", "backward", "after"])
def test_nothing_is_left_after_any_way_out(error, where):
    case = build("encoder")
    model, before = case.model, copy.deepcopy(case.model)
    monitor = SpectralMonitor(model)

    def fail(*given):
        raise error

    def interrupted(context):
        with context:
            handle = None
            if where in ("forward", "evaluation"):
                handle = model.norm1.register_forward_hook(fail)
            try:
                with torch.set_grad_enabled(where != "evaluation"):
                    returned = model(*case.inputs)
            finally:
                if handle is not None:
                    handle.remove()
            if where == "backward":
                returned.register_hook(fail)
            loss_of(returned).backward()
            fail()

    for context in (capture(model, LABELS), monitor.watch(LABELS)):
        with pytest.raises(error):
            interrupted(context)
        assert hooks_on(model) == 0
        model.zero_grad()
    pairs = zip(everything_in(model), everything_in(before), strict=True)
    for (what, a), (_, b) in pairs:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, what


# -- mixed precision ---------------------------------------------------------------

# No LSTM: the CPU's own kernel has no half precision on every machine.
AMP = ["linear-3d", "conv2d", "gru", "attention-weights", "encoder", "bare"]


@pytest.mark.filterwarnings("ignore:.*oneDNN")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", AMP)
def test_autocast_and_a_scaler(name, dtype):
    case = build(name, torch.float32)
    plain, fresh = copy.deepcopy(case.model), copy.deepcopy(case.model)
    for model, watch in ((case.model, True), (plain, False)):
        torch.manual_seed(6)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6)
        optimizer = torch.optim.SGD(trained(model).values(), lr=1e-3)
        context = (
            capture(model, LABELS, scaler=scaler) if watch else torch.enable_grad()
        )
        with context as captured:
            with torch.autocast("cpu", dtype):
                returned = model(*case.inputs)
            scaler.scale(loss_of(returned.float()) / 7).backward()
            scaler.step(optimizer)
            scaler.update(2.0**3)
        if watch:
            errors = captured.additivity_error()
            found = captured.group_gradients()
    assert max(errors.values()) < 1e-2
    for (name_, a), b in zip(
        trained(case.model).items(), plain.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        whole = sum(group[name_] for group in found.values())
        unscaled = a.grad  # scaler.step has unscaled it
        assert (whole - unscaled).norm() <= 1e-2 * max(
            unscaled.norm(), *(group[name_].norm() for group in found.values())
        )
    expected = {}
    for group in found:
        torch.manual_seed(6)
        with torch.autocast("cpu", dtype):
            returned = fresh(*case.inputs)
        mask = torch.tensor([label == group for label in LABELS])
        loss = loss_of(returned.float(), mask) / 7
        gradients = torch.autograd.grad(loss, list(trained(fresh).values()))
        expected[group] = dict(zip(trained(fresh), gradients, strict=True))
    for group, gradients in found.items():
        for name_, gradient in gradients.items():
            size = max(expected[g][name_].norm() for g in expected)
            assert (gradient - expected[group][name_]).norm() <= 2e-2 * size


def test_an_input_changed_in_place_under_autocast_is_kept():
    """Autograd saves the cast input there, and minds no change of the original."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            x = x * 1.0
            x += self.inner(x)
            return x

    model, x = Residual(), torch.randn(4, 4)
    with capture(model, list("abab")) as captured:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).sum()
        loss.backward()
    assert max(captured.additivity_error().values()) < 1e-2
    assert torch.equal(captured.factors("inner")["all"].A.squeeze(1), x)


# -- functional, strict ----------------------------------------------------


def test_functional_calls_get_their_sentence():
    model, x = network(), torch.randn(4, 5).double()
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    with capture(model, list("abab")):
        with pytest.raises(CaptureError, match="called functionally"):
            torch.func.functional_call(model, parameters, (x,))
        with pytest.raises(CaptureError, match="called functionally"):
            torch.func.grad(lambda y: model(y).sum())(x)
    assert hooks_on(model) == 0


def test_strict_names_the_parameter_that_is_not_accounted_for():
    model, x = network(), torch.randn(4, 5).double()
    words = r"do not add up.*3\.weight"
    with (
        pytest.raises(CaptureError, match=words),
        capture(model, list("abab"), strict=True),
    ):
        (model(x).sum() + model[3].weight.square().sum()).backward()

    class Summed(Bare):
        def forward(self, x):
            return super().forward(x).sum()

    summed, words = Summed().double(), r"not covered: matrix \(the model returned"
    with (
        pytest.raises(CaptureError, match=words),
        capture(summed, list("abab"), strict=True),
    ):
        summed(x).backward()
    with capture(model, list("abab"), strict=True) as captured:
        model(x).sum().backward()
    assert captured.spectra()


class SampleBySample(nn.Module):
    """Passes the rows of one sample at a time through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(5, 3)

    def forward(self, x):
        return torch.stack([self.step(sample).tanh().sum(0) for sample in x])


def test_strict_sees_an_axis_that_only_has_the_size_of_the_batch():
    model, x = SampleBySample().double(), torch.randn(4, 4, 5).double()
    with (
        pytest.raises(CaptureError, match=r"splits other groups.*step\.weight"),
        capture(model, list("abab"), strict=True),
    ):
        model(x).square().sum().backward()
    for shape in ((4, 4), (4, 7)):
        features = nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 3)).double()
        x = torch.randn(*shape, 5).double()
        with capture(
            features, list("abab"), strict=True, rows_per_sample=shape[1]
        ) as captured:
            features(x).square().sum().backward()
        assert {row.method for row in captured.coverage()} == {"rows"}


def test_a_layer_once_seen_without_batch_is_replayed_from_then_on():
    model = SampleBySample().double()
    monitor = SpectralMonitor(model)
    for length in (6, 4):  # the second has the size of the batch
        x = torch.randn(4, length, 5).double()
        with monitor.watch(list("abab")) as captured:
            model(x).square().sum().backward()
        assert {row.method for row in captured.coverage()} == {"replay"}
        found = captured.group_gradients()["a"]["step.weight"]
        loss = model(x[0::2]).square().sum()
        expected = torch.autograd.grad(loss, model.step.weight)[0]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        monitor.collect()


def test_strict_leaves_batch_statistics_to_the_warning():
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with capture(model, list("abab"), strict=True) as captured:
        model(torch.randn(4, 5)).square().sum().backward()
    assert captured.spectra()


def test_strict_does_not_hide_another_error():
    def fail():
        model = network()
        with capture(model, list("abab"), strict=True):
            penalty = model[0].weight.sum()
            (model(torch.randn(4, 5).double()).sum() + penalty).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_labels_that_are_no_single_values():
    for labels in ([["a"], ["b"]], [{"a": 1}, {"b": 2}], torch.ones(2, 2), [{1}, {2}]):
        with pytest.raises(InputError, match="not a single value"):
            capture(network(), labels)


# -- passes that end elsewhere -----------------------------------------------------


def test_a_pass_that_ends_at_an_input_is_no_part_of_the_gradient():
    """As a saliency map is made, in the middle of a step."""
    for name in ("linear-3d", "lstm", "attention-weights"):
        case = build(name)
        x = case.inputs[0].requires_grad_()
        with capture(case.model, LABELS) as captured:
            returned = case.model(*case.inputs)
            torch.autograd.grad(loss_of(returned).exp(), x, retain_graph=True)
            loss_of(returned).backward()
        assert max(captured.additivity_error().values()) < 1e-10


def test_a_pass_for_some_of_the_parameters():
    model, x = network(), torch.randn(4, 5).double()
    with capture(model, list("abab")) as captured:
        torch.autograd.grad(model(x).square().sum(), model[3].weight)
    assert captured.reached_layers() == ["3"]
    errors = captured.additivity_error()
    assert errors["3.weight"] < 1e-12
    assert errors["0.weight"] == 0
    assert errors["3.bias"] > 1  # what was not asked for shows


@pytest.mark.parametrize("name", ["lstm", "gru-inplace-after", "attention-heads"])
def test_a_pass_that_begins_at_the_layer_itself(name):
    case = build(name)
    with capture(case.model, LABELS) as captured:
        returned = case.model(*case.inputs)
        returned.backward(torch.ones_like(returned))
    assert max(captured.additivity_error().values()) < 1e-10


def test_all_outputs_of_a_recurrent_layer_are_taken_together(monkeypatch):
    """One more forward and backward pass of the layer, whatever the loss uses."""
    from spectral_mlops.hooks.layers.recurrent import RecurrentRule

    made = []
    rows = RecurrentRule.rows
    monkeypatch.setattr(
        RecurrentRule, "rows", lambda *args: made.append(1) or rows(*args)
    )
    case = build("lstm-deep")
    with capture(case.model, LABELS) as captured:
        loss_of(case.model(*case.inputs)).backward()
    assert len(made) == 1
    assert max(captured.additivity_error().values()) < 1e-10


def test_an_optimizer_that_steps_in_the_backward_pass():
    """Recurrent and attention rules need the weights of the forward pass."""
    for name in ("lstm-deep", "attention-weights", "encoder-norm-first"):
        case = build(name)
        handles = []
        for parameter in trained(case.model).values():

            def step(p):
                with torch.no_grad():
                    p.add_(p.grad, alpha=-1.0)

            handles.append(parameter.register_post_accumulate_grad_hook(step))
        with capture(case.model, LABELS) as captured:
            loss_of(case.model(*case.inputs)).backward()
        assert max(captured.additivity_error().values()) < 1e-10


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("again", [False, True])
def test_attention_seen_inside_is_attention_computed_again(monkeypatch, dropout, again):
    """What the graph shows, against an independent backward pass per group."""
    if again:  # as where somebody else manages what autograd saves
        monkeypatch.setattr(recorder, "_saving_is_managed", lambda: True)
    torch.manual_seed(1)
    model = nn.MultiheadAttention(6, 2, dropout, batch_first=True).double()
    x = torch.randn(5, 4, 6).double()
    labels, computed = list("abbab"), []
    attend = attention._attend
    monkeypatch.setattr(
        attention, "_attend", lambda *given: computed.append(1) or attend(*given)
    )
    with capture(model, labels) as captured:
        output, shares = model(x, x, x)
        loss = output.square().sum((1, 2)) + shares.square().sum((1, 2))
        gradients = {
            group: torch.autograd.grad(
                loss[[i for i, label in enumerate(labels) if label == group]].sum(),
                list(model.parameters()),
                retain_graph=True,
            )
            for group in "ab"
        }
        before = len(captured._recorder.arrivals.calls[0].rows)
        assert before  # several passes add up: rows of both groups' passes
    found = captured.group_gradients()
    for group, expected in gradients.items():
        pairs = zip(model.named_parameters(), expected, strict=True)
        for (name, _), gradient in pairs:
            torch.testing.assert_close(found[group][name], gradient)
    assert bool(computed) is again
