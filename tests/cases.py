"""Networks to watch, as data: nothing is built at import.

A case is a name and a function that returns ``(model, inputs, batch_dim)`` in
float64 with its own seed. Sizes are unequal everywhere, because equal ones hide
exchanged axes. A new row rule adds its networks here and is held to every test.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

N = 7
LENGTHS = torch.tensor([3, 6, 1, 4, 6, 2, 5])
"""Of sequences, unsorted; the longest is `STEPS`."""
STEPS = 6


class Case(NamedTuple):
    """A network and a batch.

    ``mixes``: a sample's gradient depends on the others (batch statistics), or on
    random numbers, so that a batch of one is another thing.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    batch_dim: int = 0
    mixes: bool = False


class Reused(nn.Module):
    """One layer called three times, at two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.output = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.inner(torch.tanh(self.inner(x)))
        short = self.inner(x[:, :2])
        return self.output(long.mean(1) + short.mean(1))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.there = nn.Linear(4, 3, bias=False)
        self.back = nn.Linear(4, 3)
        self.back.weight = self.there.weight
        self.mix = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.mix(torch.tanh(self.there(x))))


class KeywordCall(nn.Module):
    """A layer called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input=x)


class InPlaceAfter(nn.Module):
    """An in-place function right on the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.output = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(nn.functional.relu_(self.inner(x)))


class Bare(nn.Module):
    """Parameters that no layer holds, beside one that a layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 4)
        self.matrix = nn.Parameter(torch.randn(4, 3))
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(self.inner(x)) @ self.matrix) * self.scale


class Gain(nn.Module):
    """A layer of one's own, for which there is no rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TiedEmbedding(nn.Module):
    """A word embedding that is also the output's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.output = nn.Linear(4, 9, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(self.embedding(x)))


class Recurrent(nn.Module):
    """A recurrent module, all of whose outputs the result depends on."""

    def __init__(self, kind: type[nn.RNNBase], packed: str = "", **settings: object):
        super().__init__()
        self.rnn = kind(3, 4, **settings)
        ways = 2 if self.rnn.bidirectional else 1
        self.output = nn.Linear(ways * (self.rnn.proj_size or 4), 2)
        self.packed = packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        given = x if self.rnn.batch_first else x.transpose(0, 1)
        if self.packed:
            order = self.packed != "sorted"
            given = pack_padded_sequence(
                given, lengths.cpu(), self.rnn.batch_first, enforce_sorted=not order
            )
        out, last = self.rnn(given)
        if self.packed:
            out, _ = pad_packed_sequence(out, self.rnn.batch_first, 0.0, STEPS)
        out = out if self.rnn.batch_first else out.transpose(0, 1)
        ends = last if isinstance(last, tuple) else (last,)
        end = sum(h.sin().sum((0, 2)) for h in ends)
        return self.output(torch.tanh(out)) + end[:, None, None]


class LastState(nn.Module):
    """Only the last cell state of an LSTM with given first states counts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        states = (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        _, (_, last) = self.lstm(x.transpose(0, 1), states)
        return last.sum(0)


class InPlaceAfterRecurrent(nn.Module):
    """An in-place activation on the transposed view that batch_first returns."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu_(self.gru(x)[0])


