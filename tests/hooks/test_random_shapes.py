"""Shapes nobody would think of, against a batch of one per sample."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from spectral_mlops import capture

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]
few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much],
)


def loss_of(outputs, weight):
    return sum((y.square() * w).sum() for y, w in zip(outputs, weight, strict=True))


def assert_exact(layer, inputs, labels, axes_in, axes_out):
    """Compare with a batch of one per sample; axes tell where the batch stands."""
    outputs = as_tuple(layer(*inputs))
    weight = [torch.randn_like(y) for y in outputs]
    with capture(layer, labels, batch_dim=axes_in[0]) as captured:
        loss_of(as_tuple(layer(*inputs)), weight).backward()
    assert {row.method for row in captured.coverage()} == {"rows"}
    assert max(captured.additivity_error().values()) < 1e-10
    parameters = dict(layer.named_parameters())
    expected: dict[str, dict[str, torch.Tensor]] = {}
    for i, label in enumerate(labels):
        alone = [x.narrow(axis, i, 1) for x, axis in zip(inputs, axes_in, strict=True)]
        own = [w.narrow(axis, i, 1) for w, axis in zip(weight, axes_out, strict=True)]
        loss = loss_of(as_tuple(layer(*alone)), own)
        found = torch.autograd.grad(loss, list(parameters.values()))
        sums = expected.setdefault(label, {})
        for name, gradient in zip(parameters, found, strict=True):
            sums[name] = sums.get(name, 0) + gradient
    for label, sums in expected.items():
        for name, gradient in sums.items():
            gap = captured.group_gradients()[label][name] - gradient
            whole = sum(expected[g][name] for g in expected)
            assert gap.norm() <= 1e-10 * max(gradient.norm(), whole.norm()) + 1e-13


def as_tuple(returned):
    if isinstance(returned, torch.Tensor):
        return (returned,)
    flat = []
    for x in returned:
        flat += as_tuple(x) if isinstance(x, tuple) else [x]
    return tuple(x for x in flat if x is not None)


labels_strategy = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    small = st.integers(1, 3)
    groups = draw(st.integers(1, 2))

    def per_axis(strategy):
        return tuple(draw(strategy) for _ in range(axes))

    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    same = draw(st.booleans())
    padding = "same" if same else per_axis(st.integers(0, 2))
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](
        groups * draw(small),
        groups * draw(small),
        per_axis(small),
        stride=1 if same else per_axis(st.integers(1, 2)),
        padding=padding,
        dilation=per_axis(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return layer, per_axis(st.integers(3, 6)), draw(labels_strategy)


@few
@given(convolutions())
def test_convolutions(drawn):
    layer, sizes, labels = drawn
    layer = layer.double()
    x = torch.randn(len(labels), layer.in_channels, *sizes).double()
    try:
        layer(x)
    except RuntimeError:  # a kernel larger than what it walks over
        assume(False)
    assert_exact(layer, [x], labels, [0], [0])


@st.composite
def transposed(draw):
    axes = draw(st.integers(1, 3))
    small = st.integers(1, 3)
    groups = draw(st.integers(1, 2))

    def per_axis(strategy):
        return tuple(draw(strategy) for _ in range(axes))

    stride, dilation = per_axis(small), per_axis(st.integers(1, 2))
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1))
        for s, d in zip(stride, dilation, strict=True)
    )
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    layer = kinds[axes - 1](
        groups * draw(small),
        groups * draw(small),
        per_axis(small),
        stride=stride,
        padding=per_axis(st.integers(0, 2)),
        output_padding=extra,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer, per_axis(st.integers(1, 4)), draw(labels_strategy)


@few
@given(transposed())
def test_transposed_convolutions(drawn):
    layer, sizes, labels = drawn
    layer = layer.double()
    x = torch.randn(len(labels), layer.in_channels, *sizes).double()
    try:
        layer(x)
    except RuntimeError:
        assume(False)
    assert_exact(layer, [x], labels, [0], [0])


@st.composite
def recurrent(draw):
    kind = draw(st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]))
    hidden = draw(st.integers(2, 4))
    more = {}
    if kind is nn.RNN:
        more["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind is nn.LSTM:
        more["proj_size"] = draw(st.integers(0, hidden - 1))
    layer = kind(
        draw(st.integers(1, 4)),
        hidden,
        num_layers=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        **more,
    )
    return layer, draw(st.integers(1, 5)), draw(labels_strategy)


class Packed(nn.Module):
    """A recurrent layer on sequences of these lengths, in no order."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, lengths):
        first, steps = self.rnn.batch_first, x.shape[1 if self.rnn.batch_first else 0]
        given = pack_padded_sequence(x, lengths, first, enforce_sorted=False)
        out, last = self.rnn(given)
        return pad_packed_sequence(out, first, total_length=steps)[0], last


