"""Networks on time courses: shapes, padding, and what the hooks see of them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import capture
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError
from spectral_mlops.models import build_model
from spectral_mlops.models.padding import mean_over_valid, valid_steps
from spectral_mlops.models.transformer import sinusoidal

STEPS, COMPONENTS = 9, 5
LENGTHS = (9, 4, 7, 1)
SETTINGS = {
    "cnn1d": [
        {"channels": [4], "stride": 1},
        {"channels": [4, 6], "kernel": 3, "stride": 2},
        {"channels": [4, 6, 3], "norm": "none", "stride": 3},
    ],
    "ica_lstm": [
        {"window": 3, "stride": 3, "encoder": 6, "width": 4},
        {"window": 1, "stride": 2, "encoder": 6, "width": 4, "norm": "none"},
    ],
    "lstm": [
        {},
        {"layers": 2, "pooling": "last", "norm": "layer"},
        {"bidirectional": False, "pooling": "last"},
    ],
    "gru": [{}, {"layers": 2, "bidirectional": False, "norm": "group"}],
    "transformer": [
        {"width": 8, "heads": 2},
        {"width": 8, "heads": 4, "positions": "sinusoidal", "pre_norm": False},
        {"width": 6, "heads": 1, "positions": "none", "norm": "none"},
        {"width": 8, "heads": 2, "pooling": "mean", "layers": 1},
    ],
}
CASES = [(name, one) for name, several in SETTINGS.items() for one in several]


def build(name, inputs=(STEPS, COMPONENTS), **settings):
    torch.manual_seed(0)
    return build_model(Component(name=name, settings=settings), inputs, 2)


def padded(lengths=LENGTHS, steps=STEPS):
    torch.manual_seed(1)
    x = torch.randn(len(lengths), steps, COMPONENTS)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0
    return x


def test_padding_is_what_follows_the_last_value():
    x = torch.zeros(3, 4, 2)
    x[0, 1, 1] = 1  # a time point of zeros before it is none of padding
    x[1, 3] = 2
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert valid_steps(x).tolist() == expected
    pooled = mean_over_valid(x, valid_steps(x))
    torch.testing.assert_close(pooled, torch.tensor([[0, 0.5], [0.5, 0.5], [0, 0]]))


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_padding_changes_nobody(name, settings):
    """Each person alone, without padding, gets the same logits."""
    model = build(name, **settings).eval()
    x = padded()
    together = model(x)
    assert together.shape == (4, 2)
    window = settings.get("window", 1)
    for row, length, said in zip(x, LENGTHS, together, strict=True):
        alone = row[None, : max(length, window)]
        torch.testing.assert_close(model(alone)[0], said)


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("lengths", [LENGTHS, (STEPS,) * 4])
def test_the_hooks_see_all_of_it_exactly(name, settings, lengths):
    model = build(name, **settings)
    x, y = padded(lengths), torch.tensor([0, 1, 1, 0])
    with capture(model, ["a", "b", "b", "a"], strict=True) as seen:
        cross_entropy(model(x), y).backward()
    assert {row.method for row in seen.coverage()} == {"rows"}
    assert max(seen.additivity_error().values()) < 1e-5
    assert len(seen.spectra()) > 0


def test_an_lstm_is_pytorchs_own_on_each_person():
    model = build("lstm", width=3, pooling="mean").eval()
    x = padded()
    for row, length, said in zip(x, LENGTHS, model(x), strict=True):
        states, _ = model.lstm(row[None, :length])
        torch.testing.assert_close(said, model.output(states.mean(1))[0])


@pytest.mark.parametrize("name", ["embedding", "blocks.1.query_key_value"])
@pytest.mark.parametrize("quantity", ["activation", "adjoint"])
def test_padded_tokens_are_no_rows_of_a_transformer(name, quantity):
    """Spectra are those of the people one by one, rows put together."""
    model = build("transformer", width=8, heads=2).eval()
    x, y = padded(), torch.tensor([0, 1, 1, 0])

    def factor(given, targets):
        with capture(model, ["a"] * len(given), reduction="sum") as seen:
            cross_entropy(model(given), targets, reduction="sum").backward()
        found = seen.factors(name)["a"]
        rows = found.A if quantity == "activation" else found.adjoint
        return rows.flatten(0, 1)

    alone = [factor(x[i : i + 1, :n], y[i : i + 1]) for i, n in enumerate(LENGTHS)]
    expected = torch.linalg.svdvals(torch.cat(alone).double())
    found = torch.linalg.svdvals(factor(x, y).double())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_class_token_is_the_first_row():
    model = build("transformer", width=8, heads=2, layers=1).eval()
    with capture(model, ["a"] * 4) as seen:
        cross_entropy(model(padded()), torch.tensor([0, 1, 1, 0])).backward()
    fed = seen.factors("blocks.0.widen")["a"]
    assert fed.A.shape == (4, 1 + STEPS, 8)
    # with the class token pooled and one block, nobody else is asked for anything
    assert fed.adjoint[:, 0].abs().max() > 0
    assert fed.adjoint[:, 1:].abs().max() == 0


def test_attention_is_the_formula():
    model = build("transformer", width=6, heads=2, layers=1, positions="none").eval()
    block, x = model.blocks[0], torch.randn(2, 4, 6)
    keep = torch.tensor([[True] * 4, [True, True, False, False]])
    query, key, value = block.query_key_value(x).split(6, dim=-1)
    for person, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = slice(3 * head, 3 * head + 3)
        known = keep[person]
        q, k, v = (z[person][known][:, part] for z in (query, key, value))
        expected = torch.softmax(q @ k.T / 3**0.5, -1) @ v
        inside = []
        handle = block.attention_output.register_forward_pre_hook(
            lambda _, given, inside=inside: inside.append(given[0])
        )
        block._attend(x, keep)
        handle.remove()
        torch.testing.assert_close(inside[0][person][known][:, part], expected)
        assert inside[0][person][~known].abs().sum() == 0


def test_sinusoidal_positions():
    table = sinusoidal(7, 5)
    assert table.shape == (7, 5)
    for t, i in ((0, 0), (3, 1), (6, 2)):
        angle = torch.tensor(t / 10000 ** (2 * i / 5))
        torch.testing.assert_close(table[t, 2 * i], angle.sin())
        if 2 * i + 1 < 5:
            torch.testing.assert_close(table[t, 2 * i + 1], angle.cos())


def test_weights_have_the_shapes_of_the_settings():
    model = build("gru", width=4, layers=2)
    assert isinstance(model.gru, nn.GRU)
    assert model.gru.weight_ih_l1_reverse.shape == (12, 8)
    assert model.output.weight.shape == (2, 8)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("transformer", {"width": 10, "heads": 4}, "no multiple of heads=4"),
        ("lstm", {"pooling": "max"}, "pooling"),
        ("cnn1d", {"kernel": 4}, "kernel=4 is even"),
        ("ica_lstm", {"window": 10}, "longer than the time courses, which have 9"),
        ("gru", {"hidden": 3}, "unknown key 'hidden'"),
    ],
)
def test_impossible_settings_are_refused(name, settings, words):
    with pytest.raises(InputError, match=words):
        build(name, **settings)


def test_windows_share_an_encoder_and_whole_ones_count():
    model = build("ica_lstm", window=4, stride=2, encoder=6, width=3, norm="none")
    model.eval()
    x = padded()
    rows, valid = model._windows(x)
    assert rows.shape == (4, 3, 4 * COMPONENTS)
    assert valid.sum(1).tolist() == [3, 1, 2, 1]  # of 9, 4, 7 and 1 time points
    torch.testing.assert_close(rows[2, 1], x[2, 2:6].flatten())
    codes = torch.relu(model.encoder(rows[2, :2]))
    states, _ = model.lstm(codes[None])
    torch.testing.assert_close(model(x)[2], model.output(states.mean(1))[0])
    cut = torch.stack([x[:, :4], x[:, 2:6]], 1)
    again = build("ica_lstm", (2, 4, COMPONENTS), encoder=6, width=3, norm="none")
    assert again.encoder.weight.shape == model.encoder.weight.shape
    assert again(cut).shape == (4, 2)


@pytest.mark.parametrize("norm", ["none", "layer", "group", "batch"])
@pytest.mark.parametrize("inputs", [(7, 7), (STEPS, COMPONENTS), (1, 1)])
def test_pictures_are_split_exactly(norm, inputs):
    model = build("cnn2d", inputs, channels=(4, 6), norm=norm, kernel=3)
    shape = inputs if inputs == (STEPS, COMPONENTS) else (1, *inputs)
    x, y = torch.randn(4, *shape), torch.tensor([0, 1, 1, 0])
    with capture(model, ["a", "b", "b", "a"], strict=True) as seen:
        cross_entropy(model(x), y).backward()
    assert max(seen.additivity_error().values()) < 1e-5


def test_a_2d_network_is_the_formula():
    model = build("cnn2d", (6, 6), channels=(4,), norm="none", kernel=3).eval()
    x = torch.randn(3, 1, 6, 6)
    patches = nn.functional.unfold(x, 3, padding=1, stride=2)  # [N, 9, 9]
    weight, bias = model.conv_1.weight.flatten(1), model.conv_1.bias
    hidden = (weight @ patches + bias[:, None]).relu().flatten(1)
    torch.testing.assert_close(model(x), model.output(hidden))