class Attention(nn.Module):
    """Attention of several kinds, with or without its weights in the result."""

    def __init__(
        self, kind: str = "self", weights: str = "", mask: str = "", **settings: object
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **settings)
        self.kind, self.weights, self.mask = kind, weights, mask

    def forward(self, x: Tensor, y: Tensor, z: Tensor, padding: Tensor) -> Tensor:
        key = {"self": x, "key-value": y, "cross": y}[self.kind]
        value = {"self": x, "key-value": y, "cross": z}[self.kind]
        given = [x, key, value]
        if self.kind == "key-value":
            given[2] = given[1]
        if not self.attention.batch_first:
            first = given[0].transpose(0, 1)
            second = first if self.kind == "self" else given[1].transpose(0, 1)
            same = self.kind != "cross"
            given = [first, second, second if same else given[2].transpose(0, 1)]
        keywords: dict[str, object] = {}
        if "padding" in self.mask:
            keywords["key_padding_mask"] = padding[:, : key.shape[1]]
        if "causal" in self.mask:
            length = (x.shape[1], key.shape[1])
            keywords["attn_mask"] = torch.ones(
                length, dtype=torch.bool, device=x.device
            ).triu(1)
            keywords["is_causal"] = "hint" in self.mask
        if "float" in self.mask:
            length = (x.shape[1], key.shape[1])
            keywords["attn_mask"] = (
                torch.arange(1.0, 1 + length[0] * length[1]).to(x).reshape(length).sin()
            )
        out, shares = self.attention(
            *given,
            need_weights=bool(self.weights),
            average_attn_weights=self.weights != "heads",
            **keywords,
        )
        out = out if self.attention.batch_first else out.transpose(0, 1)
        if self.weights:
            axes = tuple(range(1, shares.ndim))
            out = out + shares.square().sum(axes)[:, None, None]
        return out


class Decoder(nn.Module):
    """A transformer's decoder layer on an encoder layer's memory."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, 3, 10, **settings)
        self.decoder = nn.TransformerDecoderLayer(6, 2, 9, **settings)
        self.output = nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.output(self.decoder(x, self.encoder(y)))


class Bags(nn.Module):
    """Bags of words told by offsets, some of them empty."""

    def __init__(self, mode: str, **settings: object) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(9, 4, mode=mode, **settings)

    def forward(self, anchor: Tensor, weights: Tensor) -> Tensor:
        flat = torch.tensor([1, 2, 4, 5, 4, 3, 2, 8, 8, 0, 1, 1, 6]).to(anchor.device)
        offsets = torch.tensor([0, 4, 4, 6, 9, 10, 12]).to(anchor.device)
        if self.embedding.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([len(flat)])])
        w = weights[: len(flat)] if self.embedding.mode == "sum" else None
        return self.embedding(flat, offsets, w) + anchor


class WeightedBags(nn.Module):
    """Bags of equal size, with a weight per member."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(9, 4, mode="sum")

    def forward(self, index: Tensor, weights: Tensor) -> Tensor:
        return self.embedding(index, per_sample_weights=weights)


class Twice(nn.Module):
    """A bilinear layer on two halves of the input, positions in between."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(2, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x[..., :2].contiguous(), x[..., 2:].contiguous())


class Folded(nn.Module):
    """Slices are folded into the batch axis, and averaged again."""

    def __init__(self) -> None:
        super().__init__()
        self.slice = nn.Sequential(nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3), nn.Tanh())
        self.embed = nn.Linear(3 * 4, 4)
        self.output = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        each = self.embed(self.slice(x.flatten(0, 1)).flatten(1))
        return self.output(each.unflatten(0, (len(x), -1)).mean(1))


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(5, 4), nn.LayerNorm(4), nn.ReLU(inplace=True), nn.Linear(4, 6)
        )
        self.rnn = nn.GRU(6, 3, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(3, 1, 7, 0.0, batch_first=True)
        self.output = nn.Linear(3, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.ones(
            (), dtype=x.dtype, device=x.device, requires_grad=True
        )  # reentrant needs it
        hidden = checkpoint(self.block, x, use_reentrant=self.reentrant)
        hidden = checkpoint(
            lambda h: self.rnn(h)[0], hidden, use_reentrant=self.reentrant
        )
        hidden = checkpoint(self.attention, hidden, use_reentrant=self.reentrant)
        return self.output(hidden)


class Views(nn.Module):
    """Two of the outputs are views of one tensor, a third derives from it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.gain = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.tanh(self.first(x)) * self.gain
        return hidden, hidden.view(len(x), 2, 3), self.head(hidden)