@few
@given(recurrent(), st.data())
def test_packed_sequences(drawn, data):
    layer, steps, labels = drawn
    n, axis = len(labels), 0 if layer.batch_first else 1
    each = st.lists(st.integers(1, steps), min_size=n, max_size=n)
    lengths = torch.tensor(data.draw(each))
    shape = [n, steps] if layer.batch_first else [steps, n]
    x = torch.randn(*shape, layer.input_size).double()
    last = [1, 1] if isinstance(layer, nn.LSTM) else [1]
    assert_exact(Packed(layer.double()), [x, lengths], labels, [axis, 0], [axis, *last])


@few
@given(recurrent())
def test_recurrent_layers(drawn):
    layer, steps, labels = drawn
    layer = layer.double()
    axis = 0 if layer.batch_first else 1
    shape = [len(labels), steps] if layer.batch_first else [steps, len(labels)]
    x = torch.randn(*shape, layer.input_size).double()
    last = [1, 1] if isinstance(layer, nn.LSTM) else [1]
    assert_exact(layer, [x], labels, [axis], [axis, *last])


@st.composite
def attentions(draw):
    heads = draw(st.integers(1, 3))
    layer = nn.MultiheadAttention(
        heads * draw(st.integers(1, 3)),
        heads,
        bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()),
        add_zero_attn=draw(st.booleans()),
        kdim=draw(st.one_of(st.none(), st.integers(1, 4))),
        vdim=draw(st.one_of(st.none(), st.integers(1, 4))),
        batch_first=draw(st.booleans()),
    )
    lengths = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return layer, lengths, draw(labels_strategy)


@few
@given(attentions())
def test_attention(drawn):
    layer, (queries, keys), labels = drawn
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer = layer.double()
    n = len(labels)
    axis = 0 if layer.batch_first else 1

    def tensor(length, width):
        shape = [n, length] if layer.batch_first else [length, n]
        return torch.randn(*shape, width).double()

    inputs = [
        tensor(queries, layer.embed_dim),
        tensor(keys, layer.kdim),
        tensor(keys, layer.vdim),
    ]
    assert_exact(layer, inputs, labels, [axis] * 3, [axis, 0])


class Masked(nn.Module):
    """Attention with masks; every query sees the first key."""

    def __init__(self, attention, mask, **settings):
        super().__init__()
        self.attention, self.mask, self.settings = attention, mask, settings

    def forward(self, query, key, value, padding):
        return self.attention(
            query,
            key,
            value,
            attn_mask=self.mask,
            key_padding_mask=padding,
            **self.settings,
        )


@few
@given(attentions(), st.data())
def test_masked_attention(drawn, data):
    layer, (queries, keys), labels = drawn
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer, n = layer.double(), len(labels)

    def hidden(rows):
        some = st.lists(st.booleans(), min_size=rows * keys, max_size=rows * keys)
        mask = torch.tensor(data.draw(some)).reshape(rows, keys)
        mask[:, 0] = False
        return mask

    mask, padding = hidden(queries), hidden(n)
    if data.draw(st.booleans()):
        mask, padding = mask.double() * -1.5, padding.double() * -0.5
    settings = {
        "need_weights": data.draw(st.booleans()),
        "average_attn_weights": data.draw(st.booleans()),
    }
    axis = 0 if layer.batch_first else 1
    x = torch.randn(n, queries, layer.embed_dim).double()
    y = torch.randn(n, keys, layer.kdim).double()
    z = torch.randn(n, keys, layer.vdim).double()
    given_ = [x, y, z] if axis == 0 else [w.transpose(0, 1) for w in (x, y, z)]
    out = [axis, 0] if settings["need_weights"] else [axis]
    assert_exact(
        Masked(layer, mask, **settings), [*given_, padding], labels,
        [axis] * 3 + [0], out,
    )  # fmt: skip
