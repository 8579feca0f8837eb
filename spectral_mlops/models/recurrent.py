"""Recurrent networks on time courses: PyTorch's own modules, padding left out.

Shorter sequences go in packed, so that no time step past their end is computed, in
either direction.
"""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
)

from spectral_mlops.config import Settings
from spectral_mlops.models.normalisation import Norm, make_norm
from spectral_mlops.models.padding import mean_over_valid, valid_steps
from spectral_mlops.models.registry import register_model

Pooling = Literal["mean", "last"]


class RecurrentSettings(Settings):
    """Shape of an LSTM or GRU."""

    width: PositiveInt = Field(64, description="of the state, per direction")
    layers: PositiveInt = Field(1, description="stacked")
    bidirectional: bool = Field(True, description="also from the end to the start")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="between layers, and before the output"
    )
    pooling: Pooling = Field(
        "mean", description="over time steps, or the state at the end of each direction"
    )
    norm: Norm = Field("none", description="of what was pooled")


class Recurrent(nn.Module):
    """A recurrent module over time steps, pooled, then a linear ``output``.

    The recurrent module is the attribute ``lstm`` or ``gru``: its weights are layers
    of the spectra by name (``lstm.weight_ih_l0``).

    Args:
        kind: ``nn.LSTM`` or ``nn.GRU``.
        inputs: Time points and components of one person, ``(T, C)``.
        outputs: Number of classes.
        settings: Shape of the network.
    """

    def __init__(
        self,
        kind: type[nn.LSTM] | type[nn.GRU],
        inputs: tuple[int, int],
        outputs: int,
        settings: RecurrentSettings,
    ) -> None:
        super().__init__()
        self.pooling: Pooling = settings.pooling
        self.name = kind.__name__.lower()
        module = kind(
            inputs[1],
            settings.width,
            settings.layers,
            batch_first=True,
            bidirectional=settings.bidirectional,
            dropout=settings.dropout if settings.layers > 1 else 0.0,
        )
        self.add_module(self.name, module)
        width = settings.width * (2 if settings.bidirectional else 1)
        self.norm = make_norm(settings.norm, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Time courses, shape ``[N, T, C]``, zero after the end of shorter ones.

        Returns:
            Shape ``[N, outputs]``.
        """
        module = self.get_submodule(self.name)
        assert isinstance(module, nn.RNNBase)
        pooled = run_recurrent(module, x, valid_steps(x), self.pooling)
        logits: Tensor = self.output(self.dropout(self.norm(pooled)))
        return logits


@register_model("lstm", RecurrentSettings, takes="sequence")
def lstm(
    inputs: tuple[int, int], outputs: int, settings: RecurrentSettings
) -> Recurrent:
    """Build an LSTM on time courses."""
    return Recurrent(nn.LSTM, inputs, outputs, settings)


@register_model("gru", RecurrentSettings, takes="sequence")
def gru(
    inputs: tuple[int, int], outputs: int, settings: RecurrentSettings
) -> Recurrent:
    """Build a GRU on time courses."""
    return Recurrent(nn.GRU, inputs, outputs, settings)


def run_recurrent(
    module: nn.RNNBase, x: Tensor, valid: Tensor, pooling: Pooling
) -> Tensor:
    """Run a recurrent module over sequences and pool its states.

    Args:
        module: With ``batch_first``.
        x: Shape ``[N, T, d]``.
        valid: Which time steps are no padding, ``[N, T]``; padding at the end only.
        pooling: ``mean`` of all states, or the ``last`` of each direction.

    Returns:
        Shape ``[N, directions · width]``.
    """
    lengths = valid.sum(1)
    padded = bool((lengths < x.shape[1]).any())
    given: Tensor | PackedSequence = x
    if padded:
        given = pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
    states, last = module(given)
    if pooling == "last":
        end = last[0] if isinstance(last, tuple) else last  # [layers · D, N, width]
        directions = 2 if module.bidirectional else 1
        return end[-directions:].transpose(0, 1).flatten(1)
    if padded:
        states, _ = pad_packed_sequence(states, batch_first=True)
    return mean_over_valid(states, valid[:, : states.shape[1]])
