import doctest
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_mlops import capture, register_rows
from spectral_mlops.errors import CaptureError, InputError, UnknownNameError
from spectral_mlops.hooks import VectorRows, rules
from tests.hooks.conftest import hooks_on
from tests.networks import Gain


def network(inputs=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def watched(model, x, groups, **settings):
    with capture(model, groups, **settings) as captured:
        model(x).square().sum().backward()
    return captured


def test_the_example_of_the_docstring():
    names = {"capture": capture, "nn": nn, "torch": torch}
    (example,) = doctest.DocTestFinder().find(
        capture, "capture", globs=names, module=False, extraglobs=None
    )[:1]
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_a_single_sample_and_a_single_group():
    captured = watched(network(), torch.randn(1, 5).double(), ["only"])
    assert captured.group_gradients().keys() == {"only"}
    assert {s.samples for s in captured.spectra()} == {1}
    assert all(np.count_nonzero(s.values) <= 1 for s in captured.spectra())


def test_labels_of_any_kind_give_the_text_of_their_scalars():
    x = torch.randn(4, 5).double()
    for labels, keys in [
        ([0, 1, 1, 0], {"0", "1"}),
        (np.array([0.5, 1.0, 1.0, 0.5]), {"0.5", "1.0"}),
        (torch.tensor([True, False, False, True]), {"False", "True"}),
        (("x", "y", "x", "x"), {"x", "y"}),
        (
            [torch.tensor(3), torch.tensor(4), torch.tensor(3), torch.tensor(3)],
            {"3", "4"},
        ),
    ]:
        assert watched(network(), x, labels).group_gradients().keys() == keys


def test_named_groupings_are_kept_apart():
    x = torch.randn(4, 5).double()
    groups = {"dx": ["p", "c", "p", "c"], "sex": [1, 1, 1, 2]}
    captured = watched(network(), x, groups)
    found = captured.group_gradients()
    assert {name: set(inner) for name, inner in found.items()} == {
        "dx": {"p", "c"},
        "sex": {"1", "2"},
    }
    total = {
        name: sum(g["0.weight"] for g in inner.values())
        for name, inner in found.items()
    }
    torch.testing.assert_close(total["dx"], total["sex"])
    assert {(s.grouping, s.group) for s in captured.spectra()} == {
        ("all", "all"),
        ("dx", "p"),
        ("dx", "c"),
        ("sex", "1"),
        ("sex", "2"),
    }
    assert captured.factors("0")["sex"]["2"].samples == 1


def test_spectra_are_those_of_the_formed_matrices():
    captured = watched(network(), torch.randn(6, 2, 5).double(), list("aabbbb"))
    for s in captured.spectra():
        factors = captured.factors(s.layer)[s.group]
        a, d = factors.A.flatten(0, 1), factors.adjoint.flatten(0, 1)
        matrix = {"gradient": a.mT @ d, "activation": a, "adjoint": d}[s.quantity]
        expected = np.linalg.svd(matrix.numpy(), compute_uv=False)[: len(s.values)]
        np.testing.assert_allclose(s.values, expected, atol=1e-6 * expected[0])
        assert (s.rows, s.samples) == (len(a), factors.samples)
        assert s.shape == (a.shape[1], d.shape[1])


def test_the_loss_scale_is_recorded():
    x = torch.randn(8, 5).double()
    for settings, c in [
        ({}, 1 / 8),
        ({"reduction": "sum"}, 1.0),
        ({"loss_scale": 0.3}, 0.3),
    ]:
        captured = watched(network(), x, list("abababab"), **settings)
        assert {s.loss_scale for s in captured.spectra()} == {c}


def test_several_backward_passes_add_up():
    model, x = network(), torch.randn(4, 5).double()
    with capture(model, list("abab")) as captured:
        output = model(x)
        output.square().sum().backward(retain_graph=True)
        output.sum().backward()
    assert max(captured.additivity_error().values()) < 1e-12
    total = sum(g["0.weight"] for g in captured.group_gradients().values())
    torch.testing.assert_close(total, model[0].weight.grad)


def test_an_earlier_gradient_is_not_part_of_it():
    model, x = network(), torch.randn(4, 5).double()
    model(x).sum().backward()
    assert max(watched(model, x, list("abab")).additivity_error().values()) < 1e-12


def test_a_weight_penalty_shows_as_a_gap():
    model, x = network(), torch.randn(4, 5).double()
    with capture(model, list("abab")) as captured:
        (model(x).square().sum() + model[2].weight.square().sum()).backward()
    errors = captured.additivity_error()
    assert errors["2.weight"] > 1e-3
    assert errors["2.bias"] < 1e-12
    assert errors["0.weight"] < 1e-12


def test_a_weight_used_outside_its_layer_shows_as_a_gap_of_one():
    model, x = network(), torch.randn(4, 3, 5).double()
    with capture(model, list("abab")) as captured:
        nn.functional.linear(model(x), model[2].weight.T).sum().backward()
        nn.functional.linear(x, model[0].weight).sum().backward()
    assert captured.additivity_error()["0.weight"] > 1e-3


def test_relabel_describes_the_calls_from_there_on():
    model = network()
    real, fake = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    with capture(model, ["a", "a", "a", "b"]) as captured:
        first = model(real).square().sum()
        captured.relabel(["a", "b", "b", "b"])
        (first + model(fake).square().sum()).backward()
    parts = captured.group_gradients()
    expected = network()
    chosen = torch.cat([real[:3], fake[:1]])
    expected(chosen).square().sum().backward()
    torch.testing.assert_close(parts["a"]["0.weight"], expected[0].weight.grad)
    assert captured.factors("0")["a"].samples == 4
    assert max(captured.additivity_error().values()) < 1e-12


def test_relabelled_calls_are_counted_in_a_replay():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()).double()
    first, second = (torch.randn(n, 2, 4).double() for n in (4, 3))
    with capture(model, ["a", "a", "a", "b"], reduction="sum") as captured:
        loss = model(first).square().sum()
        captured.relabel(["b", "b", "a"], subjects=["x", "x", "y"])
        (loss + model(second).square().sum()).backward()
    found = {
        s.group: (s.samples, s.subjects, s.batch_samples) for s in captured.spectra()
    }
    assert found == {"a": (4, 4, 7), "b": (3, 2, 7), "all": (7, 6, 7)}
    chosen = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()).double()
    chosen.load_state_dict(model.state_dict())
    chosen(torch.cat([first[:3], second[2:]])).square().sum().backward()
    torch.testing.assert_close(
        captured.group_gradients()["a"]["0.weight"], chosen[0].weight.grad
    )


