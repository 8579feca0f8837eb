"""``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` as they are, packed sequences included.

The fused kernels hide what happens inside, so it is computed once more, for all
samples and groups together: states by PyTorch's own kernel (one layer and direction
at a time), gates of all time steps at once from the states, and one pass back
through time for the adjoints of the gates. Dropout between layers is drawn again
from the random state before the call.

Every direction of every layer is two maps, three with a projection:

* ``weight_ih_*``: A is the layer's input, Δ the adjoint of the gates before their
  nonlinearity, gates stacked as the weight stacks them (LSTM: input, forget, cell,
  output; GRU: reset, update, new);
* ``weight_hh_*``: A is the state before each step, Δ the same (for the GRU's new
  gate times the reset gate);
* ``weight_hr_*``: A is the LSTM's state before projection, Δ the adjoint after it.

Steps past the end of a shorter sequence are rows of zeros.

cuDNN draws its dropout between layers where nobody sees it. Gradients are then pulled
back by group; of the first layer, which stands below all dropout, A is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from spectral_mlops.hooks.layers.cells import BACK, Adjoints, Run
from spectral_mlops.hooks.rows import Contributions, InputRows, Rows
from spectral_mlops.hooks.rules import Call, RowRule, register_rows

GATES = {
    nn.RNN: ("state",),
    nn.GRU: ("reset", "update", "new"),
    nn.LSTM: ("input", "forget", "cell", "output"),
}


HIDDEN = (
    "cuDNN hides the dropout between layers: gradients by group, and of factors the "
    "first layer's activation alone"
)


@register_rows(nn.RNN, nn.GRU, nn.LSTM)
class RecurrentRule(RowRule):
    """Everything that is watched of a recurrent module's call."""

    together = True

    def parameters(self, layer: Any) -> Mapping[str, str]:
        """Weights are parts by their own name; a bias belongs to its weight's."""
        return {
            name: name.replace("bias", "weight")
            for suffix in _suffixes(layer)
            for name in _names(layer, suffix)
        }

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """Of three axes the one that ``batch_first`` says, or what is packed."""
        x = given["input"]
        if isinstance(x, PackedSequence):
            return int(x.batch_sizes[0])
        return x.shape[0 if layer.batch_first else 1] if x.ndim == 3 else None

    def draws(self, layer: Any) -> bool:
        """Whether there is dropout between layers."""
        return layer.training and layer.dropout > 0 and layer.num_layers > 1

    def hidden(self, layer: Any, given: Mapping[str, Any]) -> str:
        """CuDNN draws the dropout between layers from a state of its own."""
        x = given["input"]
        data = x.data if isinstance(x, PackedSequence) else x
        fused = data.is_cuda and torch.backends.cudnn.enabled
        return HIDDEN if fused and self.draws(layer) else ""

    def known(self, layer: Any, call: Call) -> dict[str, Contributions]:
        """Go up through the first layer."""
        x, lengths = _time_first(layer, call, call.given["input"])
        samples = _Samples(lengths, len(x))
        first = _first_states(layer, call, call.given.get("hx"), x)
        found: dict[str, Contributions] = {}
        for way in _up(layer, call, samples, x, first, [], levels=1):
            for kind, a in (("ih", way.input), ("hh", way.before)):
                name = f"weight_{kind}{way.suffix}"
                shape = (x.shape[1], x.shape[0], len(way.weights[kind]))
                rows = Rows(
                    samples.inside(a).transpose(0, 1),
                    x.new_zeros(()).expand(shape),
                    weight=name,
                    taken=samples.taken(),
                )
                found[name] = InputRows(rows, HIDDEN)
        return found

    def rows(self, layer: Any, call: Call) -> dict[str, Contributions]:
        """Go up through the layers for the states, and down for the adjoints."""
        given = call.given
        x, lengths = _time_first(layer, call, given["input"])
        samples = _Samples(lengths, len(x))
        first = _first_states(layer, call, given.get("hx"), x)
        masks = _dropout_masks(layer, call, given["input"], x.dtype)
        passes = _up(layer, call, samples, x, first, masks)
        output, *ends = _adjoints(layer, call, x)
        ways = 2 if layer.bidirectional else 1
        found: dict[str, Contributions] = {}
        for level in reversed(range(layer.num_layers)):
            down = []
            for way, from_above in enumerate(output.chunk(ways, -1)):
                i = level * ways + way
                run = passes[i].run(samples, from_above, [end[i] for end in ends])
                adjoints = BACK[type(layer)](layer, run)
                found = _parts(layer, passes[i], samples, run, adjoints) | found
                back = adjoints.ih @ run.weights["ih"]
                down.append(samples.reversed(back) if way else back)
            output = torch.stack(down).sum(0)
            if level and masks:
                output = output * masks[level - 1]
        return {name: found[name] for name in self.parameters(layer) if name in found}


