"""Layers whose factors are more than rows: patches, blocks of channels, indices."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectral_mlops import capture
from spectral_mlops.errors import CaptureError, InputError

LABELS = list("abbab")


def watched(layer, *shape, **settings):
    torch.manual_seed(0)
    layer, x = layer.double(), torch.randn(5, *shape).double()
    with capture(layer, LABELS, **settings) as captured:
        layer(x).square().sum().backward()
    return captured, x


def spectrum(captured, quantity, group):
    (found,) = [
        s
        for s in captured.spectra()
        if (s.quantity, s.group, s.layer) == (quantity, group, "")
    ]
    return found


def values_of(*matrices):
    together = [np.linalg.svd(m.numpy(), compute_uv=False) for m in matrices]
    return np.sort(np.concatenate(together))[::-1]


def close(values, expected):
    np.testing.assert_allclose(
        values, expected[: len(values)], rtol=0, atol=1e-6 * expected[0]
    )
    assert (expected[len(values) :] < 1e-6 * expected[0]).all()


def test_the_activation_is_that_of_positions_and_channels():
    captured, x = watched(nn.Conv2d(4, 6, 3, padding=1), 4, 5, 7)
    chosen = torch.tensor([label == "b" for label in LABELS])
    found = spectrum(captured, "activation", "b")
    close(found.values, values_of(x[chosen].movedim(1, -1).reshape(-1, 4)))
    assert found.rows == 3 * 5 * 7
    assert found.shape == (4 * 9, 6)


def test_the_activation_may_be_that_of_patches():
    captured, x = watched(nn.Conv2d(4, 6, 3, padding=1), 4, 5, 7, conv_rows="patches")
    chosen = torch.tensor([label == "b" for label in LABELS])
    patches = F.unfold(x[chosen], 3, padding=1).movedim(1, -1).reshape(-1, 36)
    found = spectrum(captured, "activation", "b")
    close(found.values, values_of(patches))
    assert found.rows == 3 * 5 * 7
    factors = captured.factors("")["b"]
    assert torch.equal(factors.A.flatten(0, 1), patches)
    with pytest.raises(InputError, match="'positions' or 'patches'"):
        capture(nn.Conv1d(1, 1, 1), LABELS, conv_rows="channels")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), groups=2),
        nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2),
    ],
)
def test_blocks_of_channels_have_the_union_of_their_spectra(layer):
    captured, x = watched(layer, 4, 5, 7)
    chosen = torch.tensor([label == "a" for label in LABELS])
    gradient = captured.group_gradients()["a"]["weight"]
    if layer.transposed:  # [C_in, C_out/G, *k]: one block per half of the inputs
        blocks = [b.transpose(0, 1).flatten(1) for b in gradient.chunk(2)]
    else:
        blocks = [b.flatten(1) for b in gradient.chunk(2)]
    close(spectrum(captured, "gradient", "a").values, values_of(*blocks))
    halves = x[chosen].movedim(1, -1).reshape(-1, 4).chunk(2, 1)
    close(spectrum(captured, "activation", "a").values, values_of(*halves))
    factors = captured.factors("")["a"]
    assert factors.A.shape[:2] == (2, 2)
    adjoints = [d.flatten(0, 1) for d in factors.adjoint]
    close(spectrum(captured, "adjoint", "a").values, values_of(*adjoints))


def test_patches_that_are_too_large_are_refused_with_their_size():
    captured, _ = watched(nn.Conv3d(2, 3, 3), 2, 6, 5, 7)
    words = r"\[1, 2, 60, 54\] takes 0 MiB, more than max_bytes"
    with pytest.raises(CaptureError, match=words):
        captured.factors("", max_bytes=1000)


def test_output_size_of_a_transposed_convolution():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 3, stride=3)

        def forward(self, x):
            return self.up(x, output_size=[14])

    model, x = Sized().double(), torch.randn(5, 2, 4).double()
    with capture(model, LABELS) as captured:
        model(x).square().sum().backward()
    assert max(captured.additivity_error().values()) < 1e-12
    factors = captured.factors("up")["all"]
    assert factors.A.shape == (5, 14, 6)
    formed = torch.einsum("nsi,nso->io", factors.A, factors.adjoint)
    torch.testing.assert_close(
        formed.unflatten(0, (2, 3)).transpose(1, 2), model.up.weight.grad
    )


def test_embeddings_have_the_spectrum_of_one_hot_rows():
    layer = nn.Embedding(9, 4, padding_idx=0).double()
    index = torch.tensor([[1, 2, 2], [0, 5, 1], [3, 3, 3], [0, 0, 8], [2, 2, 0]])
    with capture(layer, LABELS) as captured:
        layer(index).square().sum().backward()
    for group in "ab":
        chosen = torch.tensor([label == group for label in LABELS])
        at = index[chosen]
        rows = F.one_hot(at[at != 0], 9).double()
        found = spectrum(captured, "activation", group)
        close(found.values, values_of(rows))
        assert found.rows == len(rows)
    assert torch.equal(captured.factors("")["a"].A, index[[0, 3]])


# -- gates and heads ---------------------------------------------------------------


def test_gates_stand_apart_or_beside():
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4).double()
    x = torch.randn(6, 5, 3).double()
    found = {}
    for gates in ("stacked", "apart", "both"):
        with capture(layer, LABELS, gates=gates, batch_dim=1) as captured:
            layer(x)[0].square().sum().backward()
        found[gates] = {(s.layer, s.quantity, s.group): s for s in captured.spectra()}
    stacked, apart, both = found.values()
    names = ("input", "forget", "cell", "output")
    assert {key[0] for key in apart if key[1] == "activation"} == {
        "weight_ih_l0",
        "weight_hh_l0",
    }
    assert {key[0] for key in apart if key[1] == "adjoint"} == {
        f"weight_{kind}_l0.{name}" for kind in ("ih", "hh") for name in names
    }
    assert both.keys() == stacked.keys() | apart.keys()
    for group in "ab":
        factors = captured.factors("weight_hh_l0")[group]
        gradient = captured.group_gradients()[group]["weight_hh_l0"]
        for k, name in enumerate(names):
            own = slice(4 * k, 4 * k + 4)
            for spectra in (apart, both):
                s = spectra[f"weight_hh_l0.{name}", "adjoint", group]
                close(s.values, values_of(factors.adjoint.flatten(0, 1)[:, own]))
                s = spectra[f"weight_hh_l0.{name}", "gradient", group]
                close(s.values, values_of(gradient[own]))
                assert s.shape == (4, 4)


def test_padded_steps_are_no_rows():
    torch.manual_seed(3)
    layer = nn.GRU(3, 4, batch_first=True).double()
    lengths = torch.tensor([2, 5, 1, 4, 3])
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.randn(5, 5, 3).double(), lengths, True, enforce_sorted=False
    )
    with capture(layer, LABELS) as captured:
        layer(packed)[0].data.square().sum().backward()
    found = {(s.quantity, s.group): s.rows for s in captured.spectra()}
    assert {found[quantity, "a"] for quantity, _ in found} == {2 + 4}
    assert {found[quantity, "b"] for quantity, _ in found} == {5 + 1 + 3}


def test_heads_stand_apart():
    torch.manual_seed(2)
    layer = nn.MultiheadAttention(6, 2, batch_first=True).double()
    x = torch.randn(5, 4, 6).double()
    with capture(layer, LABELS, gates="apart") as captured:
        layer(x, x, x, need_weights=False)[0].square().sum().backward()
    gradient = captured.group_gradients()["b"]["in_proj_weight"]
    found = {(s.layer, s.quantity, s.group): s for s in captured.spectra()}
    for i, name in enumerate(("q0", "q1", "k0", "k1", "v0", "v1")):
        s = found[f"in_proj_weight.{name}", "gradient", "b"]
        close(s.values, values_of(gradient[3 * i : 3 * i + 3]))
    assert ("out_proj", "adjoint", "b") in found
    with pytest.raises(InputError, match="'stacked' or 'apart' or 'both'"):
        capture(layer, LABELS, gates="each")
