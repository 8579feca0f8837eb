"""A multilayer perceptron on one vector per person."""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from spectral_mlops.config import Settings
from spectral_mlops.models.registry import register_model


class MlpSettings(Settings):
    """Shape of the perceptron."""

    hidden: tuple[PositiveInt, ...] = Field((64, 32), description="widths, in order")
    dropout: float = Field(0.2, ge=0, lt=1, description="after each hidden layer")
    activation: Literal["relu", "gelu", "tanh"] = "relu"


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


@register_model("mlp", MlpSettings)
class Mlp(nn.Module):
    """Linear layers with an activation and dropout after all but the last.

    ``hidden=()`` is a linear model, ``hidden=(64,)`` has two linear layers. They
    are named ``hidden_1``, ``hidden_2``, …, ``output``.

    Args:
        inputs: Number of features per person.
        outputs: Number of classes.
        settings: Shape of the network.
    """

    def __init__(self, inputs: int, outputs: int, settings: MlpSettings) -> None:
        super().__init__()
        self.depth = len(settings.hidden)
        width = inputs
        for i, next_width in enumerate(settings.hidden, start=1):
            self.add_module(f"hidden_{i}", nn.Linear(width, next_width))
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
            hidden = self.get_submodule(f"hidden_{i}")
            x = self.dropout(self.activation(hidden(x)))
        logits: Tensor = self.output(x)
        return logits