@dataclass(frozen=True)
class _Pass:
    """One direction of one layer on its way up, in its own order of time.

    Attributes:
        suffix: Of its parameters' names.
        input: Shape ``[T, N, d_in]``.
        first: Hidden state before the first step, and the LSTM's cell state.
        states: Hidden state after each step, ``[T, N, H]``.
        weights: By ``ih``, ``hh``, ``hr``.
        biases: By ``ih``, ``hh``.
    """

    suffix: str
    input: Tensor
    first: list[Tensor]
    states: Tensor
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    @property
    def before(self) -> Tensor:
        """Hidden state before each step, ``[T, N, H]``."""
        return torch.cat([self.first[0].unsqueeze(0), self.states[:-1]])

    def run(
        self, samples: "_Samples", from_above: Tensor, ends: Sequence[Tensor]
    ) -> Run:
        """Add what comes from above, and by the last states."""
        if self.suffix.endswith("_reverse"):
            from_above = samples.reversed(from_above)
        cell_adjoint = None
        if len(ends) > 1:
            blank = ends[1].new_zeros(len(self.input), *ends[1].shape)
            cell_adjoint = samples.at_end(blank, ends[1])
        return Run(
            input=self.input,
            before=self.before,
            adjoint=samples.at_end(from_above, ends[0]),
            cell=self.first[1] if len(self.first) > 1 else None,
            cell_adjoint=cell_adjoint,
            weights=self.weights,
            biases=self.biases,
        )


def _up(
    layer: Any,
    call: Call,
    samples: "_Samples",
    x: Tensor,
    first: list[Tensor],
    masks: list[Tensor],
    levels: int | None = None,
) -> list[_Pass]:
    """Compute the states of layers and directions, in the order of suffixes.

    Args:
        layer: The module.
        call: Its call.
        samples: Lengths of its sequences.
        x: Its input, ``[T, N, d]``.
        first: First states.
        masks: Dropout between layers; none if empty.
        levels: The number of layers to go up through; all of them by default.
    """
    passes: list[_Pass] = []
    suffixes = iter(_suffixes(layer))
    below = x
    for level in range(layer.num_layers if levels is None else levels):
        after = []
        for way in range(2 if layer.bidirectional else 1):
            suffix, states = next(suffixes), [state[len(passes)] for state in first]
            steps = samples.reversed(below) if way else below
            weights, biases = _weights(layer, call, suffix)
            with torch.backends.cudnn.flags(enabled=False):
                h = _states(layer, steps, states, weights, biases)
            passes.append(_Pass(suffix, steps, states, h, weights, biases))
            after.append(samples.reversed(h) if way else h)
        below = torch.cat(after, -1)
        if level < len(masks):
            below = below * masks[level]
    return passes


class _Samples:
    """The lengths of sequences that lie side by side, ``[T, N, *]``."""

    def __init__(self, lengths: Tensor | None, steps: int) -> None:
        self.lengths, self._steps = lengths, steps

    def reversed(self, x: Tensor) -> Tensor:
        """Turn each sequence around within its own length."""
        if self.lengths is None:
            return x.flip(0)
        time = torch.arange(self._steps, device=x.device).unsqueeze(1)
        back = self.lengths.to(x.device) - 1 - time  # [T, N]
        index = torch.where(back >= 0, back, time)
        return x.gather(0, index.unsqueeze(-1).expand_as(x))

    def at_end(self, x: Tensor, last: Tensor) -> Tensor:
        """Add ``last`` (``[N, H]``) to each sequence's last step."""
        if self.lengths is None:
            return torch.cat([x[:-1], x[-1:] + last])
        end = (self.lengths.to(x.device) - 1).view(1, -1, 1).expand(1, -1, x.shape[-1])
        return x.scatter_add(0, end, last.unsqueeze(0))

    def taken(self) -> Tensor | None:
        """Which steps are inside of their sequence, ``[N, T]``; None if all are."""
        if self.lengths is None:
            return None
        return torch.arange(self._steps) < self.lengths.unsqueeze(1)

    def inside(self, x: Tensor) -> Tensor:
        """Make the steps past the end of each sequence zero."""
        taken = self.taken()
        return x if taken is None else x * taken.T.to(x.device).unsqueeze(-1)


def _suffixes(layer: Any) -> list[str]:
    """Return ``_l0``, ``_l0_reverse``, … in the order of the hidden states."""
    ways = ("", "_reverse") if layer.bidirectional else ("",)
    return [f"_l{i}{way}" for i in range(layer.num_layers) for way in ways]


def _names(layer: Any, suffix: str) -> list[str]:
    kinds = ["weight_ih", "weight_hh"]
    if layer.bias:
        kinds += ["bias_ih", "bias_hh"]
    if layer.proj_size:
        kinds.append("weight_hr")
    return [kind + suffix for kind in kinds]


