"""One batch, everything exact: what the calls of a batch say, group by group."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

import spectral_mlops.hooks.layers  # noqa: F401  (registers the row rules)
from spectral_mlops.errors import CaptureError, InputError, UnknownNameError
from spectral_mlops.hooks.additivity import additivity
from spectral_mlops.hooks.coverage import (
    CoverageRow,
    clean_name,
    coverage_table,
    find_sites,
    replayed_parameters,
)
from spectral_mlops.hooks.groups import Groups, Labelling, Labels, read_labelling
from spectral_mlops.hooks.measure import (
    GroupGradient,
    LayerRows,
    measure,
    measure_gradients,
)
from spectral_mlops.hooks.recorder import Call, Recorder
from spectral_mlops.hooks.replay import OUTSIDE, Replay
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.records import POOLED, QUANTITIES, Spectrum, check_quantities
from spectral_mlops.registry import nearest

Gradients = dict[str, dict[str, Tensor]]


class GroupFactors(NamedTuple):
    """The factors of one group at one layer; ``Aᵀ Δ`` over rows is its gradient.

    Attributes:
        A: Activations, shape ``[n_g, S, d_in]``.
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
        strict: Refuse a model that has parameters no rule covers.
        missing: What missing labels get: ``"raise"`` or ``"group"``.
        additivity: Record what reaches each parameter's own hook, which
            `additivity_error` needs; costs a copy of the gradients.

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
        strict: bool = False,
        missing: str = "raise",
        additivity: bool = True,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise InputError(
                f"reduction='{reduction}': choose 'mean' or 'sum', or pass loss_scale="
            )
        if batch_dim < 0:
            raise InputError(f"batch_dim={batch_dim}: count axes from 0.")
        self._quantities = check_quantities(quantities)
        self._batch_dim = batch_dim
        self._reduction, self._loss_scale = reduction, loss_scale
        self._scaler, self._scale = scaler, torch.ones(())
        self._missing = missing
        self._additivity = additivity
        self._first_labelling = read_labelling(groups, subjects, targets, missing)
        self._sites = find_sites(model, None if layers is None else frozenset(layers))
        self._folded = self._read_folding(rows_per_sample)
        self._parameters = model.parameters
        self._frozen = frozenset(
            clean_name(name)
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        )
        self._replay = Replay(replayed_parameters(self._sites), batch_dim)
        self._recorder = Recorder(
            model,
            self._sites,
            self._first_labelling,
            batch_dim,
            additivity,
            self._replay,
        )
        bare = [row for row in self.coverage() if row.method == "none"]
        if strict and bare:
            raise InputError(
                f"strict=True and {len(bare)} parameters are not covered: "
                + "; ".join(f"{row.parameter} ({row.why})" for row in bare)
                + ". Register a rule with register_rows, or pass strict=False."
            )

    # -- attaching ---------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._scaler is not None and self._scaler.is_enabled():
            # The product with one is a copy of the scale that update() leaves alone.
            device = next((p.device for p in self._parameters()), None)
            self._scale = self._scaler.scale(torch.ones((), device=device))
        try:
            self._recorder.attach()
        except BaseException:
            self._recorder.detach()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recorder.detach()

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
        fresh = read_labelling(groups, subjects, targets, self._missing)
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
        if isinstance(rows_per_sample, int):
            rows_per_sample = dict.fromkeys(names, rows_per_sample)
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
        calls = self._arrived()
        table = self.coverage()
        exact = {row.parameter for row in table if row.method == "rows"}
        result: dict[str, Gradients] = {}
        for call in calls:
            rows = self._rows_of(call)
            for grouping, groups in call.labelling.groupings.items():
                for group, samples in groups.items():
                    found = call.site.rule.gradients(  # type: ignore[union-attr]
                        call.site.module, rows.choose(samples)
                    )
                    totals = result.setdefault(grouping, {}).setdefault(group, {})
                    for local, gradient in found.items():
                        name = call.site.parameters[local]
                        if name in exact:
                            before = totals.get(name)
                            totals[name] = (
                                gradient if before is None else before + gradient
                            )
        replayed = {row.parameter for row in table if row.method == "replay"}
        for grouping, by_group in self._replay.gradients.items():
            for group, gradients in by_group.items():
                exactly = {
                    name: _widen(gradient) / self._scale
                    for name, gradient in gradients.items()
                    if name in replayed
                }
                result.setdefault(grouping, {}).setdefault(group, {}).update(exactly)
        return self._plain(result)

    def factors(self, layer: str) -> Any:
        """The rows that form each group's gradient at a layer.

        Calls of the same samples stand one after another along ``S`` in call order.

        Args:
            layer: Name of the layer.

        Returns:
            ``{group: GroupFactors}``, the pooled group ``all`` included; where
            groupings were given by name ``{grouping: {group: GroupFactors}}``.

        Raises:
            CaptureError: Before any backward pass, or if none reached the layer.
            UnknownNameError: If no layer of that name is watched.
        """
        result: dict[str, dict[str, GroupFactors]] = {}
        batches = self.layer_rows(layer).batches
        for grouping in self._first_labelling.groupings:
            names = sorted(
                {g for labels, _ in batches for g in labels.groupings[grouping]}
            )
            for group in (*names, POOLED):
                chosen = []
                for labelling, rows in batches:
                    everyone = torch.arange(labelling.size)
                    members = labelling.groupings[grouping].get(group, everyone[:0])
                    chosen.append(rows.choose(everyone if group == POOLED else members))
                a = torch.cat([rows.activation for rows in chosen])
                d = torch.cat([rows.adjoint for rows in chosen])
                result.setdefault(grouping, {})[group] = GroupFactors(a, d, len(a))
        return self._plain(result)

    def layer_rows(self, layer: str) -> LayerRows:
        """All rows of one layer, by batch, for spectra and nulls (`measure`)."""
        watched = {site.name: site for site in self._sites if site.rule is not None}
        if layer not in watched:
            raise UnknownNameError(
                f"No layer '{layer}' is watched; choose from {', '.join(watched)}."
                f"{nearest(layer, list(watched))}"
            )
        by_batch: dict[int, tuple[Labelling, list[Rows]]] = {}
        for call in self._arrived():
            if call.site.name == layer:
                entry = by_batch.setdefault(id(call.labelling), (call.labelling, []))
                entry[1].append(self._rows_of(call))
        if not by_batch:
            raise CaptureError(f"No adjoint reached layer '{layer}'; see coverage().")
        return LayerRows(
            layer, [(who, _stack(rows)) for who, rows in by_batch.values()]
        )

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
        layers = [self.layer_rows(name) for name in self.reached_layers()]
        c = self.loss_scale
        found = measure(layers, self._quantities, c, pooled, step)
        if "gradient" in self._quantities:
            found += measure_gradients(self.replayed_gradients(), c, pooled, step)
        return found

    def replayed_gradients(self) -> list[GroupGradient]:
        """Gradients of the replayed matrices, by group, for spectra.

        Vectors (biases, scales, shifts) have group gradients and no spectrum.
        """
        exact = {row.parameter for row in self.coverage() if row.method == "replay"}
        return [
            GroupGradient(
                parameter=name,
                grouping=grouping,
                group=group,
                matrix=(_widen(gradient) / self._scale).flatten(1).mT,
                samples=len(people),
                subjects=frozenset(people),
            )
            for grouping, groups in self._replay.gradients.items()
            for group, gradients in groups.items()
            for people in [
                [
                    person
                    for who in self._replay.labellings
                    for person in who.people(grouping, group)
                ]
            ]
            for name, gradient in gradients.items()
            if name in exact and gradient.ndim > 1
        ]

    def coverage(self) -> list[CoverageRow]:
        """Every parameter of the model and how it is watched."""
        reached = {c.site.name for c in self._recorder.calls if c.adjoint is not None}
        reached |= self._replay.reached
        return coverage_table(
            self._sites,
            self._frozen,
            reached or None,
            self._recorder.unbatched,
            self._obstacles(),
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
        found = self.group_gradients()
        groupings = found if self._first_labelling.named else {"": found}
        reaching = {
            name: gradient.double() / self._scale
            for name, gradient in self._recorder.reaching.items()
        }
        return additivity(groupings, self.coverage(), reaching)

    @property
    def loss_scale(self) -> float:
        """``c`` in ``L = c · Σ ℓ_i``."""
        if self._loss_scale is not None:
            return self._loss_scale
        return 1.0 if self._reduction == "sum" else 1.0 / self._first_labelling.size

    def reached_layers(self) -> list[str]:
        """Names of the layers that an adjoint reached, in model order."""
        self._arrived()
        reached = {
            call.site.name for call in self._recorder.calls if call.adjoint is not None
        }
        lone = reached & self._recorder.unbatched
        return [s.name for s in self._sites if s.name in reached - lone]

    # -- inside ------------------------------------------------------------------

    def _arrived(self) -> list[Call]:
        """Return the calls an adjoint reached (a recomputed forward has none)."""
        calls = [call for call in self._recorder.calls if call.adjoint is not None]
        if not (calls or self._replay.gradients):
            raise CaptureError(
                "Nothing was captured: run forward and loss.backward() inside the "
                "context before reading results."
            )
        whole = [c for c in calls if c.site.name not in self._recorder.unbatched]
        for call in whole:
            if call.rows is None:
                call.rows = self._read_rows(call)
        return whole

    def _obstacles(self) -> dict[str, str]:
        """Every replayed parameter, and what stands in the way of its replay."""
        obstacles = dict.fromkeys(self._replay.parameters, self._replay.obstacle)
        lost = self._recorder.reaching.keys() - self._replay.reached
        for name in lost & obstacles.keys():
            obstacles[name] = obstacles[name] or OUTSIDE
        return obstacles

    def _rows_of(self, call: Call) -> Rows:
        assert call.rows is not None  # _arrived has read them
        return call.rows

    def _read_rows(self, call: Call) -> Rows:
        name, size = call.site.name, call.labelling.size
        now = tuple(x._version for x in call.inputs if isinstance(x, Tensor))
        if now != call.versions:
            raise CaptureError(
                f"The input of layer '{name}' was changed in place after the batch; "
                "read results before overwriting it."
            )
        assert call.site.rule is not None
        assert call.adjoint is not None
        rows = call.site.rule.rows(
            call.site.module, call.inputs, call.adjoint, self._batch_dim
        )
        k = self._folded.get(name, 1)
        if len(rows.activation) != k * size:
            raise CaptureError(
                f"Layer '{name}' has {len(rows.activation)} rows on its batch axis and "
                f"there are {size} samples"
                + (f" times rows_per_sample={k}" if k > 1 else "")
                + ": if several rows of each sample are folded into the batch, pass "
                f"rows_per_sample={{'{name}': k}}."
            )
        a, d = (_widen(_fold(x, size, k)) for x in (rows.activation, rows.adjoint))
        return Rows(a, d if self._scaler is None else d / self._scale)

    def _plain(self, result: dict[str, Any]) -> Any:
        """Drop the grouping level where bare labels were given."""
        if self._first_labelling.named:
            return result
        return next(iter(result.values()))


def _fold(x: Tensor, size: int, k: int) -> Tensor:
    return x if k == 1 else x.reshape(size, k * x.shape[1], x.shape[2])


def _widen(x: Tensor) -> Tensor:
    """Half-precision rows are widened before any product."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _stack(rows: list[Rows]) -> Rows:
    """Join calls of the same samples along ``S``."""
    if len(rows) == 1:
        return rows[0]
    return Rows(
        torch.cat([r.activation for r in rows], 1),
        torch.cat([r.adjoint for r in rows], 1),
    )
