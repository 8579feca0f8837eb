"""The ICA-LSTM layout: windows, a shared encoder, a bidirectional LSTM, their mean.

After the whole-brain models of the authors' lab: time courses are cut into short
windows, each is encoded by the same layer, and a recurrent network reads the codes in
order. There the head has batch normalisation, which mixes people; here the norm is a
choice.
"""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError
from spectral_mlops.models.normalisation import Norm, make_norm
from spectral_mlops.models.padding import valid_steps
from spectral_mlops.models.recurrent import run_recurrent
from spectral_mlops.models.registry import register_model


class IcaLstmSettings(Settings):
    """Shape of the network; the lab's has encoder 256 and width 384."""

    window: PositiveInt = Field(10, description="time points, of uncut time courses")
    stride: PositiveInt = Field(10, description="from one window to the next")
    encoder: PositiveInt = Field(64, description="width of a window's code")
    width: PositiveInt = Field(64, description="of the LSTM's state, per direction")
    dropout: float = Field(0.2, ge=0, lt=1)
    norm: Norm = Field("layer", description="of the mean over windows")


@register_model("ica_lstm", IcaLstmSettings, takes=("sequence", "windows"))
class IcaLstm(nn.Module):
    """Layers ``encoder``, ``lstm``, ``norm``, ``output``.

    A window counts if the person's time course fills it; a person shorter than a window
    has one, with zeros at its end.

    Args:
        inputs: Of one person, ``(T, C)``, or ``(W, T, C)`` of windows already cut.
        outputs: Number of classes.
        settings: Shape of the network.

    Raises:
        InputError: If no window fits into ``T``.
    """

    def __init__(
        self, inputs: tuple[int, ...], outputs: int, settings: IcaLstmSettings
    ) -> None:
        super().__init__()
        cut = len(inputs) == 2
        self.window = settings.window if cut else inputs[1]
        self.stride = settings.stride
        if self.window > inputs[-2]:
            raise InputError(
                f"model 'ica_lstm': window={self.window} is longer than the time "
                f"courses, which have {inputs[-2]} time points; choose a shorter one."
            )
        self.encoder = nn.Linear(self.window * inputs[-1], settings.encoder)
        self.lstm = nn.LSTM(
            settings.encoder, settings.width, batch_first=True, bidirectional=True
        )
        self.norm = make_norm(settings.norm, 2 * settings.width)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(2 * settings.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Time courses ``[N, T, C]``, zero after the end of shorter ones, or
                windows ``[N, W, T, C]``.

        Returns:
            Shape ``[N, outputs]``.
        """
        windows, valid = self._windows(x)
        codes = self.dropout(self.activation(self.encoder(windows)))
        pooled = run_recurrent(self.lstm, codes, valid, "mean")
        logits: Tensor = self.output(self.dropout(self.norm(pooled)))
        return logits

    def _windows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return windows as rows ``[N, W, T·C]``, and which count, ``[N, W]``."""
        if x.ndim == 4:
            rows = x.flatten(2)
            return rows, valid_steps(rows)
        cut = x.unfold(1, self.window, self.stride)  # [N, W, C, window]
        rows = cut.transpose(2, 3).flatten(2)
        lengths = valid_steps(x).sum(1, keepdim=True)
        ends = torch.arange(rows.shape[1], device=x.device) * self.stride + self.window
        valid = ends <= lengths
        valid[:, :1] = True
        return torch.where(valid.unsqueeze(-1), rows, 0.0), valid
