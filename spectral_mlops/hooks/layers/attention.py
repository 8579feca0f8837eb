"""``nn.MultiheadAttention``: the projections of query, key and value, and its output's.

Self-attention is seen from inside: the adjoint of the stacked projections, and what
the output projection takes, stand in the step's own graph. Where they do not (cross
attention, added keys, checkpoints) the layer's inner products are computed once more
from the projected inputs, for all samples and groups together, with the dropout drawn
again from the random state before the call; one backward pass through them gives the
adjoints of the projections.

The maps are ``in_proj_weight`` (query, key and value stacked as the weight stacks
them; one row serves all three where they are one tensor, and each has rows of its
own, zero elsewhere, where they are not) or ``q_proj_weight``, ``k_proj_weight`` and
``v_proj_weight`` where the widths differ, and ``out_proj``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_mlops.hooks.graph import product_with
from spectral_mlops.hooks.rows import Contributions, Rows, VectorRows
from spectral_mlops.hooks.rules import Call, Inner, RowRule, register_rows

_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@register_rows(nn.MultiheadAttention)
class AttentionRule(RowRule):
    """Rows have the batch axis that the layer's own ``batch_first`` says."""

    saved = ("query", "key", "value")

    def parameters(self, layer: Any) -> Mapping[str, str]:
        """Biases belong to their weight's part."""
        together = layer.in_proj_weight is not None
        weights = ("in_proj_weight",) if together else _SEPARATE
        found = {name: name for name in weights}
        if layer.in_proj_bias is not None:
            found["in_proj_bias"] = "in_proj_weight" if together else "in_proj_bias"
        if layer.bias_k is not None:
            found |= {"bias_k": "added", "bias_v": "added"}
        found["out_proj.weight"] = "out_proj"
        if layer.out_proj.bias is not None:
            found["out_proj.bias"] = "out_proj"
        return found

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """Of three axes the one that ``batch_first`` says."""
        x = given["query"]
        return x.shape[0 if layer.batch_first else 1] if x.ndim == 3 else None

    def draws(self, layer: Any) -> bool:
        """Whether there is dropout on the attention weights."""
        return layer.training and layer.dropout > 0

    def inner(
        self, layer: Any, given: Mapping[str, Any], returned: Sequence[Tensor]
    ) -> Inner | None:
        """Find the projections in the graph: one product with each weight."""
        if layer.in_proj_weight is None or layer.bias_k is not None:
            return None
        inputs = [given[name] for name in self.saved]
        projections, _ = product_with(layer.in_proj_weight, returned, inputs)
        _, context = product_with(layer.out_proj.weight, returned, inputs)
        if projections is None or context is None:
            return None
        return Inner(projections, context.detach())

    def rows(self, layer: Any, call: Call) -> dict[str, Contributions]:
        """Take what was seen inside; else project, attend, and go back."""
        inputs = [call.given[name] for name in self.saved]
        one = inputs[0] is inputs[1] is inputs[2]
        if one and call.inner is not None and call.kept is not None:
            return _seen_inside(layer, call, call.inner, call.kept)
        x_q, x_k, x_v = (_batch_first(layer, call.as_used(x)) for x in inputs)
        weights, biases = _projections(layer, call)
        leaves = [
            F.linear(x, w, b).requires_grad_()
            for x, w, b in zip((x_q, x_k, x_v), weights, biases, strict=True)
        ]
        added = [
            call.as_used(bias.detach()).expand(len(x_q), 1, -1).clone().requires_grad_()
            for bias in (layer.bias_k, layer.bias_v)
            if bias is not None
        ]
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=call.random.devices if call.random else []),
        ):
            if call.random is not None:
                call.random.restore()
            context, shares = _attend(layer, call, leaves, added)
        d_out, d_shares = (*call.adjoints, None)[:2]
        reached, ways = [], []
        if d_out is not None:
            d_out = _batch_first(layer, d_out)
            reached.append(context)
            ways.append(d_out @ call.as_used(layer.out_proj.weight.detach()))
        else:
            d_out = torch.zeros_like(context)
        if d_shares is not None:
            reached.append(shares)
            ways.append(d_shares.reshape(shares.shape))
        found = torch.autograd.grad(reached, [*leaves, *added], ways, allow_unused=True)
        q, k, v, *d_added = (
            torch.zeros_like(leaf) if d is None else d
            for leaf, d in zip((*leaves, *added), found, strict=True)
        )
        parts = _in_parts(layer, inputs, (x_q, x_k, x_v), (q, k, v))
        if d_added:
            parts["added"] = VectorRows(
                {
                    name: d.unsqueeze(1)  # [N, 1, 1, E], as the parameter has it
                    for name, d in zip(("bias_k", "bias_v"), d_added, strict=True)
                }
            )
        parts["out_proj"] = Rows(
            context.detach(),
            d_out,
            weight="out_proj.weight",
            bias=None if layer.out_proj.bias is None else "out_proj.bias",
        )
        return parts


