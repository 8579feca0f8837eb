"""One batch, everything exact: what the calls of a batch say, group by group."""

import math
import sys
from collections.abc import Iterable, Mapping, Set
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

import spectral_mlops.hooks.layers  # noqa: F401  (registers the row rules)
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.hooks.additivity import remainders, tolerance
from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.factors import group_factors
from spectral_mlops.hooks.findings import Findings
from spectral_mlops.hooks.folding import read_folding
from spectral_mlops.hooks.groups import Groups, Labelling, Labels, read_labelling
from spectral_mlops.hooks.layer_rows import GATES, LayerRows, Measurable, Wanted
from spectral_mlops.hooks.layers.normalization import uses_batch_statistics
from spectral_mlops.hooks.measure import measure
from spectral_mlops.hooks.recorder import Recorder
from spectral_mlops.hooks.replay import ByGroup, Replay
from spectral_mlops.hooks.rows import MAX_BYTES
from spectral_mlops.hooks.shares import Share
from spectral_mlops.hooks.strict import refuse_gaps, refuse_uncovered, warn_of_mixing
from spectral_mlops.hooks.survey import Survey, replayed_parameters, ruled_parameters
from spectral_mlops.records import QUANTITIES, Spectrum, check_quantities

CONV_ROWS = ("positions", "patches")


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
        self._reduction, self._loss_scale = reduction, loss_scale
        self._scaler = scaler
        self._missing, self._strict = missing, strict
        self._additivity, self._gates = additivity, gates
        self._patches = conv_rows == "patches"
        self._first_labelling = read_labelling(groups, subjects, targets, missing)
        if survey is None or survey.model is not model or not survey.holds():
            survey = Survey(model, layers)
        self.survey, self._sites = survey, survey.sites
        folding = read_folding(rows_per_sample, self._sites, batch_dim)
        self.model = model
        whole = folding.most
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
        self._relabelled = 0
        self._findings = Findings(
            self._recorder, self._replay, self._first_labelling, folding
        )
        if strict:
            refuse_uncovered(self.coverage())

    # -- attaching ---------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._scaler is not None and self._scaler.is_enabled():
            # The product with one is a copy of the scale that update() leaves alone.
            device = next((p.device for p in self.model.parameters()), None)
            one = torch.ones((), device=device)
            self._recorder.arrivals.scale = self._scaler.scale(one)
        if self._recorder.begun:
            raise CaptureError("One context is one batch: make a new capture of each.")
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
        if error is None and self._recorder.arrivals.reaching:
            warn_of_mixing(self._sites, self._findings)
            if self._strict:
                refuse_gaps(
                    self.survey,
                    self._findings,
                    self._first_labelling.size,
                    self._recorder.coarse,
                )

    def _detach(self) -> None:
        self._recorder.detach()
        self._eager.close()

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
        return self._plain(self._findings.group_gradients())

    def gradients_without(self, left_out: Set[str]) -> ByGroup:
        """`group_gradients` of all parameters but some, always by grouping."""
        wanted = {row.parameter for row in self.coverage()} - left_out
        return self._findings.group_gradients(wanted)

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
        calls = self._findings.calls_of(layer)
        groupings = self._first_labelling.groupings
        return self._plain(group_factors(calls, groupings, max_bytes))

    def layer_rows(self, layer: str) -> LayerRows:
        """All rows of one layer, by call, for spectra and nulls (`measure`)."""
        return LayerRows(layer, self._findings.calls_of(layer))

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
        return measure(self.measurable(pooled, step))

    def measurable(self, pooled: bool = True, step: int = 0) -> Measurable:
        """What `measure` and `reduce_batches` take, of this batch.

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
        lone = self._findings.lone_matrices() if gradients else []
        elsewhere = self.survey.gradient_elsewhere.union(
            *(self.survey.holders[name] for name in self._replay.parameters)
        )
        return Measurable(layers, lone, wanted, elsewhere)

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
        return not self._recorder.inputs.exposed

    def unchanged(self) -> bool:
        """Whether nobody wrote to what was kept of this batch."""
        return all(call.unchanged() for call in self._recorder.arrivals.calls)

    def coverage(self) -> list[CoverageRow]:
        """Every parameter of the model and how it is watched."""
        return self._findings.coverage()

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
        return self._findings.gaps()

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
        rest = remainders(self._findings.group_gradients(), self._findings.reaching())
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
        return self._findings.reached_layers()

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
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is scripted or traced (torch.jit), and takes no hooks: watch the "
            "module that it was made from."
        )
    if not isinstance(batch_dim, int) or batch_dim < 0:
        raise InputError(f"batch_dim={batch_dim}: count axes from 0.")
