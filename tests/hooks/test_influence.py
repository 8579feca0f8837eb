import copy
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectral_mlops import capture, group_influence
from spectral_mlops.errors import InputError
from spectral_mlops.hooks import InfluenceMeans, influence
from spectral_mlops.records import ALL_LAYERS

GROUPS = list("aabcabb")


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2, groups=1), nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 40),
        nn.Tanh(), nn.Linear(40, 3),
    )  # fmt: skip
    return model.double()


def batch():
    x = torch.randn(7, 2, 4, generator=torch.manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 0, 1, 2, 0])


def group_loss(model, group):
    """The group's part of the mean loss of the batch."""
    x, y = batch()
    losses = F.cross_entropy(model(x), y, reduction="none")
    at = [i for i, label in enumerate(GROUPS) if label == group]
    return losses[at].sum().item() / len(GROUPS)


def watch(model, **settings):
    x, y = batch()
    with capture(model, GROUPS, **settings) as captured:
        F.cross_entropy(model(x), y).backward()
    return captured


def cells(found):
    return {(i.layer, i.group_a, i.group_b): i for i in found}


@pytest.mark.parametrize("layer", [ALL_LAYERS, "0", "2", "3", "5"])
def test_first_order_change_of_a_real_sgd_step(layer):
    """Step on one group's part of the gradient, and look at another group's loss."""
    model = network()
    found = cells(group_influence(captured := watch(model), 1.0))
    gradients, step = captured.group_gradients(), 1e-5
    for a in "abc":
        moved = []
        for sign in (1, -1):  # central difference: the second order cancels
            other = copy.deepcopy(model)
            chosen = {
                name: parameter
                for name, parameter in other.named_parameters()
                if layer in (ALL_LAYERS, name.rpartition(".")[0])
            }
            for name, parameter in chosen.items():
                parameter.grad = sign * gradients[a][name]
            torch.optim.SGD(chosen.values(), lr=step).step()
            moved.append({b: group_loss(other, b) for b in "abc"})
        for b in "abc":
            change = (moved[0][b] - moved[1][b]) / (2 * step)
            assert found[layer, a, b].value == pytest.approx(
                change, rel=1e-6, abs=1e-10
            )


def test_it_adds_up_to_the_effect_of_the_whole_step():
    model = network()
    found = cells(group_influence(captured := watch(model), 0.03))
    gradients = captured.group_gradients()
    for b in "abc":
        whole = -0.03 * sum(
            float((parameter.grad * gradients[b][name]).sum())
            for name, parameter in model.named_parameters()
        )
        total = sum(found[ALL_LAYERS, a, b].value for a in "abc")
        assert total == pytest.approx(whole, rel=1e-12)
        layers = {layer for layer, _, _ in found} - {ALL_LAYERS}
        assert layers == {"0", "2", "3", "5"}
        by_layer = sum(found[layer, a, b].value for layer in layers for a in "abc")
        assert by_layer == pytest.approx(whole, rel=1e-12)


def test_symmetric_and_with_the_cosine_of_the_gradients():
    found = cells(group_influence(captured := watch(network()), 0.1))
    gradients = captured.group_gradients()
    for (layer, a, b), item in found.items():
        assert item.value == pytest.approx(found[layer, b, a].value, rel=1e-12)
        if layer == ALL_LAYERS:
            x, y = (
                torch.cat([g.flatten() for g in gradients[k].values()]) for k in (a, b)
            )
            expected = float(F.cosine_similarity(x, y, dim=0))
            assert item.cosine == pytest.approx(expected, rel=1e-12)
        if a == b:
            assert item.cosine == pytest.approx(1.0)
            assert item.value < 0


def test_learning_rates_of_the_optimizer():
    model = network()
    rates = {"0": 0.5, "2": 0.25, "3": 0.125, "5": 1.0}
    optimizer = torch.optim.Adam(
        [{"params": model[int(k)].parameters(), "lr": lr} for k, lr in rates.items()]
    )
    captured = watch(model)
    found, plain = (cells(group_influence(captured, lr)) for lr in (optimizer, 1.0))
    for layer, rate in rates.items():
        cell = layer, "a", "b"
        assert found[cell].value == pytest.approx(rate * plain[cell].value)
        assert found[cell].learning_rate == pytest.approx(rate)
    total = sum(found[layer, "a", "b"].value for layer in rates)
    assert found[ALL_LAYERS, "a", "b"].value == pytest.approx(total)


