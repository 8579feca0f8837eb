"""What watching computes and holds: nothing by sample, nothing more by group."""

import gc

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_mlops import SpectralMonitor, capture
from tests.networks import Gain

N, STEPS, WIDTH = 12, 5, 16


class Operations(TorchDispatchMode):
    """Counts what is computed, and notes the largest result."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.count += 1
        for x in found if isinstance(found, tuple | list) else (found,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return found


def watched(layer, labels, read=False):
    """Operations of a watched step: forward, backward, all that hooks compute."""
    x = torch.randn(len(labels), STEPS, WIDTH)
    count = 3 if isinstance(layer, nn.MultiheadAttention) else 1
    captured = capture(layer, labels)  # a tensor for every group's samples
    with Operations() as operations:
        with captured:
            found = layer(*[x] * count)
            found = found[0] if isinstance(found, tuple) else found
            found.square().sum().backward()
        if read:
            captured.group_gradients()
            captured.additivity_error()
    assert {row.method for row in captured.coverage()} == {"rows"}
    return operations


LAYERS = {
    "rnn": lambda: nn.RNN(WIDTH, WIDTH, 2, batch_first=True, bidirectional=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, 2, batch_first=True, dropout=0.3),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, proj_size=8),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 2, 0.2, batch_first=True),
    "attention-added": lambda: nn.MultiheadAttention(
        WIDTH, 2, batch_first=True, add_bias_kv=True
    ),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("name", LAYERS)
def test_a_watched_step_is_the_same_for_any_number_of_groups_and_samples(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    few = watched(layer, ["a"] * N).count
    assert watched(layer, [f"g{i}" for i in range(N)]).count == few
    assert watched(layer, list("ab") * (2 * N)).count == few


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_held_that_is_samples_times_parameters(name):
    """Reading included; a weight has 16 × 16 numbers at least, a batch 12 samples."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    n = 8 * N
    largest = watched(layer, list("ab") * (n // 2), read=True).largest
    rows = n * STEPS * 4 * WIDTH  # of the widest adjoint
    assert largest <= 2 * rows
    assert largest < n * max(p.numel() for p in layer.parameters())


def test_patches_of_a_batch_are_never_unfolded():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.Conv3d(3, 2, 3, padding=1))
    x = torch.randn(4, 2, 6, 7, 5)
    with Operations() as operations:
        with capture(layer, list("abab")) as captured:
            layer(x).square().sum().backward()
        captured.group_gradients()
        captured.additivity_error()
        captured.spectra()
    volume = 4 * 3 * 6 * 7 * 5
    assert operations.largest <= 2 * volume
    assert {row.method for row in captured.coverage()} == {"rows"}


def test_watched_steps_leave_no_object_behind():
    """Exact where resident memory is rough: not one object in a hundred steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Gain(4), nn.LayerNorm(4), nn.Linear(4, 2))
    monitor, x = SpectralMonitor(model), torch.randn(6, 4)

    def steps(count):
        for _ in range(count):
            with monitor.watch(list("ababbb")):
                model(x).square().mean().backward()
            model.zero_grad()
        monitor.collect()
        gc.collect()
        return len(gc.get_objects())

    steps(20)
    before = steps(100)
    assert steps(100) <= before
