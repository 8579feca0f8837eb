"""A BERT-like encoder on time courses: class token, positions, padding left out.

Every map is a linear layer on rows ``[N, 1 + T, width]``: position 0 of each is the
class token, and rows past the end of a shorter sequence are zeros with zero adjoints,
which add nothing to any singular value. Attention is PyTorch's own function between
them.
"""

import math
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_mlops.config import Settings
from spectral_mlops.models.normalisation import ACTIVATIONS, Activation
from spectral_mlops.models.padding import mean_over_valid, valid_steps
from spectral_mlops.models.registry import register_model


class TransformerSettings(Settings):
    """Shape of the encoder."""

    width: PositiveInt = Field(64, description="of a token; a multiple of heads")
    heads: PositiveInt = 4
    layers: PositiveInt = 2
    feedforward: PositiveInt = Field(128, description="hidden width within a block")
    dropout: float = Field(0.1, ge=0, lt=1)
    activation: Activation = "gelu"
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    pre_norm: bool = Field(True, description="normalise before each part, not after")
    norm: Literal["layer", "none"] = Field("layer", description="of every token")
    pooling: Literal["class", "mean"] = Field(
        "class", description="what the output sees: the class token, or all others"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "TransformerSettings":
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        return self


@register_model("transformer", TransformerSettings, takes="sequence")
class Transformer(nn.Module):
    """Time points as tokens.

    Layers: ``embedding`` (components to width), ``class_token`` and learned
    ``positions`` (tables), ``blocks.0.query_key_value`` (three maps stacked),
    ``.attention_output``, ``.widen``, ``.narrow``, …, ``output``.

    Args:
        inputs: Time points and components of one person, ``(T, C)``; longer sequences
            are refused by learned positions.
        outputs: Number of classes.
        settings: Shape of the encoder.
    """

    def __init__(
        self, inputs: tuple[int, int], outputs: int, settings: TransformerSettings
    ) -> None:
        super().__init__()
        steps, components = inputs
        width = settings.width
        self.pooling, self.kind = settings.pooling, settings.positions
        self.embedding = nn.Linear(components, width)
        self.class_token = nn.Embedding(1, width)
        if self.kind == "learned":  # row 0 is of padding, and stays zero
            self.positions = nn.Embedding(steps + 1, width, padding_idx=0)
        elif self.kind == "sinusoidal":
            table = sinusoidal(steps, width)
            self.register_buffer("waves", table, persistent=False)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        last = settings.pre_norm and settings.norm == "layer"
        self.norm = nn.LayerNorm(width) if last else nn.Identity()
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Time courses, shape ``[N, T, C]``, zero after the end of shorter ones.

        Returns:
            Shape ``[N, outputs]``.
        """
        valid = valid_steps(x)
        tokens = self._placed(self.embedding(x), valid)
        first = self.class_token(valid.new_zeros((len(x), 1), dtype=torch.long))
        keep = torch.cat([valid.new_ones((len(x), 1)), valid], 1)
        tokens = self.dropout(torch.cat([first, tokens], 1))
        for block in self.blocks:
            tokens = block(tokens, keep)
        tokens = self.norm(tokens)
        if self.pooling == "class":
            pooled = tokens[:, 0]
        else:
            pooled = mean_over_valid(tokens[:, 1:], valid)
        logits: Tensor = self.output(pooled)
        return logits

    def _placed(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Add what says where a token stands, ``[N, T, width]``."""
        if self.kind == "learned":
            place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
            return tokens + self.positions(place * valid)
        if self.kind == "sinusoidal":
            return tokens + self.get_buffer("waves")[: tokens.shape[1]].to(tokens)
        return tokens


class Block(nn.Module):
    """Self-attention and two linear layers, each beside a way around it.

    Args:
        settings: Of the encoder.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.pre_norm = settings.heads, settings.pre_norm
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.widen = nn.Linear(width, settings.feedforward)
        self.narrow = nn.Linear(settings.feedforward, width)
        normed = settings.norm == "layer"
        self.attention_norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.feedforward_norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Return tokens of the same shape.

        Args:
            tokens: Shape ``[N, S, width]``.
            keep: Which are no padding, ``[N, S]``.
        """
        if self.pre_norm:
            tokens = tokens + self._attend(self.attention_norm(tokens), keep)
            return tokens + self._feed(self.feedforward_norm(tokens), keep)
        tokens = self.attention_norm(tokens + self._attend(tokens, keep))
        return self.feedforward_norm(tokens + self._feed(tokens, keep))

    def _attend(self, tokens: Tensor, keep: Tensor) -> Tensor:
        n, s, width = tokens.shape
        stacked = self.query_key_value(_without_padding(tokens, keep))
        shape = (n, s, 3, self.heads, width // self.heads)
        query, key, value = stacked.reshape(shape).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=keep[:, None, None, :],
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        context = context.transpose(1, 2).reshape(n, s, width)
        attended: Tensor = self.attention_output(_without_padding(context, keep))
        return self.dropout(attended)

    def _feed(self, tokens: Tensor, keep: Tensor) -> Tensor:
        hidden = self.activation(self.widen(_without_padding(tokens, keep)))
        fed: Tensor = self.narrow(_without_padding(self.dropout(hidden), keep))
        return self.dropout(fed)


def _without_padding(tokens: Tensor, keep: Tensor) -> Tensor:
    """Set the rows of padding to zero, so that a layer's factors do not have them."""
    return torch.where(keep.unsqueeze(-1), tokens, 0.0)


def sinusoidal(steps: int, width: int) -> Tensor:
    """Return sines and cosines of falling frequency, shape ``[steps, width]``.

    ``sin(t / 10000^(2i/width))`` in column ``2i`` and the cosine beside it (Vaswani et
    al. 2017).

    Args:
        steps: Number of positions.
        width: Number of columns.
    """
    pairs = torch.arange(0, width, 2)
    rate = torch.exp(-math.log(10000.0) * pairs / width)
    angle = torch.arange(steps).unsqueeze(1) * rate
    both = torch.stack([angle.sin(), angle.cos()], -1)
    return both.flatten(1)[:, :width]
