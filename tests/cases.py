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

from tests.networks import (
    STEPS,
    Attention,
    AttentionReused,
    Bags,
    Bare,
    Bare4,
    Cells,
    Checkpointed,
    ConvolutionReused,
    Decoder,
    Doubled,
    InPlaceAfter,
    InPlaceAfterRecurrent,
    KeywordCall,
    LastState,
    Matrix,
    Outputs,
    Recurrent,
    RecurrentReused,
    Reused,
    States,
    Tied,
    TiedEmbedding,
    Transformer,
    Twice,
    Views,
    WeightedBags,
    WithoutBatch,
)

N = 7
LENGTHS = torch.tensor([3, 6, 1, 4, 6, 2, 5])
"""Of sequences, unsorted; the longest is `STEPS`."""


class Case(NamedTuple):
    """A network and a batch.

    ``mixes``: a sample's gradient depends on the others (batch statistics), or on
    random numbers, so that a batch of one is another thing.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    batch_dim: int = 0
    mixes: bool = False


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


def _states(kind: type[nn.RNNBase], packed: bool, **settings: object) -> Case:
    """A recurrent layer with given first states."""
    model = States(kind, packed, **settings)
    count = model.rnn.num_layers * (2 if model.rnn.bidirectional else 1)
    widths = (model.rnn.proj_size or 4, 4)
    states = (torch.randn(N, count, width) for width in widths)
    return Case(model, (torch.randn(N, STEPS, 3), LENGTHS, *states))


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
    "bag-offsets-max": lambda: Case(
        Bags("max", padding_idx=1), (torch.randn(N, 4), torch.rand(14)), mixes=True
    ),
    "bag-offsets-padding": lambda: Case(
        Bags("sum", padding_idx=2, include_last_offset=True),
        (torch.randn(N, 4), torch.rand(14)),
        mixes=True,
    ),
    "bag-frequency": lambda: _tokens(
        nn.EmbeddingBag(9, 4, mode="mean", scale_grad_by_freq=True, padding_idx=3)
    )._replace(mixes=True),
    "bag-max-norm": lambda: _tokens(nn.EmbeddingBag(9, 4, mode="max", max_norm=0.8)),
    "embedding-max-norm": lambda: _tokens(nn.Embedding(9, 4, max_norm=0.5)),
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
    "lstm-packed-states": lambda: _states(
        nn.LSTM, True, num_layers=2, bidirectional=True, proj_size=2
    ),
    "gru-packed-states": lambda: _states(nn.GRU, True, batch_first=True, bias=False),
    "rnn-states": lambda: _states(nn.RNN, False, num_layers=2),
    "recurrent-cells": lambda: _one(Cells(), 5, 3),
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
    "attention-mask-per-head": lambda: _attention("cross", mask="heads soft"),
    "attention-mask-per-head-weights": lambda: _attention(
        weights="heads", mask="heads", batch_first=False, add_zero_attn=True
    ),
    "attention-float-padding": lambda: _attention(mask="soft"),
    "attention-added-causal": lambda: _attention(
        mask="causal hint", add_bias_kv=True, add_zero_attn=True
    ),
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
    "transformer": lambda: Case(
        Transformer(batch_first=True), (torch.randn(N, 4, 6), torch.randn(N, 5, 6))
    ),
    # as many steps as samples, which only the layers themselves tell apart
    "transformer-time-first": lambda: Case(
        Transformer(), (torch.randn(N, N, 6), torch.randn(N, N, 6))
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
    "reused-recurrent": lambda: _one(RecurrentReused(), 5, 3),
    "reused-attention": lambda: _one(AttentionReused(), 5, 4),
    "reused-convolution": lambda: _one(ConvolutionReused(), 3, 7),
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
    "frozen-convolution": lambda: _one(
        _freeze(
            nn.Sequential(nn.Conv1d(3, 4, 2), nn.Conv1d(4, 2, 2)), "0.bias", "1.weight"
        ),
        3,
        6,
    ),
    "frozen-recurrent": lambda: _frozen_recurrent(),
    "frozen-attention": lambda: _frozen_attention(),
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


def _freeze(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def _frozen(*names: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return _freeze(model, *names)


def _frozen_recurrent() -> Case:
    case = _recurrent(nn.LSTM, num_layers=2)
    frozen = ("rnn.weight_ih_l0", "rnn.bias_hh_l0", "rnn.weight_hh_l1")
    _freeze(case.model, *frozen)
    return case


def _frozen_attention() -> Case:
    case = _attention()
    _freeze(case.model, "attention.in_proj_weight", "attention.out_proj.bias")
    return case


def _spectral() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 5, 0.0, batch_first=True)
    parametrizations.weight_norm(layer.self_attn.out_proj)
    return layer


def build(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Case:
    """Build a case, seeded by its own name."""
    torch.manual_seed(sum(map(ord, name)))
    case = CASES[name]()
    inputs = tuple(
        x.to(device, dtype if x.is_floating_point() else x.dtype) for x in case.inputs
    )
    return case._replace(model=case.model.to(device, dtype), inputs=inputs)
