"""One batch, everything exact: what the calls of a batch say, group by group."""

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Set
from contextlib import ExitStack
from operator import index
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

import spectral_mlops.hooks.layers  # noqa: F401  (registers the row rules)
from spectral_mlops.errors import CaptureError, InputError, UnknownNameError
from spectral_mlops.hooks.additivity import (
    disagreements,
    gaps,
    precise,
    remainders,
    tolerance,
)
from spectral_mlops.hooks.coverage import CoverageRow, coverage_table
from spectral_mlops.hooks.groups import Groups, Labelling, Labels, read_labelling
from spectral_mlops.hooks.layers.normalization import uses_batch_statistics
from spectral_mlops.hooks.measure import measure
from spectral_mlops.hooks.measured import GATES, LayerRows, LoneMatrix, Wanted
from spectral_mlops.hooks.recorder import Recorder, Watched
from spectral_mlops.hooks.replay import OUTSIDE, ByGroup, Replay
from spectral_mlops.hooks.rows import MAX_BYTES, Contributions, Factored, widen
from spectral_mlops.hooks.shares import Share
from spectral_mlops.hooks.survey import Survey, replayed_parameters, ruled_parameters
from spectral_mlops.records import POOLED, QUANTITIES, Spectrum, check_quantities
from spectral_mlops.registry import nearest

CONV_ROWS = ("positions", "patches")
Kind = TypeVar("Kind", bound=Contributions)


class GroupFactors(NamedTuple):
    """The factors of one group at one layer; ``Aᵀ Δ`` over rows is its gradient.

    Attributes:
        A: Activations, shape ``[n_g, S, d_in]``; of a convolution the unfolded
            patches; of an embedding the indices ``[n_g, S]`` of its one-hot rows.
            Grouped convolutions have a leading axis of blocks.
        adjoint: Shape ``[n_g, S, d_out]``; carries the loss scale ``c``.
        samples: ``n_g``.
    """

    A: Tensor
    adjoint: Tensor
    samples: int


