"""Watching changes nothing: each network against a twin that nobody watches."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spectral_mlops import SpectralMonitor, capture
from spectral_mlops.config import Component
from spectral_mlops.hooks.survey import find_sites
from spectral_mlops.models import build_model
from tests.cases import CASES, Case, N, build
from tests.hooks.conftest import (
    DEVICES,
    LABELS,
    everything_in,
    hooks_on,
    loss_of,
    outputs_of,
    random_states,
    trained,
)

pytestmark = [
    # PyTorch's own words about its own layers.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_watching_changes_nothing(name, device):
    case = build(name, device=device)
    plain = copy.deepcopy(case.model)
    captured_rng, rng = [], []
    for model, watch, states in ((case.model, True, captured_rng), (plain, False, rng)):
        torch.manual_seed(5)
        optimizer = torch.optim.Adam(trained(model).values(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            if watch:
                with capture(model, LABELS, batch_dim=case.batch_dim) as captured:
                    returned = model(*case.inputs)
                    loss_of(returned, None, case.batch_dim).backward()
                captured.spectra()
            else:
                returned = model(*case.inputs)
                loss_of(returned, None, case.batch_dim).backward()
            optimizer.step()
            states += [*random_states(), *outputs_of(returned)]
    for a, b in zip(captured_rng, rng, strict=True):
        assert torch.equal(a, b)
    assert hooks_on(case.model) == 0
    pairs = zip(everything_in(case.model), everything_in(plain), strict=True)
    for (what, a), (same, b) in pairs:
        assert what == same
        if isinstance(a, Tensor):
            assert torch.equal(a, b), what
        else:
            assert a == b, what


FAMILIES = [
    "linear-3d",
    "bilinear-4d",
    "conv1d-stride-dilation",
    "conv2d",
    "conv3d-replicate",
    "transposed2d",
    "embedding-padding",
    "bag-max",
    "rnn-deep",
    "lstm-dropout",
    "lstm-packed-dropout",
    "gru-packed",
    "attention-dropout",
    "attention-dropout-weights",
    "encoder",
    "decoder-time-first",
    "instance-norm-3d",
    "rms-norm",
    "batch-norm-train",
    "relu-inplace-3d",
    "checkpoint",
    "parametrized",
    "frozen-layer",
    "bare",
]


def assert_twins(case: Case, step, steps: int = 50) -> None:
    """Train two models, of which the first is watched, and compare all there is.

    Args:
        case: The network and its batch.
        step: A function of model, optimizer and a context to pass the batch in; it
            returns what the model returned.
        steps: How often it is called.
    """
    plain = copy.deepcopy(case.model)
    monitor = SpectralMonitor(case.model, batch_dim=case.batch_dim, permutations=0)
    states: list[list[Tensor]] = []
    for model, watch in ((case.model, True), (plain, False)):
        torch.manual_seed(6)
        optimizer = torch.optim.Adam(trained(model).values(), lr=1e-3)
        seen = []
        for i in range(steps):
            optimizer.zero_grad()
            context = partial(monitor.watch, LABELS) if watch else nullcontext
            returned = step(model, optimizer, context)
            seen += [*random_states(), *outputs_of(returned)]
            if watch and i % 10 == 9:
                assert monitor.collect().batches in (10, 20)
        states.append(seen)
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)
    assert hooks_on(case.model) == hooks_on(plain) == 0
    pairs = zip(everything_in(case.model), everything_in(plain), strict=True)
    for (what, a), (same, b) in pairs:
        assert what == same
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, what


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_fifty_monitored_steps_are_those_of_an_unwatched_twin(name, device):
    case = build(name, torch.float32, device)

    def step(model, optimizer, context):
        with context():
            returned = model(*case.inputs)
            loss_of(returned, None, case.batch_dim).backward()
        optimizer.step()
        return returned

    assert_twins(case, step)


@pytest.mark.parametrize("name", ["conv2d", "gru", "encoder", "bare"])
def test_fifty_steps_of_two_micro_batches_under_autocast(name):
    """Accumulated, with evaluation in between, scaled by a scaler of their own."""
    case = build(name, torch.float32)
    scalers: dict[int, torch.amp.GradScaler] = {}

    def step(model, optimizer, context):
        scaler = scalers.setdefault(id(model), torch.amp.GradScaler("cpu"))
        for _ in range(2):
            with context():
                with torch.autocast("cpu", torch.bfloat16):
                    returned = model(*case.inputs)
                loss = loss_of(returned.float(), None, case.batch_dim) / 14
                scaler.scale(loss).backward()
        model.eval()
        with torch.no_grad():
            model(*case.inputs)
        model.train()
        scaler.step(optimizer)
        scaler.update()
        return returned

    assert_twins(case, step)


MODELS = {
    "mlp": ((5,), {"hidden": [6, 4]}),
    "lstm": ((6, 4), {"width": 4}),
    "gru": ((6, 4), {"width": 4, "layers": 2}),
    "transformer": ((6, 4), {"width": 8, "heads": 2}),
    "ica_lstm": ((6, 4), {"window": 2, "stride": 2, "encoder": 6, "width": 4}),
    "cnn1d": ((6, 4), {"channels": [4, 3]}),
    "cnn3d": ((8, 9, 10), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps_of_the_models_from_here(name):
    shape, settings = MODELS[name]
    torch.manual_seed(1)
    component = Component(name=name, settings=settings)
    model = build_model(component, shape[0] if len(shape) == 1 else shape, 2)
    channel = (1,) if len(shape) == 3 else ()
    case = Case(model, (torch.randn(N, *channel, *shape),))
    assert any(row.rule is not None for row in find_sites(model, None))

    def step(model, optimizer, context):
        with context():
            returned = model(*case.inputs)
            target = torch.arange(N) % 2
            F.cross_entropy(returned, target).backward()
        optimizer.step()
        return returned

    assert_twins(case, step)
