"""Every kind of layer in the situations that are easily tried on `nn.Linear` alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_mlops import capture
from tests.cases import build
from tests.hooks.conftest import LABELS, loss_of, trained
from tests.networks import Gain

N = len(LABELS)
x3 = torch.randn(N, 6, 4, generator=torch.Generator().manual_seed(0)).double()
words = torch.randint(0, 9, (N, 6), generator=torch.Generator().manual_seed(1))

LAYERS = {
    "linear": lambda: nn.Linear(4, 3),
    "bilinear": lambda: nn.Bilinear(4, 4, 3),
    "conv": lambda: nn.Conv1d(6, 4, 2, padding=1, padding_mode="circular", groups=2),
    "transposed": lambda: nn.ConvTranspose1d(6, 3, 2, stride=2),
    "embedding": lambda: nn.Embedding(9, 4, padding_idx=2),
    "bag": lambda: nn.EmbeddingBag(9, 4, mode="mean"),
    "bag-max": lambda: nn.EmbeddingBag(9, 4, mode="max"),
    "rnn": lambda: nn.RNN(4, 3, batch_first=True),
    "gru": lambda: nn.GRU(4, 3, 2, batch_first=True, bidirectional=True),
    "lstm": lambda: nn.LSTM(4, 3, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True),
    "layer-norm": lambda: nn.LayerNorm(4),
    "rms-norm": lambda: nn.RMSNorm(4),
    "group-norm": lambda: nn.GroupNorm(2, 6),
    "instance-norm": lambda: nn.InstanceNorm1d(6, affine=True),
    "batch-norm": lambda: nn.BatchNorm1d(6).eval(),
    "prelu": lambda: nn.PReLU(),
    "prelu-channels": lambda: nn.PReLU(6),
    "own": lambda: Gain(4),
}


class Around(nn.Module):
    """A layer, and a function of its main output."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        count = {nn.Bilinear: 2, nn.MultiheadAttention: 3}.get(type(self.layer), 1)
        found = self.layer(*[x] * count)
        return self.function(found[0] if isinstance(found, tuple) else found)


def network(name: str, function) -> Around:
    torch.manual_seed(2)
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return Around(layer, function)


def given(name: str) -> Tensor:
    return words if name in ("embedding", "bag", "bag-max") else x3


def check_groups(model: nn.Module, x: Tensor, captured: capture) -> None:
    """Compare group gradients with a batch of the group's samples alone."""
    assert max(captured.additivity_error().values()) < 1e-10
    for group, gradients in captured.group_gradients().items():
        chosen = torch.tensor([label == group for label in LABELS])
        loss = model(x[chosen]).square().sum()
        own = trained(model)
        expected = torch.autograd.grad(loss, list(own.values()))
        for parameter, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(
                gradients[parameter], gradient, rtol=1e-9, atol=1e-9
            )


def triple_the_first(y):
    y[:, :1].mul_(3)
    return y


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("change", [F.relu_, triple_the_first])
def test_the_output_or_a_part_of_it_changed_in_place(name, change):
    model, x = network(name, change), given(name)
    with capture(model, LABELS) as captured:
        model(x).square().sum().backward()
    check_groups(model, x, captured)
    method = "replay" if name == "own" else "rows"
    assert {row.method for row in captured.coverage()} == {method}


@pytest.mark.parametrize("name", LAYERS)
def test_several_rows_of_a_sample_on_the_batch_axis(name):
    torch.manual_seed(3)
    x = torch.randn(N, 3, 6, 4).double()
    x = torch.randint(0, 9, (N, 3, 6)) if given(name) is words else x
    inner = network(name, torch.tanh)

    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.flatten(0, 1)).unflatten(0, (len(x), -1)).sum(1)

    model = Slices()
    with capture(model, LABELS, rows_per_sample=3) as captured:
        model(x).square().sum().backward()
    check_groups(model, x, captured)
    method = "replay" if name == "own" else "rows"
    assert {row.method for row in captured.coverage()} == {method}


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_of_nobody(name):
    if name == "instance-norm":
        pytest.skip("PyTorch's own takes no empty batch")
    model, x = network(name, torch.tanh), given(name)[:0]
    plain = copy.deepcopy(model)
    with capture(model, [], strict=True) as captured:
        model(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    assert captured.group_gradients() == {}
    assert set(captured.additivity_error().values()) == {0.0}
    assert not [s for s in captured.spectra() if s.values.any()]


HALVES = [
    "linear-3d", "bilinear-2d", "conv2d", "conv3d", "transposed2d", "embedding",
    "bag-mean-padding", "bag-max", "bag-weighted", "rnn-tanh", "gru", "lstm",
    "lstm-packed", "attention", "attention-cross", "attention-added",
    "encoder-norm-first", "layer-norm", "rms-norm", "group-norm", "instance-norm-1d",
    "batch-norm-eval", "prelu", "bare", "outputs",
]  # fmt: skip


# Of the forward pass, the loss and its gradient, which are rounded themselves.
HALF = {torch.float16: 2e-2, torch.bfloat16: 0.15}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", HALVES)
def test_models_of_half_precision(name, dtype):
    """Group by group against float64, where half precision is all the difference."""
    precise, case = build(name), build(name, dtype)
    found = []
    for c in (precise, case):
        c.model.load_state_dict(case.model.state_dict())
        inputs = [x.to(y.dtype) for x, y in zip(case.inputs, c.inputs, strict=True)]
        with capture(c.model, LABELS, batch_dim=c.batch_dim) as captured:
            returned = c.model(*inputs)
            returned = returned if isinstance(returned, dict) else {"": returned}
            returned = {k: y.double() for k, y in returned.items()}
            loss_of(returned, None, c.batch_dim).backward()
        found.append(captured.group_gradients())
    assert max(captured.additivity_error().values()) < 2e-2
    expected, half = found
    for group, gradients in expected.items():
        for parameter, gradient in gradients.items():
            size = max(expected[g][parameter].norm() for g in expected)
            assert half[group][parameter].dtype == torch.float32
            gap = (half[group][parameter] - gradient).norm()
            assert gap < HALF[dtype] * size, (group, parameter)