def test_relabel_refuses_other_sizes_under_a_mean():
    with capture(network(), list("ab")) as captured:
        with pytest.raises(InputError, match="loss_scale="):
            captured.relabel(list("aab"))
        with pytest.raises(InputError, match="groupings"):
            captured.relabel({"sex": list("ab")})


def test_rows_folded_into_the_batch_need_to_be_announced():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.slice = nn.Linear(5, 4)
            self.output = nn.Linear(4, 2)

        def forward(self, x):  # [N, 3, 5]
            return self.output(
                self.slice(x.flatten(0, 1)).unflatten(0, (-1, 3)).mean(1)
            )

    model, x = Folded().double(), torch.randn(4, 3, 5).double()
    captured = watched(model, x, list("abab"), rows_per_sample={"slice": 3})
    assert captured.factors("slice")["a"].A.shape == (2, 3, 5)
    assert max(captured.additivity_error().values()) < 1e-12
    alone = Folded().double()
    alone.load_state_dict(model.state_dict())
    alone(x[[0, 2]]).square().sum().backward()
    torch.testing.assert_close(
        captured.group_gradients()["a"]["slice.weight"], alone.slice.weight.grad
    )
    with pytest.raises(CaptureError, match=r"'slice' has 12 rows.*rows_per_sample"):
        watched(model, x, list("abab")).group_gradients()


def test_a_batch_of_another_size_names_relabel():
    model = network()
    with capture(model, list("abc")), pytest.raises(CaptureError, match="relabel"):
        model(torch.randn(4, 5).double())
    assert hooks_on(model) == 0


def test_validation_inside_the_context_is_left_alone():
    model = network()
    with capture(model, list("abc")) as captured:
        with torch.no_grad():
            model(torch.randn(9, 5).double())
        model(torch.randn(3, 5).double()).sum().backward()
    assert max(captured.additivity_error().values()) < 1e-12


