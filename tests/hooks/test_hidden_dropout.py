"""Dropout that a fused kernel draws where nobody sees it, as cuDNN's between layers."""

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor, capture, leading_directions
from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks.layers.recurrent import HIDDEN, RecurrentRule
from tests.hooks.conftest import LABELS, loss_of, trained
from tests.networks import Recurrent


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_hidden_dropout_is_pulled_back_by_group(kind, batch_first, monkeypatch):
    """As under cuDNN, which draws its masks where nobody sees them."""
    monkeypatch.setattr(RecurrentRule, "hidden", lambda *_: HIDDEN)
    torch.manual_seed(7)
    model = Recurrent(kind, num_layers=2, dropout=0.5, batch_first=batch_first).double()
    x, lengths = torch.randn(7, 6, 3).double(), torch.ones(7)
    with capture(model, LABELS) as captured:
        torch.manual_seed(8)
        loss_of(model(x, lengths)).backward()
    table = {row.parameter: row for row in captured.coverage()}
    row = table["rnn.weight_hh_l1"]
    assert (row.method, row.split, row.why) == ("replay", "row", HIDDEN)
    assert max(captured.additivity_error().values()) < 1e-10
    mask = torch.tensor([label == "a" for label in LABELS])
    torch.manual_seed(8)
    loss = loss_of(model(x, lengths), mask)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for name, gradient in zip(trained(model), gradients, strict=True):
        torch.testing.assert_close(captured.group_gradients()["a"][name], gradient)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", ["", "sorted", "unsorted"])
@pytest.mark.parametrize("aggregate", ["batch", "window"])
def test_hidden_dropout_leaves_the_first_activation_known(
    bidirectional, packed, aggregate, monkeypatch
):
    ways = 2 if bidirectional else 1
    settings = {"num_layers": 3, "dropout": 0.5, "bidirectional": bidirectional}
    torch.manual_seed(7)
    model = Recurrent(nn.LSTM, batch_first=True, packed=packed, **settings).double()
    x = torch.randn(11, 6, 3).double()
    lengths = torch.tensor([6, 2, 5, 6, 1, 3, 4, 6, 6, 5, 2])
    lengths = lengths.sort(descending=True)[0] if packed == "sorted" else lengths

    def run():
        torch.manual_seed(8)
        monitor = SpectralMonitor(model, every=1, aggregate=aggregate)
        with monitor.watch(list("abababababa"), list("ijklmnopqrs")):
            model(x, lengths).square().sum((1, 2)).sin().mean().backward()
        return monitor.collect()

    visible = run()
    seen = {(s.layer, s.quantity, s.group): s for s in visible.spectra}
    monkeypatch.setattr(RecurrentRule, "hidden", lambda *_: HIDDEN)
    found = run()
    hidden = {(s.layer, s.quantity, s.group): s for s in found.spectra}
    activations = {layer for layer, quantity, _ in hidden if quantity == "activation"}
    recurrent = {layer for layer in activations if layer.startswith("rnn")}
    assert len(recurrent) == 2 * ways
    assert all("_l0" in layer for layer in recurrent)
    adjoints = {layer for layer, quantity, _ in hidden if quantity == "adjoint"}
    assert adjoints == {"output"}
    for key, record in hidden.items():
        np.testing.assert_allclose(record.values, seen[key].values, rtol=1e-9)
        if key[1] == "activation":
            assert record.rows == seen[key].rows
    where = ["layer", "quantity", "divergence"]
    compared = found.divergences(permutations=99).set_index(where).sort_index()
    expected = visible.divergences(permutations=99).set_index(where).sort_index()
    assert expected.p.loc[sorted(recurrent), "activation"].notna().all()
    for name in recurrent:
        np.testing.assert_allclose(
            compared.p.loc[name, "activation"], expected.p.loc[name, "activation"]
        )
        assert compared.p.loc[name, "gradient"].isna().all()


def test_factors_of_a_hidden_call_are_refused(monkeypatch):
    monkeypatch.setattr(RecurrentRule, "hidden", lambda *_: HIDDEN)
    model = Recurrent(nn.GRU, num_layers=2, dropout=0.5)
    with capture(model, LABELS) as captured:
        loss_of(model(torch.randn(7, 6, 3), torch.ones(7))).backward()
    with pytest.raises(CaptureError, match="first layer's activation alone"):
        captured.factors("rnn.weight_ih_l0")
    found = leading_directions(captured, "rnn.weight_ih_l0", k=1)
    assert {d.quantity for d in found} == {"activation"}
