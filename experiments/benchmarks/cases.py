"""The networks that are measured, as data: one batch's worth of everything.

Every case is a `Case` in `CASES`; a new one is a builder and an entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

SEED = 0
BATCHES = 4
"""Different batches that a run goes through in turn, so that nothing is learned
by heart and no adjoint vanishes while time is taken."""


@dataclass(frozen=True)
class Case:
    """One network at one batch size.

    Attributes:
        name: On the command line and in results.
        title: In tables.
        build: Makes the model; called under `SEED`.
        inputs: Shape of one sample.
        batch: Samples per step.
        groups: Number of groups of (nearly) equal size.
        goal: Ratio of a step watched every time to an unwatched one, at most.
        classes: Of the cross-entropy.
        window: Steps between two calls of ``collect``.
        reference: Whether the reference method can be run on it.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    batch: int
    groups: int
    goal: float
    classes: int = 2
    window: int = 20
    reference: bool = False

    @property
    def scheduled_goal(self) -> float:
        """The same at the default schedule, 8 steps of an epoch of 200."""
        return 1 + 0.04 * (self.goal - 1) + 0.02

    def labels(self) -> list[str]:
        """Group of each sample, ``[N]``; samples of a group are not neighbours."""
        return [f"g{i % self.groups}" for i in range(self.batch)]

    def data(self, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
        """`BATCHES` batches of standard normal inputs and random targets."""
        random = torch.Generator().manual_seed(SEED)
        return [
            (
                torch.randn(self.batch, *self.inputs, generator=random).to(device),
                torch.randint(self.classes, (self.batch,), generator=random).to(device),
            )
            for _ in range(BATCHES)
        ]

    def model(self, device: str = "cpu") -> nn.Module:
        """The network with the weights of `SEED`; random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.build().to(device)


def mlp(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths[:-1]):
        layers += [nn.Linear(d_in, d_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def cockpit_3c3d() -> nn.Module:
    """The network of Cockpit's and DeepOBS's CIFAR-10 problem."""
    return nn.Sequential(
        *[nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)],
        *[nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)],
        *[nn.Conv2d(96, 128, 3, padding=1), nn.ReLU()],
        *[nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), mlp(1152, 512, 256, 10)],
    )


def cnn3d() -> nn.Module:
    """Three stages of convolution on volumes, and a linear head."""
    stages: list[nn.Module] = []
    for c_in, c_out in ((1, 8), (8, 16), (16, 32)):
        stages += [nn.Conv3d(c_in, c_out, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(
        *stages, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 2)
    )


class Recurrent(nn.Module):
    """An LSTM over ``[N, T, 53]`` and a linear head on its mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(53, 128, batch_first=True)
        self.head = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[N, 2]``."""
        return self.head(self.lstm(x)[0].mean(1))


class Encoder(nn.Module):
    """A transformer encoder over ``[N, T, 53]`` and a linear head on its mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
        self.embed = nn.Linear(53, 128)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[N, 2]``."""
        return self.head(self.encoder(self.embed(x)).mean(1))


def _narrow(groups: int) -> Case:
    return Case(
        name=f"mlp-narrow-{groups}",
        title=f"MLP, 4 layers of 128, batch 128, {groups} groups",
        build=lambda: mlp(128, 128, 128, 128, 128, 2),
        inputs=(128,),
        batch=128,
        groups=groups,
        goal=5.0,
        reference=True,
    )


def _by_name(*cases: Case) -> dict[str, Case]:
    return {case.name: case for case in cases}


CASES = _by_name(
    Case(
        "mlp-taper",
        "MLP 1378-512-256-128-2, batch 64",
        lambda: mlp(1378, 512, 256, 128, 2),
        (1378,),
        64,
        2,
        1.25,
        reference=True,
    ),
    Case(
        "mlp-wide",
        "MLP 1378-1024-1024-1024-2, batch 64",
        lambda: mlp(1378, 1024, 1024, 1024, 2),
        (1378,),
        64,
        2,
        1.15,
        reference=True,
    ),
    _narrow(2),
    _narrow(16),
    Case(
        "3c3d",
        "3C3D on 32×32×3, batch 128",
        cockpit_3c3d,
        (3, 32, 32),
        128,
        2,
        1.3,
        classes=10,
    ),
    Case(
        "cnn3d",
        "3-D CNN on 40³ volumes, batch 8",
        cnn3d,
        (1, 40, 40, 40),
        8,
        2,
        1.5,
    ),
    Case(
        "lstm",
        "LSTM 53→128, 140 steps, batch 32",
        Recurrent,
        (140, 53),
        32,
        2,
        3.5,
    ),
    Case(
        "transformer",
        "Transformer, 4 layers of 128, 140 tokens, batch 32",
        Encoder,
        (140, 53),
        32,
        2,
        2.5,
    ),
)