def test_reading_before_a_backward_pass_is_refused():
    model = network()
    with capture(model, list("ab")) as captured:
        model(torch.randn(2, 5).double())
        for read in (
            captured.group_gradients,
            captured.spectra,
            captured.additivity_error,
        ):
            with pytest.raises(CaptureError, match="inside the context"):
                read()
        with pytest.raises(CaptureError, match="inside the context"):
            captured.factors("0")


def test_no_hook_is_left_after_an_exception():
    model = network()
    outputs = []

    def fail():
        with capture(model, list("ab")):
            outputs.append(model(torch.randn(2, 5).double()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks_on(model) == 0
    assert not outputs[0]._backward_hooks


def test_a_backward_pass_after_the_context_is_not_captured():
    model = network()
    with capture(model, list("ab")) as captured:
        loss = model(torch.randn(2, 5).double()).sum()
    loss.backward()
    with pytest.raises(CaptureError, match="Nothing was captured"):
        captured.group_gradients()


def test_the_graph_is_not_kept_alive():
    model, x = network(), torch.randn(2, 5).double()
    with capture(model, list("ab")) as captured:
        output = model(x)
        output.sum().backward()
    graph = weakref.ref(output)
    del output
    gc.collect()
    assert graph() is None
    assert captured.spectra()


def test_an_input_overwritten_after_the_batch_is_noticed():
    model, x = network(), torch.randn(2, 5).double()
    with capture(model, list("ab")) as captured:
        model(x).sum().backward()
    x.zero_()
    with pytest.raises(CaptureError, match="'0' was changed in place"):
        captured.spectra()


def test_an_unguarded_input_is_copied():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.inner.weight.requires_grad_(False)

        def forward(self, x):
            y = self.inner(x)
            x.mul_(0)  # autograd does not mind: the weight needs no gradient
            return y

    model, x = Frozen().double(), torch.ones(2, 3).double()
    with capture(model, list("ab")) as captured:
        model(x).sum().backward()
    assert torch.equal(captured.factors("inner")["all"].A, torch.ones(2, 1, 3).double())


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_forwards_count_once(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)
            self.output = nn.Linear(4, 2)

        def forward(self, x):
            hidden = checkpoint(self.inner, x, use_reentrant=reentrant)
            return self.output(torch.tanh(hidden))

    x = torch.randn(4, 5).double().requires_grad_()
    captured = watched(Checkpointed().double(), x, list("abab"))
    assert max(captured.additivity_error().values()) < 1e-12
    assert captured.factors("inner")["all"].A.shape == (4, 1, 5)


def test_half_precision_rows_are_widened():
    model = network().bfloat16()
    captured = watched(model, torch.randn(4, 5).bfloat16(), list("abab"))
    assert captured.group_gradients()["a"]["0.weight"].dtype == torch.float32
    assert max(captured.additivity_error().values()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaled_loss_is_unscaled_again(dtype):
    model = nn.Sequential(nn.Linear(5, 4), Gain(4), nn.LayerNorm(4), nn.Linear(4, 3))
    plain = nn.Sequential(nn.Linear(5, 4), Gain(4), nn.LayerNorm(4), nn.Linear(4, 3))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(6, 5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, list("aabbbb"), scaler=scaler) as captured:
        with torch.autocast("cpu", dtype):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(2.0**5)  # the scale of this batch is the one before
    with torch.autocast("cpu", dtype):
        plain(x).float().square().mean().backward()
    found = captured.group_gradients()
    assert max(captured.additivity_error().values()) < 1e-2
    for name, parameter in plain.named_parameters():
        total = sum(gradients[name] for gradients in found.values())
        assert (total - parameter.grad).norm() < 1e-2 * parameter.grad.norm() + 1e-5
    assert {row.method for row in captured.coverage()} == {"rows", "replay"}
    assert not captured.unattributed()


def test_non_finite_rows_are_marked_and_training_goes_on():
    model, x = network(), torch.randn(4, 5).double()
    x[1, 2] = torch.nan
    captured = watched(model, x, list("abab"))
    status = {(s.layer, s.quantity, s.group): s.status for s in captured.spectra()}
    assert status["0", "activation", "a"] == "ok"
    assert status["0", "activation", "b"] == "non-finite"
    assert status["0", "activation", "all"] == "non-finite"


def test_every_parameter_is_listed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(5, 2)
            self.unused = nn.Linear(5, 2)
            self.norm = nn.LayerNorm(2)
            self.bare = nn.Parameter(torch.ones(2))
            self.idle = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.norm(self.used(x)) * self.bare

    captured = watched(Odd().double(), torch.randn(3, 5).double(), list("aab"))
    table = {row.parameter: row for row in captured.coverage()}
    assert table.keys() == dict(Odd().named_parameters()).keys()
    assert (table["used.weight"].method, table["used.weight"].split) == ("rows", "row")
    assert (table["bare"].method, table["bare"].split) == ("replay", "loss")
    assert table["norm.weight"].method == "rows"
    assert "no row rule for Odd" in table["bare"].why
    assert table["unused.bias"].method == table["idle"].method == "unused"
    assert captured.additivity_error().keys() == table.keys()
    assert max(captured.additivity_error().values()) < 1e-12


def test_what_no_output_shows_cannot_be_replayed_and_strict_refuses_it():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 2)
            self.bare = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.inner(x) * self.bare).square().sum()

    model, x = Summed().double(), torch.randn(3, 5).double()
    with capture(model, list("aab")) as captured:
        model(x).backward()
    table = {row.parameter: row for row in captured.coverage()}
    assert table["bare"].method == "none"
    assert "no axis of 3 samples" in table["bare"].why
    assert table["inner.weight"].method == "rows"
    assert captured.additivity_error().keys() == {"inner.weight", "inner.bias"}
    with pytest.raises(InputError, match=r"0\.weight \(not among.*register_rows"):
        capture(network(), ["a"], layers=["2"], strict=True)


def test_a_reentrant_checkpoint_stands_in_the_way_of_a_replay_only():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 4), Gain(4))
            self.output = nn.Linear(4, 2)

        def forward(self, x):
            return self.output(checkpoint(self.inner, x, use_reentrant=True))

    plain = Checkpointed().double()
    model = Checkpointed().double()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(4, 5).double().requires_grad_()
    plain(x).square().sum().backward()
    captured = watched(model, x, list("abab"))
    table = {row.parameter: row for row in captured.coverage()}
    assert table["inner.1.gain"].method == "none"
    assert "use_reentrant=False" in table["inner.1.gain"].why
    assert table["inner.0.weight"].method == "rows"
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_recomputation_goes_with_a_replay():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 4), Gain(4), nn.Dropout())
            self.output = nn.Linear(4, 2)

        def forward(self, x):
            return self.output(checkpoint(self.inner, x, use_reentrant=False))

    captured = watched(
        Checkpointed().double(), torch.randn(4, 5).double(), list("abab")
    )
    assert max(captured.additivity_error().values()) < 1e-12
    assert {row.method for row in captured.coverage()} == {"rows", "replay"}