class capture:
    """Watch one batch of a model; the labels say which sample is in which group.

    Args:
        model: Any module. It is neither wrapped nor changed.
        groups: Labels ``[N]`` (list, array, tensor) or ``{grouping: labels}``.
        subjects: The person behind each sample, ``[N]``; each sample is its own
            person if not given.
        targets: What training predicts, ``[N]``.
        batch_dim: Batch axis of the model's inputs and outputs.
        layers: Names of the layers to watch; all if ``None``.
        quantities: Of which spectra are computed.
        reduction: ``"mean"`` (``c = 1/N``) or ``"sum"`` (``c = 1``): how the loss
            reduces over the batch.
        loss_scale: ``c`` itself, where the loss is weighted, masked or accumulated;
            overrides ``reduction``.
        scaler: The ``torch.amp.GradScaler`` that scales the loss; its scale is
            divided out again, read on the device without waiting for it.
        rows_per_sample: ``k``, or ``{layer: k}``, where a layer's leading axis is
            ``k·N``: ``k`` consecutive rows belong to one sample.
        conv_rows: What a convolution's activation spectrum is of: ``"positions"``
            (positions × channels of its input), or ``"patches"`` (the unfolded
            patches that re-form the gradient; large).
        gates: Adjoints and gradients of recurrent and attention layers:
            ``"stacked"`` as the weight stacks gates, projections and heads,
            ``"apart"`` for each of them (``lstm.weight_ih_l0.forget``,
            ``attention.in_proj_weight.q0``), or ``"both"``.
        strict: Refuse a model that has parameters no rule covers, and, when the
            context ends, groups that do not add up to the gradient, or that a replay
            of the batch splits in another way than the rows (an axis that only has
            the size of the batch); costs a backward pass per group.
        missing: What missing labels get: ``"raise"`` or ``"group"``.
        additivity: Record what reaches each parameter's own hook, which
            `additivity_error` needs; costs a copy of the gradients.
        survey: Of the model and ``layers``, where many batches are watched; taken
            anew if the model has changed since.
        lasting: Keep rows so that they may be read after the batch, when inputs
            are written to again; costs a copy of small inputs (see `lasts`).

    Raises:
        InputError: If a setting or label cannot be used.
        CaptureError: If calls and labels do not belong together.

    Example:
        >>> model, x = nn.Linear(3, 2), torch.ones(4, 3)
        >>> with capture(model, ["a", "a", "b", "a"]) as captured:
        ...     model(x).sum().backward()
        >>> captured.group_gradients()["b"]["weight"].tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        *,
        subjects: Labels | None = None,
        targets: Labels | None = None,
        batch_dim: int = 0,
        layers: Iterable[str] | None = None,
        quantities: Iterable[str] = QUANTITIES,
        reduction: str = "mean",
        loss_scale: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        rows_per_sample: int | Mapping[str, int] | None = None,
        conv_rows: str = "positions",
        gates: str = "stacked",
        strict: bool = False,
        missing: str = "raise",
        additivity: bool = True,
        survey: Survey | None = None,
        lasting: bool = False,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise InputError(
                f"reduction='{reduction}': choose 'mean' or 'sum', or pass loss_scale="
            )
        _refuse_other_kinds(model, batch_dim)
        if isinstance(layers, str):
            raise InputError(f"layers='{layers}': give a list of names, ['{layers}'].")
        if loss_scale is not None and not (loss_scale and math.isfinite(loss_scale)):
            raise InputError(f"loss_scale={loss_scale}: a finite number other than 0.")
        if conv_rows not in CONV_ROWS:
            raise InputError(
                f"conv_rows='{conv_rows}': choose {' or '.join(map(repr, CONV_ROWS))}."
            )
        if gates not in GATES:
            raise InputError(
                f"gates='{gates}': choose {' or '.join(map(repr, GATES))}."
            )
        self._quantities = check_quantities(quantities)
        self._batch_dim = batch_dim
        self._reduction, self._loss_scale = reduction, loss_scale
        self._scaler, self._scale = scaler, torch.ones(())
        self._missing, self._strict = missing, strict
        self._additivity, self._gates = additivity, gates
        self._patches = conv_rows == "patches"
        self._first_labelling = read_labelling(groups, subjects, targets, missing)
        if survey is None or survey.model is not model or not survey.holds():
            survey = Survey(model, layers)
        self.survey, self._sites = survey, survey.sites
        self._folded = self._read_folding(rows_per_sample)
        self._everywhere = not isinstance(rows_per_sample, Mapping)
        self.model = model
        whole = max(self._folded.values(), default=1)
        self._replay = Replay(model, replayed_parameters(self._sites), batch_dim, whole)
        if strict and not any(uses_batch_statistics(s.module) for s in self._sites):
            self._replay.checked = ruled_parameters(self._sites)
        self._recorder = Recorder(
            survey,
            self._first_labelling,
            batch_dim,
            whole,
            additivity or strict,
            lasting,
            self._replay,
        )
        self._eager = ExitStack()
        self._entered = False
        self._relabelled = 0
        bare = [r for r in self.coverage() if r.method == "none"] if strict else []
        if bare:
            raise InputError(
                f"strict=True and {len(bare)} parameters are not covered: "
                + "; ".join(f"{row.parameter} ({row.why})" for row in bare)
                + ". Register a rule with register_rows, or pass strict=False."
            )

    # -- attaching ---------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._scaler is not None and self._scaler.is_enabled():
            # The product with one is a copy of the scale that update() leaves alone.
            device = next((p.device for p in self.model.parameters()), None)
            self._scale = self._scaler.scale(torch.ones((), device=device))
            self._recorder.scale = self._scale
        if self._entered:
            raise CaptureError("One context is one batch: make a new capture of each.")
        self._entered = True
        try:
            if "torch._dynamo" in sys.modules:  # compiled code carries no hooks
                self._eager.enter_context(torch.compiler.set_stance("force_eager"))
            self._recorder.attach()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._detach()
        if error is None and self._recorder.reaching:
            self._warn_of_mixing()
            if self._strict:
                self._refuse_gaps()

    def _detach(self) -> None:
        self._recorder.detach()
        self._eager.close()

    def _warn_of_mixing(self) -> None:
        """Say so where batch statistics make rows and losses different things."""
        mixing = [
            site.name for site in self._sites if uses_batch_statistics(site.module)
        ]
        by = {"rows": [], "replay": []}  # type: dict[str, list[str]]
        for row in self.coverage() if mixing else ():
            by.setdefault(row.method, []).append(row.parameter)
        if by["rows"] and by["replay"]:
            warnings.warn(
                f"Batch statistics ('{mixing[0]}') mix the samples of a batch. The "
                "groups of every parameter add up to its gradient, but "
                f"{', '.join(by['replay'])} are split by whose loss a gradient comes "
                "from, the others by whose row.",
                stacklevel=3,
            )

    def _refuse_gaps(self) -> None:
        """Turn a parameter that is not accounted for into an exception.

        Raises:
            CaptureError: Naming the parameters.
        """
        lost = [row for row in self.coverage() if row.method == "none"]
        if lost:
            words = "; ".join(f"{row.parameter} ({row.why})" for row in lost)
            raise CaptureError(f"strict=True and not covered: {words}.")
        allowed = tolerance(self.model, self._recorder.coarse)
        wrong = {k: gap for k, gap in self._gaps().items() if not gap <= allowed}
        if wrong:
            words = "; ".join(f"{name}: {gap:.1e}" for name, gap in wrong.items())
            raise CaptureError(
                f"strict=True and the groups do not add up to the gradient within "
                f"{allowed:.0e} ({words}): part of it flows past the watched calls, "
                "see captured.unattributed()."
            )
        differ: dict[str, float] = {}
        if not any(uses_batch_statistics(site.module) for site in self._sites):
            differ = disagreements(self._group_gradients(), self._second())
        wrong = {k: gap for k, gap in differ.items() if not gap <= 10 * allowed}
        if wrong:
            words = "; ".join(f"{name}: {gap:.1e}" for name, gap in wrong.items())
            raise CaptureError(
                f"strict=True and a replay of the batch splits other groups than the "
                f"rows of the layers ({words}): an axis of "
                f"{self._first_labelling.size} is taken for the batch and is another "
                "one, or the model mixes its samples. Bring the batch to the axis that "
                "batch_dim= names, or try a batch of another size: calls without "
                "batch axis are then seen as such."
            )

    def relabel(
        self,
        groups: Groups,
        subjects: Labels | None = None,
        targets: Labels | None = None,
    ) -> None:
        """Give the labels of the forward calls from here on.

        For several different batches in one context: real and fake ones of a GAN.

        Raises:
            InputError: If the groupings differ from those given first.
        """
        self._relabelled += 1
        number = self._relabelled
        fresh = read_labelling(groups, subjects, targets, self._missing, number)
        if fresh.groupings.keys() != self._first_labelling.groupings.keys():
            raise InputError(
                f"relabel gives the groupings {list(fresh.groupings)}, the context "
                f"began with {list(self._first_labelling.groupings)}: give the same."
            )
        sizes_matter = self._loss_scale is None and self._reduction == "mean"
        if sizes_matter and fresh.size != self._first_labelling.size:
            raise InputError(
                f"relabel gives {fresh.size} samples after "
                f"{self._first_labelling.size}: the mean over different batch sizes "
                "has no one scale, pass loss_scale= to capture."
            )
        self._recorder.labelling = fresh

    def _read_folding(
        self, rows_per_sample: int | Mapping[str, int] | None
    ) -> dict[str, int]:
        if rows_per_sample is None:
            return {}
        names = [site.name for site in self._sites]
        if not isinstance(rows_per_sample, Mapping):
            rows_per_sample = dict.fromkeys(names, index(rows_per_sample))
        for name, k in rows_per_sample.items():
            if name not in names:
                raise UnknownNameError(
                    f"rows_per_sample names '{name}', which holds no parameters; "
                    f"choose from {', '.join(names)}.{nearest(name, names)}"
                )
            if k < 1:
                raise InputError(f"rows_per_sample={k} of '{name}': at least 1.")
        return dict(rows_per_sample)

    # -- reading -----------------------------------------------------------------

    @property
    def labelling(self) -> Labelling:
        """The labels of the forward calls from here on."""
        return self._recorder.labelling

    def group_gradients(self) -> Any:
        """Weight gradients of every group; they add up to what reached ``.grad``.

        At scale ``batch``: they carry the loss scale ``c``. Several backward passes
        in the context add up, as ``.grad`` does.

        Returns:
            ``{group: {parameter name: tensor of the parameter's shape}}``; where
            groupings were given by name ``{grouping: {group: {...}}}``. Parameters
            whose `coverage` is neither ``rows`` nor ``replay`` are not in it.

        Raises:
            CaptureError: Before any backward pass.
        """
        return self._plain(self._group_gradients())

    def gradients_without(self, left_out: Set[str]) -> ByGroup:
        """`group_gradients` of all parameters but some, always by grouping."""
        wanted = {row.parameter for row in self.coverage()} - left_out
        return self._group_gradients(wanted)

    def factors(self, layer: str, max_bytes: int = MAX_BYTES) -> Any:
        """The rows that form each group's gradient at a layer.

        Calls of the same samples stand one after another along ``S`` in call order.
        Gates and projections are stacked as the weight stacks them.

        Args:
            layer: Name of the layer, of recurrent and attention layers with the
                weight's (``lstm.weight_ih_l0``, ``attention.out_proj``).
            max_bytes: Size above which unfolded patches are refused.

        Returns:
            ``{group: GroupFactors}``, the pooled group ``all`` included; where
            groupings were given by name ``{grouping: {group: GroupFactors}}``.

        Raises:
            CaptureError: Before any backward pass, if none reached the layer, or if
                the factors are larger than ``max_bytes``.
            UnknownNameError: If no layer of that name is watched.
        """
        calls = self._factored_calls(layer)
        labellings = list(dict.fromkeys(labelling for labelling, _ in calls))
        result: dict[str, dict[str, GroupFactors]] = {}
        for grouping in self._first_labelling.groupings:
            names = sorted({g for who in labellings for g in who.groupings[grouping]})
            for group in (*names, POOLED):
                pieces = []
                for who in labellings:
                    members = torch.arange(who.size)
                    if group != POOLED:
                        members = who.groupings[grouping].get(group, members[:0])
                    chosen = [
                        rows.choose(members).factors(max_bytes)
                        for labelling, rows in calls
                        if labelling is who
                    ]
                    positions = 2 if chosen[0][1].ndim == 4 else 1
                    pieces.append(
                        tuple(
                            torch.cat(x, positions) for x in zip(*chosen, strict=True)
                        )
                    )
                samples = pieces[0][1].ndim - 3
                a, d = (torch.cat(x, samples) for x in zip(*pieces, strict=True))
                result.setdefault(grouping, {})[group] = GroupFactors(
                    a, d, d.shape[samples]
                )
        return self._plain(result)

    def layer_rows(self, layer: str) -> LayerRows:
        """All rows of one layer, by call, for spectra and nulls (`measure`)."""
        return LayerRows(layer, self._factored_calls(layer))

    def spectra(self, pooled: bool = True, step: int = 0) -> list[Spectrum]:
        """Singular values of every quantity, layer and group of this batch.

        Args:
            pooled: Also for all samples together, as group ``all``.
            step: Written into the records.

        Returns:
            Records, by layer in model order; raw values at scale ``batch``.

        Raises:
            CaptureError: Before any backward pass.
        """
        return measure(*self.measurable(pooled, step))

    def measurable(
        self, pooled: bool = True, step: int = 0
    ) -> tuple[list[LayerRows], list[LoneMatrix], Wanted, frozenset[str]]:
        """What `measure` and `reduce_batch` take, of this batch.

        Raises:
            CaptureError: Before any backward pass.
        """
        layers = [self.layer_rows(name) for name in self.reached_layers()]
        wanted = Wanted(
            quantities=self._quantities,
            pooled=pooled,
            patches=self._patches,
            gates=self._gates,
            loss_scale=self.loss_scale,
            step=step,
        )
        gradients = "gradient" in self._quantities
        lone = self._lone_matrices() if gradients else []
        elsewhere = self.survey.gradient_elsewhere.union(
            *(self.survey.holders[name] for name in self._replay.parameters)
        )
        return layers, lone, wanted, elsewhere

    def share(self) -> Share:
        """What this context recorded, for one on another process to `take_in`."""
        return Share.of(self._recorder, self._replay)

    def take_in(self, share: Share) -> None:
        """Add samples of the same batch that another process passed (`hooks.shares`).

        Needs ``loss_scale=``, the mean over a part is not that over the batch, and
        ``subjects=``, without which samples are numbered within their part.
        """
        share.add_to(self._recorder, self._replay, self._sites)

    @property
    def lasts(self) -> bool:
        """Whether nobody else can write to what was kept of this batch."""
        return not self._recorder.exposed

    def unchanged(self) -> bool:
        """Whether nobody wrote to what was kept of this batch."""
        return all(call.unchanged() for call in self._recorder.calls)

    def _lone_matrices(self) -> list[LoneMatrix]:
        """Gradients of matrices without factors of their own, by group, for spectra.

        Those that are replayed, and weights that several layers share (the sum).
        Vectors (biases, scales, shifts) have group gradients and no spectrum.
        """
        tied = self.survey.tied
        if not (tied or self._replay.parameters or self._recorder.masked):
            return []
        wanted = {
            row.parameter
            for row in self.coverage()
            if row.method == "replay" or row.parameter in tied
        }
        seen = (*self._replay.labellings, *(c.labelling for c in self._arrived()))
        labellings = tuple(dict.fromkeys(seen))
        found: dict[str, dict[tuple[str, str], Tensor]] = {}
        for grouping, groups in self._group_gradients(wanted).items():
            for group, gradients in groups.items():
                for name, gradient in gradients.items():
                    if gradient.ndim > 1:
                        matrix = gradient.flatten(1).mT
                        found.setdefault(name, {})[grouping, group] = matrix
        return [LoneMatrix(name, labellings, of) for name, of in found.items()]

    def coverage(self) -> list[CoverageRow]:
        """Every parameter of the model and how it is watched."""
        recorder = self._recorder
        reached = {c.site.name for c in recorder.calls if c.rows}
        reached |= self._replay.reached | self._masked()
        switched = self.survey.switched_on() if self._entered else {}
        return coverage_table(
            self._sites,
            self.survey.frozen - switched.keys(),
            reached or None,
            self._reasons(),
            self._obstacles() | switched,
            recorder.hidden,
        )

    def additivity_error(self) -> dict[str, float]:
        """Relative gap between the groups' sum and what reached each parameter.

        See `hooks.additivity`: before any all-reduce, independent of an earlier
        ``.grad``, the largest over groupings.

        Returns:
            ``{parameter name: gap}``; 0 where both are zero.

        Raises:
            CaptureError: Before any backward pass, or if additivity was not asked
                for.
        """
        if not self._additivity:
            raise CaptureError("This capture was made with additivity=False.")
        return self._gaps()

    def unattributed(self) -> dict[str, Tensor]:
        """What reached each parameter and belongs to no group.

        Weight penalties, losses on tensors that the model did not return: the part
        of the gradient that does not flow through watched calls. It is never spread
        over groups.

        Returns:
            ``{parameter name: tensor of its shape}``, at scale ``batch``, of the
            parameters whose `additivity_error` is above the tolerance of their type
            (and of those that are not covered, all that reached them).

        Raises:
            CaptureError: See `additivity_error`.
        """
        gap = self.additivity_error()
        allowed = tolerance(self.model, self._recorder.coarse)
        uncovered = {r.parameter for r in self.coverage() if r.method == "none"}
        rest = remainders(self._group_gradients(), self._reaching())
        return {
            name: remainder
            for name, remainder in rest.items()
            if name in uncovered or not gap.get(name, 0.0) <= allowed
        }

    @property
    def loss_scale(self) -> float:
        """``c`` in ``L = c · Σ ℓ_i``."""
        if self._loss_scale is not None:
            return self._loss_scale
        size = self._first_labelling.size
        return 1.0 if self._reduction == "sum" or not size else 1.0 / size

    def reached_layers(self) -> list[str]:
        """Names of the layers with rows that an adjoint reached, in model order."""
        reached = {
            call.site.layer(part)
            for call in self._arrived()
            for part, rows in call.rows.items()
            if isinstance(rows, Factored)
        }
        return [name for name in self.survey.layers if name in reached]

    # -- inside ------------------------------------------------------------------

    def _arrived(self) -> list[Watched]:
        """Return the calls an adjoint reached (a recomputed forward has none)."""
        recorder = self._recorder
        calls = [call for call in recorder.calls if call.rows]
        if not (calls or self._replay.gradients or recorder.masked):
            learns = any(p.requires_grad for p in self.model.parameters())
            if not (self._first_labelling.size and learns):  # nothing to reach
                return []
            raise CaptureError(
                "Nothing was captured: run forward and loss.backward() inside the "
                "context before reading results."
            )
        return [c for c in calls if c.site.name not in recorder.unbatched]

    def _group_gradients(self, wanted: Set[str] | None = None) -> ByGroup:
        """Return ``{grouping: {group: {parameter: gradient}}}``, scale divided out."""
        result: ByGroup = {
            grouping: {group: {} for group in groups}
            for grouping, groups in self._first_labelling.groupings.items()
        }
        table = self.coverage()
        by_rows = {row.parameter for row in table if row.method == "rows"}
        replayed = {row.parameter for row in table if row.method == "replay"}
        if wanted is not None:
            by_rows, replayed = by_rows & wanted, replayed & wanted
        for call in self._arrived():
            names = {
                local: name
                for local, name in call.site.parameters.items()
                if name in by_rows
            }
            parts = {call.site.parts[local] for local in names}
            for part, found_rows in call.rows.items():
                if part not in parts:
                    continue
                rows = self._checked(call, found_rows)
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
        for source in (self._replay.gradients, self._recorder.masked):
            for grouping, by_group in source.items():
                for group, gradients in by_group.items():
                    _add(result, grouping, group, {
                        name: widen(gradient) / self._scale
                        for name, gradient in gradients.items()
                        if name in replayed
                    })  # fmt: skip
        return result

    def _factored_calls(self, layer: str) -> list[tuple[Labelling, Factored]]:
        """Return the calls of one layer that an adjoint reached."""
        names = self.survey.layers
        if layer not in names:
            inside = [name for name in names if name.startswith(f"{layer}.")]
            raise UnknownNameError(
                f"No layer '{layer}' is watched; choose from "
                f"{', '.join(inside or names)}.{nearest(layer, names)}"
            )
        found = [
            (call.labelling, self._checked(call, rows))
            for call in self._arrived()
            for part, rows in call.rows.items()
            if call.site.layer(part) == layer and isinstance(rows, Factored)
        ]
        if not found:
            raise CaptureError(
                f"No factors of layer '{layer}': no adjoint reached it, or it has "
                "vectors only; see coverage()."
            )
        return found

    def _second(self) -> ByGroup:
        """Group gradients that a replay found of parameters with rows."""
        return {
            grouping: {
                group: {name: widen(x) / self._scale for name, x in gradients.items()}
                for group, gradients in groups.items()
            }
            for grouping, groups in self._replay.second.items()
        }

    def _gaps(self) -> dict[str, float]:
        return gaps(self._group_gradients(), self.coverage(), self._reaching())

    def _reaching(self) -> dict[str, Tensor]:
        return {
            name: precise(gradient) / self._scale
            for name, gradient in self._recorder.reaching.items()
        }

    def _reasons(self) -> dict[str, str]:
        """Why layers or parameters that have a rule are replayed all the same."""
        outside = self.survey.outside or ()
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
        arrived = self._recorder.reaching.keys() - reached
        for name in arrived & obstacles.keys():
            obstacles[name] = obstacles[name] or OUTSIDE
        for site in self._sites:
            why = self._recorder.lost.get(site.name)
            if why:
                obstacles |= dict.fromkeys(site.parameters.values(), why)
        watched = {
            name
            for call in self._recorder.calls
            if call.rows
            for name in call.site.parameters.values()
        }
        for name in arrived - watched - obstacles.keys() - self._masked():
            obstacles[name] = "no call of its layer was seen: it was used by itself"
        return obstacles

    def _masked(self) -> set[str]:
        """Names of the parameters of layers that cannot be seen into."""
        return {
            name
            for groups in self._recorder.masked.values()
            for gradients in groups.values()
            for name in gradients
        }

    def _checked(self, call: Watched, rows: Kind) -> Kind:
        """Return one call's rows, one per sample.

        Raises:
            CaptureError: If they do not fit the labels, or changed since.
        """
        name, size = call.site.name, call.labelling.size
        if not call.unchanged():
            raise CaptureError(
                f"The input of layer '{name}' was changed in place after the batch, or "
                "the gradient given to it; read results before overwriting it."
            )
        k = self._folded.get(name, 1)
        if len(rows) == k * size and k > 1:
            return rows.fold(k)
        if len(rows) == size and (k == 1 or self._everywhere):
            return rows
        raise CaptureError(
            f"Layer '{name}' has {len(rows)} rows on its batch axis and there are "
            f"{size} samples"
            + (f" times rows_per_sample={k}" if k > 1 else "")
            + ": if k consecutive rows belong to each sample, pass "
            f"rows_per_sample={{'{name}': k}}; if its batch axis is another than the "
            f"model's (batch_dim={self._batch_dim}), bring the batch to that axis "
            "before the layer."
        )

    def _plain(self, result: dict[str, Any]) -> Any:
        """Drop the grouping level where bare labels were given."""
        if self._first_labelling.named:
            return result
        return next(iter(result.values()))


def _refuse_other_kinds(model: object, batch_dim: object) -> None:
    """Refuse what is no model and no axis.

    Raises:
        InputError: Naming what was given.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}, not a torch.nn.Module.")
    if not isinstance(batch_dim, int) or batch_dim < 0:
        raise InputError(f"batch_dim={batch_dim}: count axes from 0.")


def _add(
    totals: ByGroup, grouping: str, group: str, gradients: Mapping[str, Tensor]
) -> None:
    """Add some gradients to a group's."""
    sums = totals.setdefault(grouping, {}).setdefault(group, {})
    for name, gradient in gradients.items():
        before = sums.get(name)
        sums[name] = gradient if before is None else before + gradient