def _seen_inside(
    layer: Any, call: Call, adjoint: Tensor, context: Tensor
) -> dict[str, Contributions]:
    """Rows of self-attention, whose products hold time-first rows ``[L·N, ·]``."""
    x = _batch_first(layer, call.as_used(call.given["query"]))
    context = call.as_used(context)
    adjoint, context = (
        z.reshape(x.shape[1], x.shape[0], z.shape[-1]).transpose(0, 1)
        for z in (adjoint, context)
    )
    d_out = call.adjoints[0]
    heads = _Heads(layer.embed_dim, layer.num_heads)
    return {
        "in_proj_weight": Rows(
            x,
            adjoint,
            weight="in_proj_weight",
            bias=None if layer.in_proj_bias is None else "in_proj_bias",
            sections=heads.sections("qkv"),
        ),
        "out_proj": Rows(
            context,
            torch.zeros_like(context) if d_out is None else _batch_first(layer, d_out),
            weight="out_proj.weight",
            bias=None if layer.out_proj.bias is None else "out_proj.bias",
        ),
    }


def _batch_first(layer: Any, x: Tensor) -> Tensor:
    """Bring ``[L, N, E]`` or ``[N, L, E]`` to the latter."""
    return x if layer.batch_first else x.transpose(0, 1)


def _projections(layer: Any, call: Call) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the three projections' weights and biases."""
    if layer.in_proj_weight is not None:
        weights = list(call.as_used(layer.in_proj_weight.detach()).chunk(3))
    else:
        weights = [call.as_used(getattr(layer, name).detach()) for name in _SEPARATE]
    if layer.in_proj_bias is None:
        return weights, [None, None, None]
    return weights, list(call.as_used(layer.in_proj_bias.detach()).chunk(3))


def _attend(
    layer: Any,
    call: Call,
    projected: list[Tensor],
    added: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return what the output projection takes ``[N, L, E]``, and the weights.

    The weights are empty where the call does not return them: PyTorch then takes
    another kernel, which draws its dropout in another way.
    """
    q, k, v = projected
    if added:
        k, v = torch.cat([k, added[0]], 1), torch.cat([v, added[1]], 1)
    if layer.add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    heads, extra = layer.num_heads, k.shape[1]
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    given = call.given
    need_weights = given.get("need_weights", True)
    padding, causal = given.get("key_padding_mask"), given.get("is_causal", False)
    hint = causal and padding is None and not need_weights
    mask = None if hint else _mask(given.get("attn_mask"), padding, q, extra)
    dropout = layer.dropout if call.training else 0.0
    if not need_weights:
        context = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=hint)
        return context.transpose(1, 2).flatten(2), q.new_empty(0)
    products = (q * math.sqrt(1.0 / q.shape[-1])) @ k.mT
    shares = (products if mask is None else products + mask).softmax(-1)
    shares = F.dropout(shares, dropout) if dropout else shares
    context = (shares @ v).transpose(1, 2).flatten(2)
    average = given.get("average_attn_weights", True)
    return context, shares.mean(1) if average else shares


def _mask(
    attention: Tensor | None, padding: Tensor | None, q: Tensor, keys: int
) -> Tensor | None:
    """Join both masks into one to be added, ``[N or 1, heads or 1, L or 1, keys]``."""
    size, heads = q.shape[:2]
    joined: Tensor | None = None
    for mask, kind in ((attention, "attention"), (padding, "padding")):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = q.new_zeros(mask.shape).masked_fill_(mask, -torch.inf)
        mask = F.pad(mask.to(q.dtype), (0, keys - mask.shape[-1]))
        if kind == "padding":
            mask = mask.view(size, 1, 1, keys)
        elif mask.ndim == 3:
            mask = mask.view(size, heads, *mask.shape[1:])
        joined = mask if joined is None else joined + mask
    return joined


@dataclass(frozen=True)
class _Heads:
    """Where the heads' columns of query, key and value stand in a weight."""

    width: int
    heads: int

    def sections(self, names: str) -> dict[str, slice]:
        """Return ``{"q0": columns, …}`` of the projections stacked in one weight."""
        each = self.width // self.heads
        return {
            f"{name}{head}": slice(
                i * self.width + head * each, i * self.width + (head + 1) * each
            )
            for i, name in enumerate(names)
            for head in range(self.heads)
        }


def _in_parts(
    layer: Any,
    inputs: list[Tensor],
    rows: tuple[Tensor, ...],
    adjoints: tuple[Tensor, ...],
) -> dict[str, Contributions]:
    """Return the maps before the attention."""
    heads = _Heads(layer.embed_dim, layer.num_heads)
    if layer.in_proj_weight is None:
        parts: dict[str, Contributions] = {
            name: Rows(a, d, weight=name, sections=heads.sections(name[0]))
            for name, a, d in zip(_SEPARATE, rows, adjoints, strict=True)
        }
        if layer.in_proj_bias is not None:
            shift = torch.cat([d.sum(1) for d in adjoints], -1)
            parts["in_proj_bias"] = VectorRows({"in_proj_bias": shift})
        return parts
    query, key, value = inputs
    if query is key is value:
        a, d = rows[0], torch.cat(adjoints, -1)
    else:
        spread = [
            F.pad(d, (i * layer.embed_dim, (2 - i) * layer.embed_dim))
            for i, d in enumerate(adjoints)
        ]
        if key is value:  # one row serves both
            rows, spread = rows[:2], [spread[0], spread[1] + spread[2]]
        a, d = torch.cat(rows, 1), torch.cat(spread, 1)
    bias = None if layer.in_proj_bias is None else "in_proj_bias"
    return {
        "in_proj_weight": Rows(
            a, d, weight="in_proj_weight", bias=bias, sections=heads.sections("qkv")
        )
    }