def test_in_place_operations_on_the_returned_tensor_do_no_harm():
    model = nn.Sequential(nn.Linear(5, 4), Gain(4)).double()
    with capture(model, list("abab")) as captured:
        model(torch.randn(4, 3, 5).double()).mul_(3).relu_().square().sum().backward()
    assert max(captured.additivity_error().values()) < 1e-12


def test_batch_statistics_add_up_by_row_and_by_loss():
    model = nn.Sequential(nn.Linear(5, 4), Gain(4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model, x = model.double(), torch.randn(6, 5).double()
    with pytest.warns(UserWarning, match=r"'2'.*1\.gain are split by whose loss"):
        captured = watched(model, x, list("aabbbb"))
    assert max(captured.additivity_error().values()) < 1e-10
    split = {row.parameter: row.split for row in captured.coverage()}
    assert split["0.weight"] == split["2.weight"] == "row"
    assert split["1.gain"] == "loss"


def test_losses_that_bypass_the_returned_tensor_show_as_a_gap():
    model = nn.Sequential(nn.Linear(5, 4), Gain(4)).double()
    with capture(model, list("abab")) as captured:
        penalty = model[1].gain.square().sum() + model[0].weight.sum()
        (model(torch.randn(4, 5).double()).square().sum() + penalty).backward()
    assert captured.additivity_error()["1.gain"] > 1e-3
    assert captured.additivity_error()["0.bias"] < 1e-12
    rest = captured.unattributed()
    assert rest.keys() == {"0.weight", "1.gain"}
    torch.testing.assert_close(rest["1.gain"], 2 * model[1].gain.detach())
    torch.testing.assert_close(rest["0.weight"], torch.ones(4, 5).double())


def test_replayed_matrices_have_a_gradient_spectrum_and_no_factors():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(Own(2, 3, (2, 1)), nn.Flatten(), nn.Linear(3 * 3 * 4, 2))
    model = model.double()
    captured = watched(model, torch.randn(5, 2, 4, 4).double(), list("aabbb"))
    found = {(s.layer, s.quantity, s.group): s for s in captured.spectra()}
    gradients = captured.group_gradients()
    total = sum(g["0.weight"] for g in gradients.values())
    for group, samples in (("a", 2), ("b", 3), ("all", 5)):
        gradient = total if group == "all" else gradients[group]["0.weight"]
        expected = np.linalg.svd(gradient.flatten(1).numpy().T, compute_uv=False)
        s = found["0.weight", "gradient", group]
        np.testing.assert_allclose(s.values, expected, atol=1e-6 * expected[0])
        assert (s.samples, s.subjects, s.batch_samples) == (samples, samples, 5)
        assert s.shape == (4, 3)
    assert not [key for key in found if key[0] == "0.bias"]
    assert ("0.weight", "activation", "a") not in found


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_reparametrised_layers_are_not_taken_for_plain_ones():
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    for model in (old, new):
        captured = watched(model, torch.randn(4, 3), list("abab"))
        assert {row.method for row in captured.coverage()} == {"replay"}
        assert max(captured.additivity_error().values()) < 1e-5


def test_a_call_without_batch_axis_is_replayed():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.context = nn.Linear(3, 2)
            self.output = nn.Linear(5, 2)

        def forward(self, x):
            return self.output(x) + self.context(torch.ones(3).double())

    model, x = Shared().double(), torch.randn(4, 5).double()
    captured = watched(model, x, list("abaa"))
    methods = {row.parameter: row for row in captured.coverage()}
    assert methods["context.weight"].method == "replay"
    assert "without batch axis" in methods["context.weight"].why
    assert methods["output.weight"].method == "rows"
    assert max(captured.additivity_error().values()) < 1e-12
    alone = Shared().double()
    alone.load_state_dict(model.state_dict())
    alone(x[[1]]).square().sum().backward()
    found = captured.group_gradients()["b"]
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    assert {s.layer for s in captured.spectra()} == {"output", "context.weight"}


def test_layers_chooses_and_refuses_what_is_not_there():
    captured = watched(
        network(), torch.randn(4, 5).double(), list("abab"), layers=["2"]
    )
    assert {s.layer for s in captured.spectra()} == {"2"}
    assert {r.method for r in captured.coverage() if r.layer == "0"} == {"none"}
    with pytest.raises(UnknownNameError, match=r"'hidden'.*0, 2"):
        capture(network(), ["a"], layers=["hidden"])
    with pytest.raises(UnknownNameError, match="'0' is watched"):
        captured.factors("0")


def test_names_are_clean_of_wrappers():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

        def forward(self, x):
            return self.module(x)

    captured = watched(Wrapper(network()), torch.randn(4, 5).double(), list("abab"))
    assert set(captured.additivity_error()) == {
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    }


def test_users_register_rules_from_outside():
    example = rules.register_rows.__doc__.split("Example:")[1]
    names = {"nn": nn, "torch": torch, "register_rows": register_rows}
    names |= {"RowRule": rules.RowRule, "VectorRows": VectorRows}
    test = doctest.DocTestParser().get_doctest(example, names, "rule", None, 0)
    assert len([x for x in example.splitlines() if x.strip()]) < 20
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    scale, rule = test.globs["Scale"], test.globs["ScaleRows"]
    try:
        captured = watched(scale(2).double(), torch.randn(4, 2).double(), list("abab"))
        (row,) = captured.coverage()
        assert row.method == "rows"
        assert max(captured.additivity_error().values()) < 1e-12
        with pytest.raises(InputError, match="registered already"):
            register_rows(scale)(rule)
    finally:
        del rules.ROW_RULES._entries[scale]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduction": "none"}, "'mean' or 'sum'"),
        ({"batch_dim": -1}, "count axes from 0"),
        ({"quantities": ["weights"]}, "gradient, activation, adjoint"),
        ({"quantities": []}, "at least one"),
        ({"rows_per_sample": 0}, "at least 1"),
        ({"rows_per_sample": {"9": 2}}, "holds no parameters"),
        ({"missing": "drop"}, "'raise' or 'group'"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises((InputError, UnknownNameError), match=words):
        capture(network(), ["a", "b"], **settings)
