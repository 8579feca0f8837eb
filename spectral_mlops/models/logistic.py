"""Logistic regression: one linear layer, the control that learns no features."""

from torch import Tensor, nn

from spectral_mlops.config import Settings
from spectral_mlops.models.registry import register_model


class LogisticSettings(Settings):
    """There is nothing to choose; weight decay is a setting of the training."""


@register_model("logistic", LogisticSettings)
class Logistic(nn.Module):
    """One linear layer, ``output``; with two classes its gradient has rank 1.

    Args:
        inputs: Number of features per person.
        outputs: Number of classes.
        settings: None.
    """

    def __init__(self, inputs: int, outputs: int, settings: LogisticSettings) -> None:
        super().__init__()
        self.output = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Features, shape ``[N, inputs]``.

        Returns:
            Shape ``[N, outputs]``.
        """
        logits: Tensor = self.output(x)
        return logits
