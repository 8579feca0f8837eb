"""What one watched batch showed, group by group."""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from spectral_mlops.errors import CaptureError, UnknownNameError
from spectral_mlops.hooks.additivity import gaps, precise
from spectral_mlops.hooks.coverage import CoverageRow, coverage_table
from spectral_mlops.hooks.folding import Folding
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.layer_rows import LoneMatrix
from spectral_mlops.hooks.recorder import Recorder
from spectral_mlops.hooks.replay import OUTSIDE, ByGroup, Replay
from spectral_mlops.hooks.rows import Factored, widen
from spectral_mlops.hooks.watched import Watched
from spectral_mlops.registry import nearest


class Findings:
    """What hooks and replay found, put together.

    Args:
        recorder: Of the calls and what the backward pass brought.
        replay: Of the parameters without rows.
        labelling: The labels that were given first; says which groupings there are.
        folding: Rows of a sample.
    """

    def __init__(
        self, recorder: Recorder, replay: Replay, labelling: Labelling, folding: Folding
    ) -> None:
        self._recorder, self._arrivals = recorder, recorder.arrivals
        self._replay, self._survey = replay, recorder.survey
        self._labelling, self._folding = labelling, folding
        self._one = torch.ones(())

    @property
    def _scale(self) -> Tensor:
        """What a scaler has multiplied the loss by."""
        scale = self._arrivals.scale
        return self._one if scale is None else scale

    def coverage(self) -> list[CoverageRow]:
        """Every parameter of the model and how it is watched."""
        recorder = self._recorder
        reached = {c.site.name for c in self._arrivals.calls if c.rows}
        reached |= self._replay.reached | self._masked()
        switched = self._survey.switched_on() if recorder.begun else {}
        return coverage_table(
            self._survey.sites,
            self._survey.frozen - switched.keys(),
            reached or None,
            self._reasons(),
            self._obstacles() | switched,
            recorder.hidden,
        )

    def _reasons(self) -> dict[str, str]:
        """Why layers or parameters that have a rule are replayed all the same."""
        outside = self._survey.outside or ()
        return self._recorder.unbatched | dict.fromkeys(
            outside, "also used outside of its layer"
        )

    def _obstacles(self) -> dict[str, str]:
        """Replayed and lost parameters, and what stands in the way of them."""
        reached, obstacle = self._replay.reached, self._replay.obstacle
        obstacles = {
            name: "" if name in reached else obstacle
            for name in self._replay.parameters
        }
        arrived = self._arrivals.reaching.keys() - reached if self._anybody() else set()
        for name in arrived & obstacles.keys():
            obstacles[name] = obstacles[name] or OUTSIDE
        for site in self._survey.sites:
            why = self._arrivals.lost.get(site.name)
            if why:
                obstacles |= dict.fromkeys(site.parameters.values(), why)
        watched = {
            name
            for call in self._arrivals.calls
            if call.rows
            for name in call.site.parameters.values()
        }
        for name in arrived - watched - obstacles.keys() - self._masked():
            obstacles[name] = "no call of its layer was seen: it was used by itself"
        return obstacles

    def _anybody(self) -> bool:
        """Whether there was a sample at all: an empty batch's gradients are zero."""
        calls = (call.labelling for call in self._arrivals.calls)
        seen = (self._labelling, *self._replay.labellings, *calls)
        return any(labelling.size for labelling in seen)

    def _masked(self) -> set[str]:
        """Names of the parameters of layers that cannot be seen into."""
        return {
            name
            for groups in self._arrivals.masked.values()
            for gradients in groups.values()
            for name in gradients
        }

    def arrived(self) -> list[Watched]:
        """Return the calls an adjoint reached (a recomputed forward has none)."""
        calls = [call for call in self._arrivals.calls if call.rows]
        if not (calls or self._replay.gradients or self._arrivals.masked):
            learns = any(p.requires_grad for p in self._survey.model.parameters())
            if not (self._labelling.size and learns):  # nothing to reach
                return []
            raise CaptureError(
                "Nothing was captured: run forward and loss.backward() inside the "
                "context before reading results."
            )
        return [c for c in calls if c.site.name not in self._recorder.unbatched]

    def reached_layers(self) -> list[str]:
        """Names of the layers with rows that an adjoint reached, in model order."""
        reached = {
            call.site.layer(part)
            for call in self.arrived()
            for part, rows in call.rows.items()
            if isinstance(rows, Factored)
        }
        return [name for name in self._survey.layers if name in reached]

    def calls_of(self, layer: str) -> list[tuple[Labelling, Factored]]:
        """Return the calls of one layer that an adjoint reached."""
        names = self._survey.layers
        if layer not in names:
            inside = [name for name in names if name.startswith(f"{layer}.")]
            raise UnknownNameError(
                f"No layer '{layer}' is watched; choose from "
                f"{', '.join(inside or names)}.{nearest(layer, names)}"
            )
        found = [
            (call.labelling, self._folding.checked(call, rows))
            for call in self.arrived()
            for part, rows in call.rows.items()
            if call.site.layer(part) == layer and isinstance(rows, Factored)
        ]
        if not found:
            raise CaptureError(
                f"No factors of layer '{layer}': no adjoint reached it, or it has "
                "vectors only; see coverage()."
            )
        return found

    def group_gradients(self, wanted: Set[str] | None = None) -> ByGroup:
        """Return ``{grouping: {group: {parameter: gradient}}}``, scale divided out."""
        result: ByGroup = {
            grouping: {group: {} for group in groups}
            for grouping, groups in self._labelling.groupings.items()
        }
        table = self.coverage()
        by_rows = {row.parameter for row in table if row.method == "rows"}
        replayed = {row.parameter for row in table if row.method == "replay"}
        if wanted is not None:
            by_rows, replayed = by_rows & wanted, replayed & wanted
        for call in self.arrived():
            names = {
                local: name
                for local, name in call.site.parameters.items()
                if name in by_rows
            }
            parts = {call.site.parts[local] for local in names}
            for part, found_rows in call.rows.items():
                if part not in parts:
                    continue
                rows = self._folding.checked(call, found_rows)
                for grouping, groups in call.labelling.groupings.items():
                    for group, samples in groups.items():
                        found = rows.choose(samples).gradients()
                        _add(result, grouping, group, {
                            names[local]: gradient.reshape(
                                call.site.tensors[local].shape
                            )
                            for local, gradient in found.items()
                            if local in names
                        })  # fmt: skip
        for source in (self._replay.gradients, self._arrivals.masked):
            for grouping, by_group in source.items():
                for group, gradients in by_group.items():
                    _add(result, grouping, group, {
                        name: widen(gradient) / self._scale
                        for name, gradient in gradients.items()
                        if name in replayed
                    })  # fmt: skip
        return result

    def second(self) -> ByGroup:
        """Group gradients that a replay found of parameters with rows."""
        return {
            grouping: {
                group: {name: widen(x) / self._scale for name, x in gradients.items()}
                for group, gradients in groups.items()
            }
            for grouping, groups in self._replay.second.items()
        }

    def lone_matrices(self) -> list[LoneMatrix]:
        """Gradients of matrices without factors of their own, by group, for spectra.

        Those that are replayed, and weights that several layers share (the sum).
        Vectors (biases, scales, shifts) have group gradients and no spectrum.
        """
        tied = self._survey.tied
        if not (tied or self._replay.parameters or self._arrivals.masked):
            return []
        wanted = {
            row.parameter
            for row in self.coverage()
            if row.method == "replay" or row.parameter in tied
        }
        seen = (*self._replay.labellings, *(c.labelling for c in self.arrived()))
        labellings = tuple(dict.fromkeys(seen))
        found: dict[str, dict[tuple[str, str], Tensor]] = {}
        for grouping, groups in self.group_gradients(wanted).items():
            for group, gradients in groups.items():
                for name, gradient in gradients.items():
                    if gradient.ndim > 1:
                        matrix = gradient.flatten(1).mT
                        found.setdefault(name, {})[grouping, group] = matrix
        return [LoneMatrix(name, labellings, of) for name, of in found.items()]

    def reaching(self) -> dict[str, Tensor]:
        """What reached each parameter, scale divided out."""
        return {
            name: precise(gradient) / self._scale
            for name, gradient in self._arrivals.reaching.items()
        }

    def gaps(self) -> dict[str, float]:
        """See `hooks.additivity.gaps`."""
        return gaps(self.group_gradients(), self.coverage(), self.reaching())


def _add(
    totals: ByGroup, grouping: str, group: str, gradients: Mapping[str, Tensor]
) -> None:
    """Add some gradients to a group's."""
    sums = totals.setdefault(grouping, {}).setdefault(group, {})
    for name, gradient in gradients.items():
        before = sums.get(name)
        sums[name] = gradient if before is None else before + gradient
