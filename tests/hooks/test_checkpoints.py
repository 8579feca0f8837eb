"""Blocks and single layers that are computed again in the backward pass."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_mlops import capture
from tests.hooks.conftest import LABELS, loss_of, trained
from tests.networks import Checkpointed, Gain


def test_checkpoints_that_are_reentrant():
    """Row rules are exact inside; what needs a replay says why it is not there."""
    torch.manual_seed(5)
    model = Checkpointed(reentrant=True).double()
    model.block[1] = Gain(4).double()
    plain, x = copy.deepcopy(model), torch.randn(7, 4, 5).double()
    with capture(model, LABELS) as captured:
        loss_of(model(x)).backward()
    loss_of(plain(x)).backward()
    table = {row.parameter: row for row in captured.coverage()}
    assert table["block.1.gain"].method == "none"
    assert "use_reentrant=False" in table["block.1.gain"].why
    others = {row.method for name, row in table.items() if name != "block.1.gain"}
    assert others == {"rows"}
    assert max(captured.additivity_error().values()) < 1e-10
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    plain.reentrant = False  # which may be asked for gradients of one group's loss
    for group, gradients in captured.group_gradients().items():
        loss = loss_of(plain(x), torch.tensor([label == group for label in LABELS]))
        expected = torch.autograd.grad(loss, list(plain.parameters()))
        for name, gradient in zip(trained(plain), expected, strict=True):
            if name != "block.1.gain":
                torch.testing.assert_close(gradients[name], gradient)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "attention", "encoder", "conv", "linear"])
def test_single_layers_in_checkpoints(kind, reentrant):
    """With the very dropout masks that were drawn, here and when computed again."""
    layers = {
        "lstm": lambda: nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True),
        "attention": lambda: nn.MultiheadAttention(4, 2, 0.4, batch_first=True),
        "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.3, batch_first=True),
        "conv": lambda: nn.Conv1d(6, 6, 3, padding=1),
        "linear": lambda: nn.Linear(4, 4),
    }

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(4, 4), layers[kind]()
            self.output, self.reentrant = nn.Linear(4, 2), reentrant

        def call(self, x):
            found = self.layer(*[x] * (3 if kind == "attention" else 1))
            return found[0] if isinstance(found, tuple) else found

        def forward(self, x):
            hidden = self.first(x)
            return self.output(
                checkpoint(self.call, hidden, use_reentrant=self.reentrant)
            )

    torch.manual_seed(8)
    model, x = Model().double(), torch.randn(7, 6, 4).double()
    plain = copy.deepcopy(model)
    torch.manual_seed(9)
    with capture(model, LABELS) as captured:
        loss_of(model(x)).backward()
    torch.manual_seed(9)
    loss_of(plain(x)).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert {row.method for row in captured.coverage()} == {"rows"}
    assert max(captured.additivity_error().values()) < 1e-10
    plain.reentrant = False
    for group, gradients in captured.group_gradients().items():
        torch.manual_seed(9)
        loss = loss_of(plain(x), torch.tensor([label == group for label in LABELS]))
        expected = torch.autograd.grad(loss, list(plain.parameters()))
        for name, gradient in zip(trained(plain), expected, strict=True):
            torch.testing.assert_close(gradients[name], gradient)
