"""Models of a user's own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from spectral_mlops.config import Component
from spectral_mlops.errors import InputError
from spectral_mlops.models import build_model, model_entry
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, read_plan, run
from spectral_mlops.training.retrain import retrain_test
from tests.training.toys import toy

SOURCE = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, inputs, outputs, width):
        super().__init__()
        self.first = nn.Linear(inputs[1], width)
        self.output = nn.Linear(width, outputs)

    def forward(self, x):
        return self.output(self.first(x).tanh().mean(1))

def mean(inputs, outputs, width=3):
    assert torch.ones(2).sum().item() == 2  # building may need real numbers
    return Mean(inputs, outputs, width)

mean.takes = "sequence"

def anything(inputs, outputs):
    return nn.Linear(inputs, outputs)

def picky(inputs, outputs):
    raise ValueError("not today")

def number(inputs, outputs):
    return 3

def odd(inputs, outputs):
    return nn.Linear(1, 1)

odd.takes = "cube"
"""
NAMES = iter(range(100))


@pytest.fixture
def module():
    """A module of another name in the current folder, so that none is cached."""
    name = f"own_models_{next(NAMES)}"
    Path(f"{name}.py").write_text(SOURCE)
    return name


def test_a_function_of_the_current_folder_is_trained(module, tmp_path):
    model = {"name": f"{module}:mean", "settings": {"width": 5}}
    plan = make_plan(toy(model=model), Path())
    with MemoryTracker() as tracker:
        finished = run(plan, tracker, tmp_path / "run", name="x", figures=False)
    assert finished.result.metrics["final/additivity"] < 1e-5
    assert finished.result.weights[0]["first.weight"].shape == (5, 5)
    with pytest.raises(InputError, match=r"names code to run.*--trust"):
        read_plan(tmp_path / "run", Path())
    with pytest.raises(InputError, match="--trust"):
        retrain_test(tmp_path / "run", 19, Path())
    again = read_plan(tmp_path / "run", Path(), trust=True)
    assert again.config.model == plan.config.model


def test_without_a_word_it_takes_features_as_they_stand(module):
    entry = model_entry(f"{module}:anything")
    assert entry.takes == ("vector", "sequence", "windows", "volume")
    model = build_model(Component(name=f"{module}:anything"), 4, 2)
    assert isinstance(model, nn.Linear)
    assert model(torch.zeros(3, 4)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere_at_all:f", "importing nowhere_at_all failed: ModuleNotFoundError"),
        (":f", "importing  failed"),
        ("{}:nothing", "has no function 'nothing'"),
        ("{}:picky", "it failed: ValueError: not today"),
        ("{}:number", "returned int, not an nn.Module"),
        ("{}:odd", "takes='cube' is no layout; choose from vector"),
        ("{}:mean", "inputs=10, outputs=2 .* TypeError"),
    ],
)
def test_what_goes_wrong_is_one_sentence(module, name, words):
    with pytest.raises(InputError, match=words):
        build_model(Component(name=name.format(module)), 10, 2)


def test_settings_that_it_does_not_take_are_refused_before_anything_is_written(module):
    model = {"name": f"{module}:mean", "settings": {"depth": 5}}
    with pytest.raises(InputError, match="unexpected keyword argument 'depth'"):
        make_plan(toy(model=model), Path())


def test_windows_that_do_not_fit_are_refused_before_anything_is_written():
    model = {"name": "ica_lstm", "settings": {"window": 13}}
    with pytest.raises(InputError, match="window=13 is longer"):
        make_plan(toy(model=model), Path())