def test_an_optimizer_of_other_parameters_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    with pytest.raises(InputError, match="does not hold '0\\.weight'"):
        group_influence(watch(model), optimizer)


def test_means_over_the_batches_that_have_both_groups():
    model, means, alone = nn.Linear(3, 2).double(), InfluenceMeans(), []
    for seed, groups in enumerate(["aab", "abb", "aaa"]):
        x = torch.randn(3, 3, generator=torch.manual_seed(seed), dtype=torch.float64)
        with capture(model, list(groups)) as captured:
            model(x).square().mean().backward()
        means.add(captured, 0.1)
        alone.append(cells(group_influence(captured, 0.1)))
    found = cells(means.records(epoch=7, fold=2))
    pair, self_ = (ALL_LAYERS, "a", "b"), (ALL_LAYERS, "a", "a")
    expected = (alone[0][pair].value + alone[1][pair].value) / 2
    assert found[pair].value == pytest.approx(expected)
    assert (found[pair].batches, found[self_].batches) == (2, 3)
    assert (found[pair].epoch, found[pair].fold, found[pair].source) == (7, 2, "train")
    assert means.records(epoch=8) == []


def test_named_groupings_and_a_gradient_of_zero():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with capture(model, {"dx": list("aabb"), "sex": list("fmfm")}) as captured:
        (model(x) * torch.tensor([1.0, 1, 0, 0])[:, None]).square().sum().backward()
    found = group_influence(captured, 0.1)
    assert {i.grouping for i in found} == {"dx", "sex"}
    nothing = [i for i in found if i.grouping == "dx" and "b" in (i.group_a, i.group_b)]
    assert all(i.value == 0 and math.isnan(i.cosine) for i in nothing)


def test_few_rows_and_formed_gradients_say_the_same(monkeypatch):
    """The sum over pairs of rows, and the product of the matrices."""
    captured = watch(network())
    short = [layer for _, _, layer in influence._short(captured)]
    assert [list(names.values()) for names in short] == [["3.weight", "3.bias"]]
    found = group_influence(captured, 0.1)
    monkeypatch.setattr(influence, "_short", lambda captured: [])
    for a, b in zip(found, group_influence(captured, 0.1), strict=True):
        assert (a.layer, a.group_a, a.group_b) == (b.layer, b.group_a, b.group_b)
        assert a.value == pytest.approx(b.value, rel=1e-12)
        assert a.cosine == pytest.approx(b.cosine, rel=1e-12)


@pytest.mark.parametrize("width", [2, 50])
def test_rows_that_are_not_finite_give_nan_and_no_error(width):
    model, x = nn.Linear(30, width), torch.randn(4, 30)
    x[3, 0] = math.nan
    with capture(model, list("aabb")) as captured:
        model(x).square().sum().backward()
    found = cells(group_influence(captured, 0.1))
    for a, b in ("ab", "ba", "bb"):
        assert math.isnan(found["", a, b].value)
    assert found["", "a", "a"].value < 0


def test_a_weight_that_two_layers_share():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20)).double()
    model[2].weight = model[0].weight
    x = torch.randn(3, 20, dtype=torch.float64)
    with capture(model, list("aab")) as captured:
        model(x).square().mean().backward()
    found, gradients = cells(group_influence(captured, 1.0)), captured.group_gradients()
    expected = -sum(
        float((g * gradients["b"][k]).sum()) for k, g in gradients["a"].items()
    )
    assert found[ALL_LAYERS, "a", "b"].value == pytest.approx(expected, rel=1e-12)


def test_a_layer_used_twice_and_relabelled_batches():
    torch.manual_seed(0)
    layer = nn.Linear(20, 20).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(3, 20, dtype=torch.float64)
    with capture(model, list("aab")) as captured:
        first = model(x).square().mean()
        captured.relabel(list("bcc"))
        (first + model(x + 1).square().mean()).backward()
    found, gradients = cells(group_influence(captured, 1.0)), captured.group_gradients()
    for a, b in product("abc", repeat=2):
        pairs = [(g, gradients[b][k]) for k, g in gradients[a].items()]
        expected = -sum(float((x * y).sum()) for x, y in pairs)
        assert found[ALL_LAYERS, a, b].value == pytest.approx(expected, rel=1e-12)
