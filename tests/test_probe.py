import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import InputError
from spectral_mlops.probe import margin
from tests.hooks.conftest import hooks_on
from tests.small_run import network, people, probe_batches


def test_the_probe_leaves_everything_as_it_was():
    x, y, _, who = people()
    model = nn.Sequential(network(dropout=0.5), nn.BatchNorm1d(2))
    model[1].eval()
    cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    SpectralMonitor(model).probe(probe_batches(x, y, who))
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip(model.parameters(), gradients, strict=True)
    )
    assert hooks_on(model) == 0


def test_probe_batches_are_one_set_of_people():
    x, y, _, who = people()
    monitor = SpectralMonitor(network())
    one = monitor.probe([(x, y, {"dx": y}, who)], epoch=2)
    two = monitor.probe(probe_batches(x, y, who), epoch=2)
    assert (one.source, one.epoch, one.batches) == ("probe", 2, 1)
    for a, b in zip(one.spectra, two.spectra, strict=True):
        assert (a.layer, a.quantity, a.group, a.subjects) == (
            b.layer,
            b.quantity,
            b.group,
            b.subjects,
        )
        np.testing.assert_allclose(a.values, b.values, atol=1e-5 * a.values[0])
    tables = [r.divergences(permutations=39)[["value", "z", "p"]] for r in (one, two)]
    np.testing.assert_allclose(*tables, rtol=1e-3, atol=1e-3)


def test_margin_adjoints_are_the_derivatives_of_the_margin():
    x, y, _, who = people()
    model = network()
    result = SpectralMonitor(model, quantities=["adjoint"], layers=["0"]).probe(
        [(x, y, {"dx": y}, who)]
    )
    first = x.requires_grad_()
    hidden = model[0](first)
    out = model[3](torch.relu(hidden))
    (adjoint,) = torch.autograd.grad((out[:, 1] - out[:, 0]).sum(), hidden)
    expected = np.linalg.svd(adjoint.numpy(), compute_uv=False)
    pooled = next(s for s in result.spectra if s.group == "all")
    np.testing.assert_allclose(pooled.values, expected, atol=1e-5 * expected[0])
    assert pooled.loss_scale == 1.0


def test_margin_of_one_two_and_more_outputs():
    two = torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert margin(two).tolist() == [3.0, -2.0]
    assert margin(torch.tensor([[1.0, 4.0, 2.0]])).tolist() == [2.0]
    assert margin(torch.tensor([[0.5], [2.0]])).tolist() == [0.5, 2.0]
    assert margin(torch.tensor([0.5, 2.0])).tolist() == [0.5, 2.0]
    for outputs in (torch.zeros(2, 3, 4), {"logits": two}):
        with pytest.raises(InputError, match="logits"):
            margin(outputs)


def test_probe_refuses_no_people_and_a_loss_without_function():
    monitor = SpectralMonitor(network())
    with pytest.raises(InputError, match="no batches"):
        monitor.probe([])
    with pytest.raises(InputError, match="loss_function"):
        monitor.probe([], adjoint="loss")


def test_people_who_were_watched_in_training_are_no_probe():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    with monitor.watch({"dx": y[:4]}, who[:4]):
        cross_entropy(model(x[:4]), y[:4]).backward()
    monitor.probe([(x[4:], y[4:], {"dx": y[4:]}, who[4:])])
    with pytest.raises(InputError, match=r"2 people .* training, the first sub-02"):
        monitor.probe([(x[2:], y[2:], {"dx": y[2:]}, who[2:])])
    fresh = SpectralMonitor(model)  # whoever stands behind samples was not told
    with fresh.watch({"dx": y}):
        cross_entropy(model(x), y).backward()
    fresh.probe([(x, y, {"dx": y}, None)])
