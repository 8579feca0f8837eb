"""Compiled models run eagerly while they are watched, and compiled again after."""

import copy
from shutil import which

import pytest
import torch
from torch import nn

from spectral_mlops import capture
from tests.hooks.conftest import hooks_on, trained
from tests.hooks.test_situations import LABELS, network, total
from tests.networks import Gain


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's
@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_models_run_eagerly_while_watched(inplace):
    model, x = network(), torch.randn(4, 5).double()
    plain = copy.deepcopy(model)
    if inplace:
        model.compile(backend="aot_eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="aot_eager")
    compiled(x).square().sum().backward()  # compiled once
    model.zero_grad()
    with capture(compiled, list("abab")) as captured:
        compiled(x).square().sum().backward()
    plain(x).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        torch.testing.assert_close(total(captured, name), a.grad)
    assert {row.parameter for row in captured.coverage()} == set(trained(plain))
    assert hooks_on(model) == 0
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled(x).square().sum().backward()
    assert not counters["frames"]  # the compiled code of before is used again


class Mixed(nn.Module):
    """Layers of several kinds, one without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 4, batch_first=True)
        self.gain, self.output = Gain(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.output(self.gain(self.gru(x)[0].relu())).sum(1)


COMPILED = {
    "eager": lambda m: torch.compile(m, backend="eager"),
    "aot": lambda m: torch.compile(m, backend="aot_eager", dynamic=True),
    "inductor": torch.compile,
    "reduce-overhead": lambda m: torch.compile(m, mode="reduce-overhead"),
    "max-autotune": lambda m: torch.compile(m, mode="max-autotune-no-cudagraphs"),
    "function": lambda m: torch.compile(lambda x: m(x), backend="aot_eager"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("how", [*COMPILED, "layer", "layer inside"])
def test_every_way_to_compile(how):
    if how in ("inductor", "reduce-overhead", "max-autotune") and not which("g++"):
        pytest.skip("PyTorch's own compiler needs one for C++")
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(7, 6, 5)
    plain = copy.deepcopy(model)
    if how == "layer":
        model.output.compile(backend="aot_eager")
    elif how == "layer inside":
        model.output = torch.compile(model.output, backend="aot_eager")
    compiled = COMPILED[how](model) if how in COMPILED else model
    compiled(x).square().sum().backward()
    model.zero_grad()
    watched = compiled if isinstance(compiled, nn.Module) else model
    with capture(watched, LABELS) as captured:
        compiled(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert max(captured.additivity_error().values()) < 1e-5
    method = {row.parameter: row.method for row in captured.coverage()}
    assert method.keys() == trained(plain).keys()
    assert {name for name, m in method.items() if m == "replay"} == {"gain.gain"}
    assert hooks_on(model) == 0
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled(x).square().sum().backward()
    assert not counters["frames"]  # the compiled code of before is used again
    torch._dynamo.reset()
