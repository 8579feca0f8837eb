"""A multilayer perceptron on one vector per person."""

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


class MlpSettings(Settings):
    """Shape of the perceptron."""

    hidden: tuple[PositiveInt, ...] = Field((64, 32), description="widths, in order")
    dropout: float = Field(0.2, ge=0, lt=1, description="after each hidden layer")
    activation: Activation = "relu"
    norm: Norm = Field("none", description="after each hidden layer's weights")


@register_model("mlp", MlpSettings)
class Mlp(nn.Module):
    """Linear layers with an activation and dropout after all but the last.

    ``hidden=()`` is a linear model, ``hidden=(64,)`` has two linear layers. They
    are named ``hidden_1``, ``hidden_2``, …, ``output``, normalisations (before the
    activation) ``norm_1``, ….

    Args:
        inputs: Number of features per person.
        outputs: Number of classes.
        settings: Shape of the network.
    """

    def __init__(self, inputs: int, outputs: int, settings: MlpSettings) -> None:
        super().__init__()
        self.depth = len(settings.hidden)
        self.normed = settings.norm != "none"
        width = inputs
        for i, next_width in enumerate(settings.hidden, start=1):
            self.add_module(f"hidden_{i}", nn.Linear(width, next_width))
            if settings.norm != "none":
                self.add_module(f"norm_{i}", make_norm(settings.norm, next_width))
            width = next_width
        self.output = nn.Linear(width, outputs)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Features, shape ``[N, inputs]``.

        Returns:
            Shape ``[N, outputs]``.
        """
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"hidden_{i}")(x)
            if self.normed:
                x = self.get_submodule(f"norm_{i}")(x)
            x = self.dropout(self.activation(x))
        logits: Tensor = self.output(x)
        return logits