class WithoutBatch(nn.Module):
    """A layer that is called with no batch axis at all."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(3, 2)
        self.output = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x) + self.context(x.new_ones(3))


class Matrix(nn.Module):
    """A layer on a matrix of which the batch is no axis."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3, 2)
        self.gru = nn.GRU(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        context = x.new_ones(4, 3)
        return x * self.gru(context)[0].sum() + self.code(context[0]).sum()


class Outputs(nn.Module):
    """Two outputs, one of which derives from the other, in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.randn(4))
        self.second = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.first(x).mean(-1)) * self.gain
        return {"hidden": hidden, "logits": self.second(hidden) * self.gain.sum()}


def _linear(*leading: int) -> Callable[[], Case]:
    def build() -> Case:
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        return Case(model, (torch.randn(N, *leading, 5),))

    return build


def _one(model: nn.Module, *shape: int, **more: object) -> Case:
    """A network of one input, whose first axis is the batch."""
    return Case(model, (torch.randn(N, *shape),), **more)


def _conv(axes: int, *sizes: int, after: int = 0, **settings: object) -> Case:
    """A convolution from 4 to 6 channels, an activation in place, and another."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    first = kind(4, 6, **settings)
    second = kind(6, 2, 1)
    return _one(nn.Sequential(first, nn.ReLU(inplace=True), second), 4, *sizes)


def _transposed(axes: int, *sizes: int, **settings: object) -> Case:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    return _one(nn.Sequential(kind(4, 6, **settings), nn.Tanh()), 4, *sizes)


def _recurrent(kind: type[nn.RNNBase], packed: str = "", **settings: object) -> Case:
    lengths = LENGTHS.sort(descending=True).values if packed == "sorted" else LENGTHS
    x = torch.randn(N, STEPS, 3)
    dropout = bool(settings.get("dropout"))
    return Case(Recurrent(kind, packed, **settings), (x, lengths), mixes=dropout)


def _attention(kind: str = "self", weights: str = "", mask: str = "", **more: object):
    settings = {"batch_first": True} | more
    padding = torch.arange(5) >= LENGTHS[:, None]
    widths = settings.get("kdim", 6), settings.get("vdim", 6)
    inputs = (
        torch.randn(N, 5, 6),
        torch.randn(N, 4, widths[0]),
        torch.randn(N, 4, widths[1]),
        padding,
    )
    model = Attention(kind, weights, mask, **settings)
    for name in ("in_proj_bias", "out_proj.bias"):  # they begin as zeros
        bias = dict(model.attention.named_parameters()).get(name)
        if bias is not None:
            nn.init.normal_(bias)
    return Case(model, inputs, mixes=bool(settings.get("dropout")))


def _tokens(model: nn.Module) -> Case:
    return Case(model, (torch.randint(0, 9, (N, 5)),))


def _batch_norm(train: bool) -> Case:
    """Batch statistics, where scale and shift are not those it begins with."""
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(),
        nn.BatchNorm1d(36), nn.Linear(36, 2),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return _one(layers.train(train), 2, 4, 5, mixes=train)


def _norm(*layers: nn.Module, shape: tuple[int, ...]) -> Case:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return _one(nn.Sequential(*layers, nn.Tanh()), *shape)


CASES: dict[str, Callable[[], Case]] = {
    # -- linear, bilinear
    "linear-2d": _linear(),
    "linear-3d": _linear(2),
    "linear-4d": _linear(2, 3),
    "linear-5d": _linear(2, 3, 4),
    "linear-no-bias": lambda: _one(
        nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)), 5
    ),
    "linear-time-first": lambda: Case(
        nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
        (torch.randn(6, N, 5),),
        batch_dim=1,
    ),
    "linear-transposed-input": lambda: Case(
        nn.Linear(5, 4), (torch.randn(5, N, 3).permute(1, 2, 0),)
    ),
    "bilinear-2d": lambda: _one(Twice(), 5),
    "bilinear-4d": lambda: _one(Twice(), 3, 2, 5),
    # -- convolutions
    "conv1d": lambda: _conv(1, 9, kernel_size=3),
    "conv1d-stride-dilation": lambda: _conv(
        1, 11, kernel_size=3, stride=2, dilation=2, padding=3
    ),
    "conv1d-same-even": lambda: _conv(1, 9, kernel_size=4, padding="same"),
    "conv1d-valid": lambda: _conv(1, 9, kernel_size=4, padding="valid", bias=False),
    "conv2d-asymmetric": lambda: _conv(
        2, 7, 5, kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)
    ),
    "conv2d-depthwise": lambda: _conv(2, 6, 5, kernel_size=3, groups=2),
    "conv2d-circular": lambda: _conv(
        2, 6, 5, kernel_size=(3, 2), padding=(2, 1), padding_mode="circular"
    ),
    "conv2d-reflect": lambda: _conv(
        2, 6, 5, kernel_size=3, padding=(1, 2), padding_mode="reflect", stride=2
    ),
    "conv2d-same-dilated": lambda: _conv(
        2, 6, 7, kernel_size=(2, 3), padding="same", dilation=(3, 2), groups=2
    ),
    "conv3d": lambda: _conv(3, 5, 4, 6, kernel_size=2, stride=(1, 2, 2)),
    "conv3d-anisotropic": lambda: _conv(
        3, 5, 4, 6, kernel_size=(3, 1, 2), padding=(1, 0, 2), dilation=(1, 1, 2)
    ),
    "conv3d-replicate": lambda: _conv(
        3, 4, 3, 5, kernel_size=2, padding=1, padding_mode="replicate"
    ),
    "conv-channels-last": lambda: Case(
        nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
        (torch.randn(N, 3, 6, 5).to(memory_format=torch.channels_last),),
    ),
    "conv2d": lambda: Case(
        nn.Sequential(
            nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
            nn.GroupNorm(3, 6),
            nn.PReLU(),
            nn.Flatten(),
            nn.Linear(6 * 3 * 4, 2),
        ),
        (torch.randn(N, 2, 6, 5),),
    ),
    "transposed1d": lambda: _transposed(
        1, 5, kernel_size=4, stride=3, padding=1, output_padding=2
    ),
    "transposed2d": lambda: _transposed(
        2, 3, 5, kernel_size=(3, 2), stride=(2, 1), dilation=(1, 2), groups=2
    ),
    "transposed2d-cut": lambda: _transposed(
        2, 4, 3, kernel_size=2, stride=2, padding=(2, 1), output_padding=(1, 0)
    ),
    "transposed3d": lambda: _transposed(
        3, 2, 3, 4, kernel_size=(2, 3, 1), stride=2, output_padding=1, bias=False
    ),
    # -- embeddings
    "embedding": lambda: _tokens(nn.Embedding(9, 4)),
    "embedding-padding": lambda: _tokens(nn.Embedding(9, 4, padding_idx=2)),
    "embedding-frequency": lambda: _tokens(
        nn.Embedding(9, 4, scale_grad_by_freq=True)
    )._replace(mixes=True),
    "embedding-1d": lambda: Case(nn.Embedding(9, 4), (torch.randint(0, 9, (N,)),)),
    "bag-sum": lambda: _tokens(nn.EmbeddingBag(9, 4, mode="sum")),
    "bag-mean-padding": lambda: _tokens(
        nn.EmbeddingBag(9, 4, mode="mean", padding_idx=3)
    ),
    "bag-max": lambda: _tokens(nn.EmbeddingBag(9, 4, mode="max", padding_idx=1)),
    "bag-offsets": lambda: Case(
        Bags("sum"), (torch.randn(N, 4), torch.rand(14)), mixes=True
    ),
    "bag-offsets-mean": lambda: Case(
        Bags("mean", include_last_offset=True),
        (torch.randn(N, 4), torch.rand(14)),
        mixes=True,
    ),
    "bag-weighted": lambda: Case(
        WeightedBags(), (torch.randint(0, 9, (N, 5)), torch.rand(N, 5))
    ),
    "tied-embedding": lambda: _tokens(TiedEmbedding()),
    # -- recurrent
    "rnn-tanh": lambda: _recurrent(nn.RNN, batch_first=True),
    "rnn-relu": lambda: _recurrent(nn.RNN, nonlinearity="relu", bias=False),
    "rnn-deep": lambda: _recurrent(nn.RNN, num_layers=3, bidirectional=True),
    "gru": lambda: _recurrent(nn.GRU),
    "gru-no-bias": lambda: _recurrent(nn.GRU, bias=False, batch_first=True),
    "gru-deep": lambda: _recurrent(
        nn.GRU, num_layers=2, bidirectional=True, batch_first=True
    ),
    "gru-packed": lambda: _recurrent(nn.GRU, "unsorted", bidirectional=True),
    "gru-dropout": lambda: _recurrent(nn.GRU, num_layers=3, dropout=0.4),
    "lstm": lambda: _recurrent(nn.LSTM),
    "lstm-no-bias": lambda: _recurrent(nn.LSTM, bias=False, num_layers=2),
    "lstm-deep": lambda: _recurrent(
        nn.LSTM, num_layers=2, bidirectional=True, batch_first=True
    ),
    "lstm-projected": lambda: _recurrent(
        nn.LSTM, proj_size=2, num_layers=2, bidirectional=True
    ),
    "lstm-packed-sorted": lambda: _recurrent(nn.LSTM, "sorted", batch_first=True),
    "lstm-packed": lambda: _recurrent(
        nn.LSTM, "unsorted", num_layers=2, bidirectional=True, proj_size=3
    ),
    "lstm-dropout": lambda: _recurrent(
        nn.LSTM, num_layers=2, dropout=0.5, bidirectional=True
    ),
    "lstm-dropout-batch-first": lambda: _recurrent(
        nn.LSTM, num_layers=3, dropout=0.3, batch_first=True
    ),
    "lstm-packed-dropout": lambda: _recurrent(
        nn.LSTM, "unsorted", num_layers=2, dropout=0.5, batch_first=True
    ),
    "lstm-states": lambda: Case(
        LastState(),
        (torch.randn(N, 5, 3), torch.randn(N, 2, 4), torch.randn(N, 2, 4)),
    ),
    "gru-inplace-after": lambda: _one(InPlaceAfterRecurrent(), 5, 3),
    # -- attention
    "attention": _attention,
    "attention-time-first": lambda: _attention(batch_first=False),
    "attention-weights": lambda: _attention(weights="average", mask="padding"),
    "attention-heads": lambda: _attention(
        "cross", weights="heads", batch_first=False, bias=False
    ),
    "attention-cross": lambda: _attention("cross", mask="padding"),
    "attention-key-value": lambda: _attention("key-value", batch_first=False),
    "attention-widths": lambda: _attention("cross", kdim=5, vdim=3),
    "attention-widths-no-bias": lambda: _attention(
        "cross", kdim=5, vdim=3, bias=False, batch_first=False
    ),
    "attention-added": lambda: _attention(
        "cross", add_bias_kv=True, add_zero_attn=True, mask="padding"
    ),
    "attention-added-weights": lambda: _attention(
        weights="average", add_bias_kv=True, mask="causal", batch_first=False
    ),
    "attention-causal": lambda: _attention(mask="causal padding"),
    "attention-causal-hint": lambda: _attention(mask="causal hint"),
    "attention-float-mask": lambda: _attention("cross", mask="float"),
    "attention-dropout": lambda: _attention(dropout=0.3),
    "attention-dropout-weights": lambda: _attention(
        "cross", weights="average", dropout=0.4, mask="padding"
    ),
    "encoder": lambda: _one(
        nn.TransformerEncoderLayer(6, 3, 10, 0.3, batch_first=True), 4, 6, mixes=True
    ),
    "encoder-norm-first": lambda: _one(
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                6, 2, 10, 0.0, "gelu", batch_first=True, norm_first=True
            ),
            2,
            enable_nested_tensor=False,
        ),
        4,
        6,
    ),
    "decoder": lambda: Case(
        Decoder(dropout=0.0, batch_first=True),
        (torch.randn(N, 4, 6), torch.randn(N, 5, 6)),
    ),
    "decoder-time-first": lambda: Case(
        Decoder(dropout=0.2),
        (torch.randn(4, N, 6), torch.randn(5, N, 6)),
        batch_dim=1,
        mixes=True,
    ),
    # -- normalisation, slopes
    "layer-norm": lambda: _norm(nn.Linear(5, 4), nn.LayerNorm(4), shape=(3, 5)),
    "layer-norm-2d": lambda: _norm(nn.LayerNorm((3, 5)), shape=(2, 3, 5)),
    "layer-norm-no-bias": lambda: _norm(nn.LayerNorm(5, bias=False), shape=(5,)),
    "rms-norm": lambda: _norm(nn.RMSNorm(5), nn.RMSNorm((3, 5)), shape=(3, 5)),
    "group-norm": lambda: _norm(nn.GroupNorm(2, 4), shape=(4, 3, 5)),
    "group-norm-flat": lambda: _norm(nn.GroupNorm(3, 6), shape=(6,)),
    "instance-norm-1d": lambda: _norm(nn.InstanceNorm1d(4, affine=True), shape=(4, 6)),
    "instance-norm-3d": lambda: _norm(
        nn.InstanceNorm3d(4, affine=True, eps=1e-3), shape=(4, 3, 2, 5)
    ),
    "instance-norm-stored": lambda: _norm(
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(),
        shape=(4, 3, 5),
    ),
    "batch-norm-eval": lambda: _batch_norm(train=False),
    "batch-norm-train": lambda: _batch_norm(train=True),
    "batch-norm-no-stats": lambda: _one(
        nn.BatchNorm1d(4, track_running_stats=False).eval(), 4, 6, mixes=True
    ),
    "prelu": lambda: _one(nn.Sequential(nn.Linear(5, 4), nn.PReLU()), 5),
    "prelu-3d": lambda: _one(nn.Sequential(nn.Linear(5, 4), nn.PReLU()), 3, 5),
    "prelu-channels": lambda: _one(
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.PReLU(3)), 2, 5
    ),
    # -- situations
    "relu-inplace": lambda: _one(
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), 5
    ),
    "relu-inplace-3d": lambda: _one(
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), 2, 5
    ),
    "function-inplace": lambda: _one(InPlaceAfter(), 4),
    "function-inplace-3d": lambda: _one(InPlaceAfter(), 3, 4),
    "reused": lambda: _one(Reused(), 5, 3),
    "tied": lambda: _one(Tied(), 4),
    "keyword-call": lambda: _one(KeywordCall(), 4),
    "dropout": lambda: _one(
        nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
        5,
        mixes=True,
    ),
    "frozen-weight": lambda: _one(_frozen("0.weight"), 5),
    "frozen-bias": lambda: _one(_frozen("0.bias"), 5),
    "frozen-layer": lambda: _one(_frozen("2.weight", "2.bias"), 5),
    "bare": lambda: _one(Bare(), 5),
    "bare-3d": lambda: _one(Bare(), 2, 5),
    "subclass": lambda: _one(
        nn.Sequential(Doubled(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), 5
    ),
    "parametrized": lambda: _one(
        nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2)),
        5,
    ),
    "parametrized-attention": lambda: _one(_spectral(), 4, 6),
    "spectral-norm": lambda: _one(
        nn.Sequential(
            parametrizations.spectral_norm(nn.Conv1d(2, 3, 2)), nn.Flatten()
        ).eval(),  # each training call changes the weight
        2,
        5,
    ),
    "checkpoint": lambda: _one(Checkpointed(reentrant=False), 4, 5),
    "without-batch": lambda: _one(WithoutBatch(), 5),
    "matrix": lambda: _one(Matrix(), 5),
    "outputs": lambda: _one(Outputs(), 3, 5),
    "views": lambda: _one(Views(), 5),
    "nested": lambda: _one(
        nn.Sequential(nn.Sequential(nn.Linear(5, 4)), nn.Sequential(Bare4())), 5
    ),
}


def _frozen(*names: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def _spectral() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 5, 0.0, batch_first=True)
    parametrizations.weight_norm(layer.self_attn.out_proj)
    return layer


class Bare4(Bare):
    """`Bare` behind another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)


def build(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Case:
    """Build a case, seeded by its own name."""
    torch.manual_seed(sum(map(ord, name)))
    case = CASES[name]()
    inputs = tuple(
        x.to(device, dtype if x.is_floating_point() else x.dtype) for x in case.inputs
    )
    return case._replace(model=case.model.to(device, dtype), inputs=inputs)