def _weights(
    layer: Any, call: Call, suffix: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the detached weights and biases of one direction of one layer."""
    own = {
        name: call.as_used(getattr(layer, name).detach())
        for name in _names(layer, suffix)
    }
    kinds = ("ih", "hh", "hr") if layer.proj_size else ("ih", "hh")
    weights = {kind: own[f"weight_{kind}{suffix}"] for kind in kinds}
    biases = {
        kind: own.get(
            f"bias_{kind}{suffix}",
            weights[kind].new_zeros(()).expand(len(weights[kind])),
        )
        for kind in ("ih", "hh")
    }
    return weights, biases


def _time_first(
    layer: Any, call: Call, given: Tensor | PackedSequence
) -> tuple[Tensor, Tensor | None]:
    """Return the input as ``[T, N, d]`` in the order of samples, and lengths."""
    if isinstance(given, PackedSequence):
        x, lengths = pad_packed_sequence(given)
        return call.as_used(x), lengths
    x = call.as_used(given)
    return (x.transpose(0, 1) if layer.batch_first else x), None


def _first_states(layer: Any, call: Call, given: Any, x: Tensor) -> list[Tensor]:
    """Return first hidden states, and the LSTM's cell states.

    Shape ``[layers·directions, N, H]`` each.
    """
    if given is not None:
        states = given if _is_lstm(layer) else (given,)
        return [call.as_used(state) for state in states]
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [layer.proj_size or layer.hidden_size, layer.hidden_size]
    return [x.new_zeros(count, x.shape[1], h) for h in widths[: 1 + _is_lstm(layer)]]


def _is_lstm(layer: Any) -> bool:
    return isinstance(layer, nn.LSTM)


def _adjoints(layer: Any, call: Call, x: Tensor) -> list[Tensor]:
    """Return the adjoints of the output ``[T, N, ·]`` and of the last states.

    A missing one is zero.
    """
    steps, size = x.shape[:2]
    ways = 2 if layer.bidirectional else 1
    widths = [layer.proj_size or layer.hidden_size, layer.hidden_size]
    given: Any = call.input
    output, *last = call.adjoints
    if output is None:
        output = x.new_zeros(steps, size, ways * widths[0])
    elif isinstance(given, PackedSequence):
        output = pad_packed_sequence(given._replace(data=output))[0]
    elif layer.batch_first:
        output = output.transpose(0, 1)
    ends = [
        x.new_zeros(layer.num_layers * ways, size, width) if end is None else end
        for end, width in zip(last, widths, strict=False)
    ]
    return [output, *ends]


def _dropout_masks(
    layer: Any, call: Call, given: Tensor | PackedSequence, dtype: torch.dtype
) -> list[Tensor]:
    """Draw the masks between layers again, ``[T, N, ·]`` each, none if none are.

    The kernel draws them one after another, in the shape of the layers' outputs.
    """
    if call.random is None:
        return []
    width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    data = given.data if isinstance(given, PackedSequence) else given
    leading = data.shape[:-1]
    if layer.batch_first and not isinstance(given, PackedSequence):
        leading = leading[::-1]
    ones = data.new_ones(*leading, width)
    with torch.random.fork_rng(devices=call.random.devices):
        call.random.restore()
        masks = [F.dropout(ones, layer.dropout) for _ in range(layer.num_layers - 1)]
    if isinstance(given, PackedSequence):
        masks = [pad_packed_sequence(given._replace(data=m))[0] for m in masks]
    return [mask.to(dtype) for mask in masks]


def _states(
    layer: Any,
    x: Tensor,
    first: list[Tensor],
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor],
) -> Tensor:
    """States after each step by PyTorch's own kernel, ``[T, N, H]``."""
    flat = [weights["ih"], weights["hh"]]
    if layer.bias:
        flat += [biases["ih"], biases["hh"]]
    if layer.proj_size:
        flat.append(weights["hr"])
    settings = ([w.contiguous() for w in flat], layer.bias, 1, 0.0, False, False, False)
    states = [state.unsqueeze(0).contiguous() for state in first]
    if _is_lstm(layer):
        return torch.lstm(x, states, *settings)[0]
    if isinstance(layer, nn.GRU):
        return torch.gru(x, states[0], *settings)[0]
    kernel = torch.rnn_tanh if layer.nonlinearity == "tanh" else torch.rnn_relu
    return kernel(x, states[0], *settings)[0]


def _parts(
    layer: Any, way: _Pass, samples: "_Samples", run: Run, found: Adjoints
) -> dict[str, Contributions]:
    """Return the maps of one direction of one layer as rows ``[N, T, ·]``."""
    names, h, suffix = GATES[type(layer)], layer.hidden_size, way.suffix
    gates = {gate: slice(k * h, (k + 1) * h) for k, gate in enumerate(names)}
    pairs = {"ih": (run.input, found.ih), "hh": (run.before, found.hh)}
    if found.inner is not None and found.outer is not None:
        pairs["hr"] = (found.inner, found.outer)
    parts: dict[str, Contributions] = {}
    for kind, (a, d) in pairs.items():
        biased = layer.bias and kind != "hr"
        parts[f"weight_{kind}{suffix}"] = Rows(
            samples.inside(a).transpose(0, 1),
            samples.inside(d).transpose(0, 1),
            weight=f"weight_{kind}{suffix}",
            bias=f"bias_{kind}{suffix}" if biased else None,
            sections=gates if kind != "hr" else {},
            taken=samples.taken(),
        )
    return parts
