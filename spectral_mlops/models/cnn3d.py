"""A 3-D convolutional network on volumes, in the layout of VBMNet.

Blocks of convolution, normalisation, activation and pooling by two; on grey-matter maps
of 121 x 145 x 121 voxels five blocks leave 4 x 5 x 4.
"""

from math import prod

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from spectral_mlops.config import Settings
from spectral_mlops.models.normalisation import (
    ACTIVATIONS,
    Activation,
    Norm,
    make_norm,
)
from spectral_mlops.models.registry import register_model


class Cnn3dSettings(Settings):
    """Shape of the network."""

    channels: tuple[PositiveInt, ...] = Field(
        (4, 8, 16, 24, 32), min_length=1, description="of the blocks, in order"
    )
    kernel: PositiveInt = Field(3, description="edge")
    norm: Norm = "group"
    activation: Activation = "relu"
    dropout: float = Field(0.2, ge=0, lt=1, description="before the output")


@register_model("cnn3d", Cnn3dSettings, takes="volume")
class Cnn3d(nn.Module):
    """Layers ``conv_1``, ``norm_1``, ``conv_2``, …, ``output``.

    Pooling rounds up, so that no volume is too small. Normalised blocks have no bias:
    what normalisation takes away leaves a gradient of nothing but rounding.

    Args:
        inputs: Voxels of one person, ``(x, y, z)``.
        outputs: Number of classes.
        settings: Shape of the network.
    """

    def __init__(
        self, inputs: tuple[int, int, int], outputs: int, settings: Cnn3dSettings
    ) -> None:
        super().__init__()
        before, edges = 1, list(inputs)
        self.depth = len(settings.channels)
        for i, channels in enumerate(settings.channels, start=1):
            conv = nn.Conv3d(
                before,
                channels,
                settings.kernel,
                padding="same",
                bias=settings.norm == "none",
            )
            self.add_module(f"conv_{i}", conv)
            self.add_module(f"norm_{i}", make_norm(settings.norm, channels, axes=3))
            before, edges = channels, [(edge + 1) // 2 for edge in edges]
        self.activation = ACTIVATIONS[settings.activation]()
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(before * prod(edges), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Volumes, shape ``[N, 1, x, y, z]``.

        Returns:
            Shape ``[N, outputs]``.
        """
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"conv_{i}")(x)
            x = self.pool(self.activation(self.get_submodule(f"norm_{i}")(x)))
        logits: Tensor = self.output(self.dropout(x.flatten(1)))
        return logits
