import pytest
import torch

from spectral_mlops.config import Component
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.models import build_model


def build(**settings):
    return build_model(Component(name="mlp", settings=settings), 6, 2)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4, 3)])
def test_depth_is_the_number_of_hidden_layers(hidden):
    model = build(hidden=hidden)
    names = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    assert names == [
        *(f"hidden_{i + 1}.weight" for i in range(len(hidden))),
        "output.weight",
    ]
    assert model(torch.zeros(3, 6)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "function"),
    [("relu", torch.relu), ("tanh", torch.tanh), ("gelu", torch.nn.functional.gelu)],
)
def test_the_formula(name, function):
    model = build(hidden=(5,), activation=name, dropout=0.5).eval()
    x = torch.randn(4, 6)
    expected = model.output(function(model.hidden_1(x)))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("norm", ["layer", "group", "batch"])
def test_normalised_before_the_activation(norm):
    model = build(hidden=(8,), norm=norm, dropout=0.5).eval()
    x = torch.randn(4, 6)
    expected = model.output(torch.relu(model.norm_1(model.hidden_1(x))))
    torch.testing.assert_close(model(x), expected)


def test_logistic_is_one_layer():
    model = build_model(Component(name="logistic"), 6, 3)
    x = torch.randn(4, 6)
    expected = x @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(x), expected)


def test_dropout_acts_in_training_only():
    model = build(hidden=(50,), dropout=0.5)
    x = torch.randn(4, 6)
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dropout": 1.0}, "dropout"),
        ({"activation": "swish"}, "activation"),
        ({"hidden": "wide"}, "hidden"),
        ({"hidden": [4, 0]}, "hidden"),
        ({"width": 3}, "unknown key 'width'"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        build(**settings)


def test_an_unknown_model_names_those_there_are():
    with pytest.raises(UnknownNameError, match=r"'mpl'.*mlp.*Did you mean 'mlp'"):
        build_model(Component(name="mpl"), 3, 2)
