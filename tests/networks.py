"""Networks that use their layers in every way that hooks have to follow."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

STEPS = 6


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


class RecurrentReused(nn.Module):
    """A recurrent layer called at two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0].mean(1) + self.rnn(x[:, 1:3].flip(1))[0].sin().mean(1)


class AttentionReused(nn.Module):
    """Attention called on itself, at two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        long = self.attention(x, x, x)[0]
        short = long[:, :2]
        return x + self.attention(short, short, short)[0].mean(1, keepdim=True)


class ConvolutionReused(nn.Module):
    """A convolution called at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 3, 2, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        short = self.convolution(torch.tanh(self.convolution(x)))
        return short.mean(-1) + self.convolution(x[..., ::2]).mean(-1)


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


class Gain(nn.Module):
    """A layer of one's own, for which there is no rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


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
    """A recurrent module, all of whose outputs the result depends on."""

    def __init__(self, kind: type[nn.RNNBase], packed: str = "", **settings: object):
        super().__init__()
        self.rnn = kind(3, 4, **settings)
        ways = 2 if self.rnn.bidirectional else 1
        self.output = nn.Linear(ways * (self.rnn.proj_size or 4), 2)
        self.packed = packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        given = x if self.rnn.batch_first else x.transpose(0, 1)
        if self.packed:
            order = self.packed != "sorted"
            given = pack_padded_sequence(
                given, lengths.cpu(), self.rnn.batch_first, enforce_sorted=not order
            )
        out, last = self.rnn(given)
        if self.packed:
            out, _ = pad_packed_sequence(out, self.rnn.batch_first, 0.0, STEPS)
        out = out if self.rnn.batch_first else out.transpose(0, 1)
        ends = last if isinstance(last, tuple) else (last,)
        end = sum(h.sin().sum((0, 2)) for h in ends)
        return self.output(torch.tanh(out)) + end[:, None, None]


class LastState(nn.Module):
    """Only the last cell state of an LSTM with given first states counts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        states = (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        _, (_, last) = self.lstm(x.transpose(0, 1), states)
        return last.sum(0)


class States(nn.Module):
    """A recurrent layer with first states, of which all last ones count."""

    def __init__(self, kind: type[nn.RNNBase], packed: bool, **settings: object):
        super().__init__()
        self.rnn = kind(3, 4, **settings)
        self.packed = packed

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> Tensor:
        first = self.rnn.batch_first
        given = x if first else x.transpose(0, 1)
        if self.packed:
            given = pack_padded_sequence(given, lengths.cpu(), first, False)
        begin = [z.transpose(0, 1).contiguous() for z in (h, c)]
        lstm = isinstance(self.rnn, nn.LSTM)
        out, last = self.rnn(given, tuple(begin) if lstm else begin[0])
        if self.packed:
            out, _ = pad_packed_sequence(out, first, 0.0, STEPS)
        ends = last if isinstance(last, tuple) else (last,)
        end = sum(z.sin().sum((0, 2)) for z in ends)
        return (out if first else out.transpose(0, 1)).cos() + end[:, None, None]


class Cells(nn.Module):
    """Single steps of recurrent layers, for which there are no rules."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, last = None, None
        for step in x.unbind(1):
            states = self.lstm(step, states)
            last = self.gru(states[0], last)
        return last


class InPlaceAfterRecurrent(nn.Module):
    """An in-place activation on the transposed view that batch_first returns."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu_(self.gru(x)[0])


class Attention(nn.Module):
    """Attention of several kinds, with or without its weights in the result."""

    def __init__(
        self, kind: str = "self", weights: str = "", mask: str = "", **settings: object
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **settings)
        self.kind, self.weights, self.mask = kind, weights, mask

    def forward(self, x: Tensor, y: Tensor, z: Tensor, padding: Tensor) -> Tensor:
        key = {"self": x, "key-value": y, "cross": y}[self.kind]
        value = {"self": x, "key-value": y, "cross": z}[self.kind]
        given = [x, key, value]
        if self.kind == "key-value":
            given[2] = given[1]
        if not self.attention.batch_first:
            first = given[0].transpose(0, 1)
            second = first if self.kind == "self" else given[1].transpose(0, 1)
            same = self.kind != "cross"
            given = [first, second, second if same else given[2].transpose(0, 1)]
        keywords: dict[str, object] = {}
        if "padding" in self.mask:
            keywords["key_padding_mask"] = padding[:, : key.shape[1]]
        if "causal" in self.mask:
            length = (x.shape[1], key.shape[1])
            keywords["attn_mask"] = torch.ones(
                length, dtype=torch.bool, device=x.device
            ).triu(1)
            keywords["is_causal"] = "hint" in self.mask
        if "heads" in self.mask:  # one of each sample and head
            shape = (len(x), 2, x.shape[1], key.shape[1])
            scores = x[:, :, :2].permute(0, 2, 1)[..., None] * key[:, None, None, :, 0]
            keywords["attn_mask"] = scores.reshape(-1, *shape[2:])
        if "soft" in self.mask:
            keywords["key_padding_mask"] = padding[:, : key.shape[1]].to(x) * -1.5
        if "float" in self.mask:
            length = (x.shape[1], key.shape[1])
            keywords["attn_mask"] = (
                torch.arange(1.0, 1 + length[0] * length[1]).to(x).reshape(length).sin()
            )
        out, shares = self.attention(
            *given,
            need_weights=bool(self.weights),
            average_attn_weights=self.weights != "heads",
            **keywords,
        )
        out = out if self.attention.batch_first else out.transpose(0, 1)
        if self.weights:
            axes = tuple(range(1, shares.ndim))
            out = out + shares.square().sum(axes)[:, None, None]
        return out


class Decoder(nn.Module):
    """A transformer's decoder layer on an encoder layer's memory."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, 3, 10, **settings)
        self.decoder = nn.TransformerDecoderLayer(6, 2, 9, **settings)
        self.output = nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.output(self.decoder(x, self.encoder(y)))


class Transformer(nn.Module):
    """An encoder and a decoder, with norms at their ends."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        settings = {"dropout": 0.0, "batch_first": batch_first}
        encoder = nn.TransformerEncoderLayer(6, 2, 7, **settings)
        decoder = nn.TransformerDecoderLayer(6, 3, 5, **settings)
        norms = nn.LayerNorm(6), nn.LayerNorm(6)
        self.encoder = nn.TransformerEncoder(
            encoder, 1, norms[0], enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(decoder, 2, norms[1])
        self.batch_first = batch_first
        for norm in norms:
            nn.init.normal_(norm.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.batch_first:
            return self.decoder(x, self.encoder(y))
        memory = self.encoder(y.transpose(0, 1))
        return self.decoder(x.transpose(0, 1), memory).transpose(0, 1)


class Bags(nn.Module):
    """Bags of words told by offsets, some of them empty."""

    def __init__(self, mode: str, **settings: object) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(9, 4, mode=mode, **settings)

    def forward(self, anchor: Tensor, weights: Tensor) -> Tensor:
        flat = torch.tensor([1, 2, 4, 5, 4, 3, 2, 8, 8, 0, 1, 1, 6]).to(anchor.device)
        offsets = torch.tensor([0, 4, 4, 6, 9, 10, 12]).to(anchor.device)
        if self.embedding.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([len(flat)])])
        w = weights[: len(flat)] if self.embedding.mode == "sum" else None
        return self.embedding(flat, offsets, w) + anchor


class WeightedBags(nn.Module):
    """Bags of equal size, with a weight per member."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(9, 4, mode="sum")

    def forward(self, index: Tensor, weights: Tensor) -> Tensor:
        return self.embedding(index, per_sample_weights=weights)


class Twice(nn.Module):
    """A bilinear layer on two halves of the input, positions in between."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(2, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x[..., :2].contiguous(), x[..., 2:].contiguous())


class Folded(nn.Module):
    """Slices are folded into the batch axis, and averaged again."""

    def __init__(self) -> None:
        super().__init__()
        self.slice = nn.Sequential(nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3), nn.Tanh())
        self.embed = nn.Linear(3 * 4, 4)
        self.output = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        each = self.embed(self.slice(x.flatten(0, 1)).flatten(1))
        return self.output(each.unflatten(0, (len(x), -1)).mean(1))


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(5, 4), nn.LayerNorm(4), nn.ReLU(inplace=True), nn.Linear(4, 6)
        )
        self.rnn = nn.GRU(6, 3, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(3, 1, 7, 0.0, batch_first=True)
        self.output = nn.Linear(3, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.ones(
            (), dtype=x.dtype, device=x.device, requires_grad=True
        )  # reentrant needs it
        hidden = checkpoint(self.block, x, use_reentrant=self.reentrant)
        hidden = checkpoint(
            lambda h: self.rnn(h)[0], hidden, use_reentrant=self.reentrant
        )
        hidden = checkpoint(self.attention, hidden, use_reentrant=self.reentrant)
        return self.output(hidden)


class Views(nn.Module):
    """Two of the outputs are views of one tensor, a third derives from it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.gain = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.tanh(self.first(x)) * self.gain
        return hidden, hidden.view(len(x), 2, 3), self.head(hidden)


class WithoutBatch(nn.Module):
    """A layer that is called with no batch axis at all."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(3, 2)
        self.output = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x) + self.context(x.new_ones(3))


class Matrix(nn.Module):
    """A layer on a matrix of which the batch is no axis."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3, 2)
        self.gru = nn.GRU(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        context = x.new_ones(4, 3)
        return x * self.gru(context)[0].sum() + self.code(context[0]).sum()


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


class Bare4(Bare):
    """`Bare` behind another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
