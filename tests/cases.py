"""Networks to watch, as data: nothing is built at import.

A case is a name and a function that returns ``(model, input, batch_dim)`` in
float64 with its own seed. Sizes are unequal everywhere, because equal ones hide
exchanged axes. A new row rule adds its networks here and is held to every test.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

N = 7


class Case(NamedTuple):
    model: nn.Module
    x: Tensor
    batch_dim: int = 0


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
    """Two LSTM layers with dropout between them, time first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True)
        self.output = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(x.transpose(0, 1))[0].mean(0))


class Attention(nn.Module):
    """Self-attention of four tokens, and a transformer layer above it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(6, 3, 10, 0.3, batch_first=True)
        self.output = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x, need_weights=False)
        return self.output(self.layer(x + attended).mean(1))


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
        return Case(model, torch.randn(N, *leading, 5))

    return build


CASES: dict[str, Callable[[], Case]] = {
    "linear-2d": _linear(),
    "linear-3d": _linear(2),
    "linear-4d": _linear(2, 3),
    "linear-5d": _linear(2, 3, 4),
    "linear-no-bias": lambda: Case(
        nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)),
        torch.randn(N, 5),
    ),
    "linear-time-first": lambda: Case(
        nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
        torch.randn(6, N, 5),
        batch_dim=1,
    ),
    "linear-transposed-input": lambda: Case(
        nn.Linear(5, 4), torch.randn(5, N, 3).permute(1, 2, 0)
    ),
    "relu-inplace": lambda: Case(
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        torch.randn(N, 5),
    ),
    "relu-inplace-3d": lambda: Case(
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        torch.randn(N, 2, 5),
    ),
    "function-inplace": lambda: Case(InPlaceAfter(), torch.randn(N, 4)),
    "function-inplace-3d": lambda: Case(InPlaceAfter(), torch.randn(N, 3, 4)),
    "reused": lambda: Case(Reused(), torch.randn(N, 5, 3)),
    "tied": lambda: Case(Tied(), torch.randn(N, 4)),
    "keyword-call": lambda: Case(KeywordCall(), torch.randn(N, 4)),
    "dropout": lambda: Case(
        nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
        torch.randn(N, 5),
    ),
    "frozen-weight": lambda: Case(_frozen("0.weight"), torch.randn(N, 5)),
    "frozen-layer": lambda: Case(_frozen("2.weight", "2.bias"), torch.randn(N, 5)),
    "bare": lambda: Case(Bare(), torch.randn(N, 5)),
    "bare-3d": lambda: Case(Bare(), torch.randn(N, 2, 5)),
    "subclass": lambda: Case(
        nn.Sequential(Doubled(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        torch.randn(N, 5),
    ),
    "layer-norm": lambda: Case(
        nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        torch.randn(N, 3, 5),
    ),
    "conv2d": lambda: Case(
        nn.Sequential(
            nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
            nn.GroupNorm(3, 6),
            nn.PReLU(),
            nn.Flatten(),
            nn.Linear(6 * 3 * 4, 2),
        ),
        torch.randn(N, 2, 6, 5),
    ),
    "parametrized": lambda: Case(
        nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2)
        ),
        torch.randn(N, 5),
    ),
    "tied-embedding": lambda: Case(TiedEmbedding(), torch.randint(0, 9, (N, 5))),
    "lstm": lambda: Case(Recurrent(), torch.randn(N, 5, 3)),
    "attention": lambda: Case(Attention(), torch.randn(N, 4, 6)),
    "outputs": lambda: Case(Outputs(), torch.randn(N, 3, 5)),
}


def _frozen(*names: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def build(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """Build a case, seeded by its own name."""
    torch.manual_seed(sum(map(ord, name)))
    case = CASES[name]()
    x = case.x.to(dtype) if case.x.is_floating_point() else case.x
    return Case(case.model.to(dtype), x, case.batch_dim)
