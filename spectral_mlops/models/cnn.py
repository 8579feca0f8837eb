"""Convolutional networks on time courses (1-D) and on matrices (2-D)."""

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from spectral_mlops.config import Settings
from spectral_mlops.models.normalisation import (
    ACTIVATIONS,
    Activation,
    Norm,
    make_norm,
)
from spectral_mlops.models.padding import mean_over_valid, valid_steps
from spectral_mlops.models.registry import register_model


class CnnSettings(Settings):
    """Shape of a 1-D or 2-D network."""

    channels: tuple[PositiveInt, ...] = Field(
        (32, 32), min_length=1, description="of the blocks, in order"
    )
    kernel: PositiveInt = Field(5, description="edge, odd")
    stride: PositiveInt = Field(2, description="of every block")
    norm: Norm = "layer"
    activation: Activation = "relu"
    dropout: float = Field(0.2, ge=0, lt=1, description="before the output")

    @field_validator("kernel")
    @classmethod
    def _has_a_middle(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is even; places need a middle")
        return kernel


@register_model("cnn1d", CnnSettings, takes="sequence")
class Cnn1d(nn.Module):
    """Convolutions over time, components as channels, then a mean over time.

    Layers ``conv_1``, ``norm_1``, …, ``output``. Padding is zero before every
    convolution and left out of the mean, so that it changes nobody; with ``norm``
    ``group`` or ``batch`` it counts in the statistics (``layer`` normalises every time
    point by itself).

    Args:
        inputs: Time points and components of one person, ``(T, C)``.
        outputs: Number of classes.
        settings: Shape of the network.
    """

    def __init__(
        self, inputs: tuple[int, int], outputs: int, settings: CnnSettings
    ) -> None:
        super().__init__()
        before, kernel = inputs[1], settings.kernel
        self.depth, self.stride = len(settings.channels), settings.stride
        self.pointwise = settings.norm == "layer"
        for i, channels in enumerate(settings.channels, start=1):
            conv = nn.Conv1d(
                before,
                channels,
                kernel,
                self.stride,
                kernel // 2,
                bias=settings.norm in ("none", "layer"),  # else it is taken away
            )
            self.add_module(f"conv_{i}", conv)
            axes = 0 if self.pointwise else 1
            self.add_module(f"norm_{i}", make_norm(settings.norm, channels, axes))
            before = channels
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(before, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Time courses, shape ``[N, T, C]``, zero after the end of shorter ones.

        Returns:
            Shape ``[N, outputs]``.
        """
        valid = valid_steps(x)
        x = x.mT
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"conv_{i}")(x)
            norm = self.get_submodule(f"norm_{i}")
            x = norm(x.mT).mT if self.pointwise else norm(x)
            valid = valid[:, :: self.stride]
            x = torch.where(valid.unsqueeze(1), self.activation(x), 0.0)
        logits: Tensor = self.output(self.dropout(mean_over_valid(x.mT, valid)))
        return logits


@register_model("cnn2d", CnnSettings, takes=("matrix", "sequence"))
class Cnn2d(nn.Module):
    """Convolutions over connectivity matrices, or over time × components.

    Layers ``conv_1``, ``norm_1``, …, ``output``. Of time courses of unequal length the
    zeros after the end are part of the picture.

    Args:
        inputs: Edges of one person's matrix, ``(n, n)`` or ``(T, C)``.
        outputs: Number of classes.
        settings: Shape of the network.
    """

    def __init__(
        self, inputs: tuple[int, int], outputs: int, settings: CnnSettings
    ) -> None:
        super().__init__()
        before, kernel, edges = 1, settings.kernel, list(inputs)
        self.depth = len(settings.channels)
        for i, channels in enumerate(settings.channels, start=1):
            conv = nn.Conv2d(
                before,
                channels,
                kernel,
                settings.stride,
                kernel // 2,
                bias=settings.norm == "none",  # else normalisation takes it away
            )
            self.add_module(f"conv_{i}", conv)
            self.add_module(f"norm_{i}", make_norm(settings.norm, channels, axes=2))
            before = channels
            edges = [(edge - 1) // settings.stride + 1 for edge in edges]
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(before * edges[0] * edges[1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Matrices ``[N, 1, n, n]``, or time courses ``[N, T, C]``.

        Returns:
            Shape ``[N, outputs]``.
        """
        if x.ndim == 3:
            x = x.unsqueeze(1)
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"conv_{i}")(x)
            x = self.activation(self.get_submodule(f"norm_{i}")(x))
        logits: Tensor = self.output(self.dropout(x.flatten(1)))
        return logits
