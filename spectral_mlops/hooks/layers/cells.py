"""Back through time: adjoints of the gates of one recurrent direction.

Everything that does not wait for the step after it is computed for all steps at
once; what remains per step is a handful of products.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Run:
    """One direction of one layer over all samples, in its own order of time.

    Attributes:
        input: Shape ``[T, N, d_in]``.
        before: State before each step, ``[T, N, H]`` (projected, if so).
        adjoint: Of the state after each step, from outside, ``[T, N, H]``.
        cell: The LSTM's first cell state, ``[N, H]``.
        cell_adjoint: Of the cell state after each step, ``[T, N, H]``.
        weights: Of this direction and layer, by ``ih``, ``hh``, ``hr``.
        biases: Of ``ih`` and ``hh``, zero where there are none.
    """

    input: Tensor
    before: Tensor
    adjoint: Tensor
    cell: Tensor | None
    cell_adjoint: Tensor | None
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    def gates(self, which: str, rows: Tensor) -> Tensor:
        """Return one half of the gates' input for all steps at once."""
        return F.linear(rows, self.weights[which], self.biases[which])


@dataclass(frozen=True)
class Adjoints:
    """Adjoints ``[T, N, gates·H]`` of both halves, and the projection's rows."""

    ih: Tensor
    hh: Tensor
    inner: Tensor | None = None
    outer: Tensor | None = None


def back_rnn(layer: Any, run: Run) -> Adjoints:
    """``Δ_t = dh_t · φ'(z_t)``."""
    z = run.gates("ih", run.input) + run.gates("hh", run.before)
    if layer.nonlinearity == "tanh":
        slope = 1 - z.tanh().square()
    else:
        slope = (z > 0).to(z.dtype)
    found = torch.empty_like(z)
    carry = torch.zeros_like(run.adjoint[0])
    for t in reversed(range(len(z))):
        torch.mul(run.adjoint[t] + carry, slope[t], out=found[t])
        carry = found[t] @ run.weights["hh"]
    return Adjoints(found, found)


def back_gru(layer: Any, run: Run) -> Adjoints:
    """``h_t = n + u·(h_{t-1} − n)``, ``n = tanh(x_n + r·h_n)``."""
    x, h = run.gates("ih", run.input), run.gates("hh", run.before)
    x_r, x_u, x_n = x.chunk(3, -1)
    h_r, h_u, h_n = h.chunk(3, -1)
    r, u = torch.sigmoid(x_r + h_r), torch.sigmoid(x_u + h_u)
    n = torch.tanh(x_n + r * h_n)
    to_n = (1 - u) * (1 - n.square())
    slopes = torch.stack(  # dh to the three gates of ih, and the new gate of hh
        [to_n * h_n * r * (1 - r), (run.before - n) * u * (1 - u), to_n, to_n * r]
    ).transpose(0, 1)  # [T, 4, N, H]
    found = torch.empty_like(slopes)
    carry = torch.zeros_like(run.adjoint[0])
    to_state = run.weights["hh"].unflatten(0, (3, -1))
    for t in reversed(range(len(x))):
        dh = run.adjoint[t] + carry
        torch.mul(slopes[t], dh, out=found[t])
        r_t, u_t, _, n_t = found[t]
        carry = dh * u[t] + r_t @ to_state[0] + u_t @ to_state[1] + n_t @ to_state[2]
    r_all, u_all, n_all, n_hh = found.unbind(1)
    return Adjoints(
        torch.cat([r_all, u_all, n_all], -1), torch.cat([r_all, u_all, n_hh], -1)
    )


def back_lstm(layer: Any, run: Run) -> Adjoints:
    """``c_t = f·c_{t-1} + i·g``, ``m_t = o·tanh(c_t)``; ``h_t`` is that, projected."""
    assert run.cell is not None
    assert run.cell_adjoint is not None
    z = run.gates("ih", run.input) + run.gates("hh", run.before)
    i, f, g, o = z.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    step, cells = i * g, [run.cell]
    for t in range(len(z)):
        cells.append(torch.addcmul(step[t], f[t], cells[-1]))
    c = torch.stack(cells)
    c_before, tanh_c = c[:-1], c[1:].tanh()
    to_c = o * (1 - tanh_c.square())
    slopes = torch.stack(  # dc to the first three gates, dm to the fourth
        [
            g * i * (1 - i),
            c_before * f * (1 - f),
            i * (1 - g.square()),
            tanh_c * o * (1 - o),
        ],
        2,
    )  # [T, N, 4, H]
    found = torch.empty_like(slopes)
    projection = run.weights.get("hr")
    outer: list[Tensor] = []
    carry_h, carry_c = torch.zeros_like(run.adjoint[0]), torch.zeros_like(run.cell)
    for t in reversed(range(len(z))):
        dm = dh = run.adjoint[t] + carry_h
        if projection is not None:
            outer.append(dh)
            dm = dh @ projection
        dc = torch.addcmul(run.cell_adjoint[t] + carry_c, dm, to_c[t])
        torch.mul(slopes[t, :, :3], dc.unsqueeze(1), out=found[t, :, :3])
        torch.mul(slopes[t, :, 3], dm, out=found[t, :, 3])
        carry_h = found[t].flatten(1) @ run.weights["hh"]
        carry_c = dc * f[t]
    gates = found.flatten(2)
    if projection is None:
        return Adjoints(gates, gates)
    return Adjoints(gates, gates, o * tanh_c, torch.stack(outer[::-1]))


BACK = {nn.RNN: back_rnn, nn.GRU: back_gru, nn.LSTM: back_lstm}
"""By the exact type of the module."""
