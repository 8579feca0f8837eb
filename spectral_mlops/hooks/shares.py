"""A batch that several processes passed in parts, put together as if one had.

What a context recorded is plain tensors and labels, per sample: those of the parts
stand one after another, in the order in which they are taken in, and what is summed
over samples (replayed gradients, what reached a parameter's own hook) is added up.
Every reading of the context is then that of the whole batch.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.recorder import Recorder
from spectral_mlops.hooks.replay import ByGroup, Replay
from spectral_mlops.hooks.rows import Contributions, LaterRows
from spectral_mlops.hooks.survey import Site
from spectral_mlops.hooks.watched import Watched


@dataclass(frozen=True, eq=False)
class SharedCall:
    """One call of a layer.

    Attributes:
        layer: Name of the layer.
        labelling: Of its samples.
        rows: What they contribute to the layer's parameters, by part of the layer.
    """

    layer: str
    labelling: Labelling
    rows: dict[str, Contributions]


@dataclass(frozen=True, eq=False)
class Share:
    """All that a context recorded of its part of a batch.

    Attributes:
        calls: Of layers with rows, in order.
        reaching: What reached each parameter's own hook, if that was recorded.
        masked: Group gradients of layers that cannot be seen into.
        replayed: Group gradients of replayed parameters.
        labellings: Of the model's own calls.
        reasons: Why layers are not watched by rows: ``unbatched``, ``lost``,
            ``hidden``.
        obstacle: What stood in the way of the replay.
        coarse: Whether a call was made under autocast.
    """

    calls: list[SharedCall]
    reaching: dict[str, Tensor]
    masked: ByGroup
    replayed: ByGroup
    labellings: list[Labelling]
    reasons: tuple[dict[str, str], dict[str, str], dict[str, str]]
    obstacle: str
    coarse: bool

    @classmethod
    def of(cls, recorder: Recorder, replay: Replay) -> "Share":
        """Take what was recorded."""
        calls = [
            SharedCall(
                call.site.name,
                call.labelling,
                {part: _formed(rows) for part, rows in call.rows.items()},
            )
            for call in recorder.arrivals.calls
            if call.rows
        ]
        return cls(
            calls,
            recorder.arrivals.reaching,
            recorder.arrivals.masked,
            replay.gradients,
            replay.labellings,
            (recorder.unbatched, recorder.arrivals.lost, recorder.hidden),
            replay.obstacle,
            recorder.coarse,
        )

    def add_to(self, recorder: Recorder, replay: Replay, sites: Sequence[Site]) -> None:
        """Lay it behind what another context recorded."""
        held = {site.name: site for site in sites}
        for call in self.calls:
            recorder.arrivals.calls.append(
                Watched(
                    held[call.layer],
                    call.labelling,
                    given={},
                    versions=(),
                    random=None,
                    precision=None,
                    training=True,
                    state=None,
                    recomputed=False,
                    rows=call.rows,
                )
            )
        if recorder.arrivals.reaching:  # it was asked for, and is whole
            for name, gradient in self.reaching.items():
                _add(recorder.arrivals.reaching, name, gradient)
        for totals, parts in (
            (recorder.arrivals.masked, self.masked),
            (replay.gradients, self.replayed),
        ):
            _add_groups(totals, parts)
        replay.labellings += self.labellings
        replay.obstacle = replay.obstacle or self.obstacle
        mine = recorder.unbatched, recorder.arrivals.lost, recorder.hidden
        for own, other in zip(mine, self.reasons, strict=True):
            own.update({name: why for name, why in other.items() if name not in own})
        recorder.coarse = recorder.coarse or self.coarse

    def to_bytes(self) -> bytes:
        """Return it as another process can read it."""
        written = io.BytesIO()
        torch.save(self, written)
        return written.getvalue()

    @classmethod
    def from_bytes(cls, written: bytes, device: torch.device) -> "Share":
        """Read what a process of the same run wrote, onto a device."""
        # Only a process of this very run has written it, moments ago.
        read: Share = torch.load(
            io.BytesIO(written), map_location=device, weights_only=False
        )
        return read


def _formed(rows: Contributions) -> Contributions:
    """Form what is formed on request: functions do not travel."""
    while isinstance(rows, LaterRows):
        rows = rows.formed
    return rows


def _add(sums: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    before = sums.get(name)
    sums[name] = gradient if before is None else before + gradient


def _add_groups(totals: ByGroup, parts: Mapping[str, Any]) -> None:
    for grouping, groups in parts.items():
        for group, gradients in groups.items():
            sums = totals.setdefault(grouping, {}).setdefault(group, {})
            for name, gradient in gradients.items():
                _add(sums, name, gradient)
