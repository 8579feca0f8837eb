"""From hooks to spectra to records, on scheduled steps of a training run.

`SpectralMonitor` watches; `EpochSpectra` is what one epoch showed. Training batches
are watched on the fly and describe; the probe (held-out people, evaluation mode,
weights and statistics untouched) is where inference happens.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import chain
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from spectral_mlops.common_size import Subsampled, at_common_size, subsampled
from spectral_mlops.compare import Solved, Subject, compare
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.distributed import Ranks, ranks_of
from spectral_mlops.hooks.groups import Groups, Labels, read_fixed, refuse_unlisted
from spectral_mlops.hooks.measure import (
    ReducedBatch,
    measure,
    reduce_batch,
    spectra_of,
)
from spectral_mlops.hooks.measured import LayerRows, LoneMatrix, Wanted
from spectral_mlops.hooks.observed import keep_layers
from spectral_mlops.hooks.survey import Survey
from spectral_mlops.hooks.window import Window
from spectral_mlops.inference.comparison import Comparison, to_divergences
from spectral_mlops.inference.effects import smallest_detectable
from spectral_mlops.probe import ProbeBatch, classes_of, margin, undisturbed
from spectral_mlops.records import (
    QUANTITIES,
    Divergence,
    EpochRecord,
    Quantity,
    Spectrum,
    as_columns,
    check_quantities,
)
from spectral_mlops.reformed import Reformed, reform
from spectral_mlops.schedule import Decided, EveryNth, Schedule, TimeBudget
from spectral_mlops.spectra.reduced import Reduced
from spectral_mlops.spectra.solver import Solver
from spectral_mlops.subjects import adjusted, subject_scalars
from spectral_mlops.validity import Families, Null, Observed, read_families

WAITING_BYTES = 32 * 2**20
"""Rows of one batch above which they are reduced at once, not beside training."""

AGGREGATES = ("batch", "window")
DISTRIBUTED = ("auto", "off")
NULLS = ("auto", "reformed", "none")
NO_NULL = "the null of a distributed run is formed on the probe only"

Strata = Mapping[str, Mapping[str, str]]
LossFunction = Callable[[Any, Any], Tensor]


class EpochSpectra:
    """What one epoch of training batches, or one pass of the probe, showed.

    Attributes:
        epoch: Counted from 0.
        source: ``train`` or ``probe``.
        spectra: One record per watched batch, layer, quantity and group.
        batches: Number of watched batches, of all ranks.
        reformed: Of a probe with ``adjoint="reformed"``: the null of loss gradients.
    """

    reformed: Reformed | None = None

    def __init__(
        self,
        epoch: int,
        source: str,
        spectra: list[Spectrum],
        batches: int,
        observed: list[Observed],
        strata: Strata,
        refused: str = "",
        families: Families | None = None,
    ) -> None:
        self.epoch = epoch
        self.source = source
        self.spectra = spectra
        self.batches = batches
        self._observed = observed
        self._strata = strata
        self._refused = refused
        self._families: Families = families or {}
        self._compared: list[Comparison] | None = None
        self._released = False

    def comparisons(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        seed: int = 0,
        divergence: str = "js",
        relabel: Literal["pair", "everyone"] = "pair",
        null: str = "auto",
        weighting: str = "subjects",
    ) -> list[Comparison]:
        """The statistics behind `divergences`, under every relabelling.

        Folds that share a probe are averaged on these (`inference.comparison`).

        Args:
            permutations: Relabellings beside the observed labels; 0 for none.
            strata: ``"auto"`` (target, if not the grouping, and the monitor's
                strata), ``None``, or ``{name: {subject: stratum}}``; the monitor's
                families stay whole in any case.
            seed: Of the relabellings; the same people, labels, strata and seed
                give the same relabellings everywhere.
            divergence: Name of a divergence or of another statistic
                (`spectra.statistics.STATISTICS`).
            relabel: Whose labels move: the pair's people, or everyone's.
            null: See `divergences`.
            weighting: See `divergences`.

        Raises:
            CaptureError: If a null is asked for after `release`.
            InputError: If a name is unknown, or nothing was re-formed.
        """
        how = self._null(permutations, strata, seed, divergence, null, weighting)
        how = replace(how, everyone=relabel == "everyone")
        self._compared = self._compare(how)
        return self._compared

    def comparisons_by(
        self, statistics: Sequence[str], permutations: int = 199, seed: int = 0
    ) -> dict[str, list[Comparison]]:
        """`comparisons` by several statistics, everyone's labels moving together.

        Spectra under relabellings, which take nearly all of the time, are solved
        once for all of them.

        Args:
            statistics: Names; the first one is what `to_records` holds afterwards.
            permutations: See `comparisons`.
            seed: See `comparisons`.

        Returns:
            Of each statistic what `comparisons` gives with ``relabel="everyone"``.

        Raises:
            CaptureError: If a null is asked for after `release`.
            InputError: If a name is unknown, or none is given.
        """
        if not statistics:
            raise InputError("statistics=[]: name at least one statistic.")
        found: dict[str, list[Comparison]] = {}
        solved: Solved = {}
        for name in dict.fromkeys(statistics):
            how = self._null(permutations, "auto", seed, name)
            found[name] = self._compare(replace(how, everyone=True), solved)
        self._compared = found[statistics[0]]
        return found

    def omnibus(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        seed: int = 0,
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> pd.DataFrame:
        """Whether any groups differ: the mean over pairs, everyone's labels moved.

        Args:
            permutations: See `comparisons`.
            strata: See `comparisons`.
            seed: See `comparisons`.
            divergence: See `comparisons`.
            weighting: See `divergences`.

        Returns:
            The columns of `divergences`, one row per layer, quantity and grouping of
            three groups or more, with both groups ``*``; ``n_a`` and ``subjects_a``
            are those of the smallest group, ``n_b`` and ``subjects_b`` of the largest.
        """
        null = self._null(permutations, strata, seed, divergence, weighting=weighting)
        found = self._compare(replace(null, omnibus=True))
        columns = as_columns(to_divergences(found))
        return pd.DataFrame(columns, columns=[x.name for x in fields(Divergence)])

    def at_common_size(
        self,
        m: int | None = None,
        draws: int = 100,
        seed: int = 0,
        divergence: str = "js",
    ) -> pd.DataFrame:
        """Groups by random subsets of ``m`` of their people, for drawing side by side.

        Args:
            m: People per subset; half of the smallest group if not given.
            draws: Number of subsets.
            seed: Of the draws.
            divergence: Statistic of two spectra.

        Returns:
            See `common_size.at_common_size`: effective ranks and divergences with the
            quantiles of the subsets.
        """
        self._refuse_released()
        return at_common_size(self._observed, m, draws, seed, divergence)

    def subsampled(
        self,
        grouping: str,
        m: int | None = None,
        draws: int = 200,
        seed: int = 0,
        divergence: str = "js",
    ) -> Subsampled:
        """Divergence of ``m`` people per group, over subsamples; see there.

        Args:
            grouping: Whose groups.
            m: People per group; half of the smallest group if not given.
            draws: Number of subsamples.
            seed: Of the draws, and of the relabelled groups beside them.
            divergence: Statistic of two spectra.

        Returns:
            See `common_size.subsampled`.
        """
        self._refuse_released()
        return subsampled(
            self._observed,
            grouping,
            m,
            draws,
            self._strata,
            seed,
            divergence,
            self._families,
        )

    def per_subject(self) -> pd.DataFrame:
        """Each person's own gradient in two numbers (`subjects.subject_scalars`).

        Returns:
            Columns ``layer``, ``subject``, ``log_norm``, ``cosine``.
        """
        self._refuse_released()
        return subject_scalars(self._observed)

    def adjusted(
        self,
        grouping: str,
        nuisance: Mapping[str, Mapping[str, Any]],
        strata: Strata | None = None,
        permutations: int = 199,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Compare groups on `per_subject` with age, motion, site held.

        The target's own loss knows the labels: where the grouping is the target there
        is a p on a probe with margin adjoints alone.

        Args:
            grouping: Name of a grouping.
            nuisance: ``{name: {subject: value}}``, numbers or names.
            strata: ``{name: {subject: stratum}}`` that residuals stay within; the
                monitor's, and the target if it is not the grouping, if not given.
            permutations: Moves beside none.
            seed: Of the moves.

        Returns:
            See `subjects.adjusted`: a row per layer and scalar, with ``p_max`` over
            all of them.
        """
        self._refuse_released()
        if self._refused:
            raise InputError(f"adjusted: {self._refused}.")
        auto = strata is None
        return adjusted(
            self._observed,
            self.source,
            grouping,
            nuisance,
            self._strata if strata is None else strata,
            auto,
            permutations,
            seed,
            self._families,
        )

    @property
    def _subject(self) -> Subject:
        return Subject(
            self.spectra, self._observed, self.source, self.batches, self._refused
        )

    def _compare(self, null: Null, solved: Solved | None = None) -> list[Comparison]:
        """Compare, with adjoints re-formed where they were."""
        found = compare(self._subject, null, solved)
        if self.reformed is None or not self._observed:
            return found
        return self.reformed.in_place_of(found, self._observed[0].groupings, null)

    def _null(
        self,
        permutations: int,
        strata: str | Strata | None,
        seed: int,
        statistic: str,
        null: str = "auto",
        weighting: str = "subjects",
    ) -> Null:
        """Read how groups are to be compared."""
        if null not in NULLS:
            names = ", ".join(map(repr, NULLS))
            raise InputError(f"null='{null}': choose one of {names}.")
        permutations = 0 if null == "none" else permutations
        if permutations:
            self._refuse_released()
        if permutations and null == "reformed":
            self._refuse_not_reformed()
        chosen = self._strata if strata == "auto" else strata
        if isinstance(chosen, str):
            raise InputError(
                f"strata='{chosen}': pass 'auto', None or "
                "{name: {subject: stratum}}."
            )
        by_target = strata == "auto"
        return Null(
            permutations,
            chosen or {},
            by_target,
            seed,
            statistic,
            weighting=weighting,
            families=self._families,
        )

    def _refuse_not_reformed(self) -> None:
        if self.reformed is None:
            raise InputError(
                "null='reformed' is of a probe passed with adjoint='reformed' and a "
                "loss_function, which this result is not: choose null='auto'."
            )
        groupings = self._observed[0].groupings if self._observed else {}
        if not any(map(self.reformed.class_of, groupings.values())):
            raise InputError(
                "null='reformed' moves the target's labels, and no grouping is the "
                f"target (there is {', '.join(groupings)}): choose null='auto'."
            )

    def _refuse_released(self) -> None:
        if self._released:
            raise CaptureError(
                "The factors that a null needs were released (tracker.log does that): "
                "call divergences() before logging."
            )

    def divergences(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        null: str = "auto",
        seed: int = 0,
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> pd.DataFrame:
        """How far groups are apart at each layer, with what a p may mean.

        With a null, ``value`` is the mean over the batches that the null is about
        (all of the probe; ``null_batches`` of a training epoch), people weighted by
        ``weighting``; without one, over all watched batches, whose recorded spectra
        are of the rows as they are.

        Args:
            permutations: See `comparisons`.
            strata: See `comparisons`.
            null: ``"auto"``: subjects are relabelled where factors were kept, and where
                they were passed with ``adjoint="reformed"`` and the grouping is the
                target, gradients and adjoints are those of the moved labels;
                ``"reformed"``: the same, and an error where nothing was re-formed;
                ``"none"``.
            seed: See `comparisons`.
            divergence: See `comparisons`.
            weighting: ``"subjects"``: each person weighs the same, a row 1/(rows of its
                person at that layer); ``"rows"``: each row, as ``valid_for`` then says.

        Returns:
            One row per layer, quantity and pair of groups, with the columns of
            `records.Divergence`.
        """
        found = self.comparisons(
            permutations, strata, seed, divergence, null=null, weighting=weighting
        )
        return pd.DataFrame(as_columns(to_divergences(found)))

    def detectable(
        self,
        permutations: int = 199,
        strata: str | Strata | None = "auto",
        seed: int = 0,
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> pd.DataFrame:
        """What each comparison could have shown: to stand beside a large p.

        Args:
            permutations: See `comparisons`.
            strata: See `comparisons`.
            seed: See `comparisons`.
            divergence: See `comparisons`.
            weighting: See `divergences`.

        Returns:
            One row per layer, quantity and pair of groups: ``value`` as observed,
            ``critical`` (what p ≤ .05 takes) and ``smallest_detectable`` (what would
            have reached that with 80 % power), all in units of the divergence, and
            ``reason`` where there is none (`effects.smallest_detectable`).
        """
        rows = []
        null = self._null(permutations, strata, seed, divergence, weighting=weighting)
        for item in self._compare(null):  # what is recorded stays
            found = smallest_detectable(item.values)
            tested = item.testable and item.has_null
            rows.append(
                {
                    "layer": item.layer,
                    "quantity": item.quantity,
                    "grouping": item.grouping,
                    "group_a": item.group_a,
                    "group_b": item.group_b,
                    "value": float(item.values[0]),
                    "critical": found.critical if tested else float("nan"),
                    "smallest_detectable": found.value if tested else float("nan"),
                    "reason": found.reason if tested else item.reason,
                }
            )
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One tidy row per spectrum: its fields, and a column per summary.

        Norms are at scale ``batch``. ``values`` holds the singular values.
        """
        frame = pd.DataFrame(as_columns(self.spectra))
        frame.insert(0, "epoch", self.epoch)
        frame.insert(1, "source", self.source)
        return frame

    def to_records(self) -> list[EpochRecord]:
        """What a tracker stores: the spectra, and the divergences last computed.

        Where none were computed, they are formed without a null.
        """
        if self._compared is None:
            self.comparisons(permutations=0)
        assert self._compared is not None
        rows = tuple(to_divergences(self._compared))
        return [EpochRecord(self.epoch, self.source, tuple(self.spectra), rows)]

    def release(self) -> None:
        """Free the factors kept for the null; called by ``tracker.log``."""
        if self._compared is None:
            self.comparisons(permutations=0)
        self._observed, self._released, self.reformed = [], True, None


class SpectralMonitor:
    """Watch a model over a training run, on a schedule.

    Args:
        model: Any module; it is neither wrapped nor changed.
        quantities: Any of ``gradient``, ``activation``, ``adjoint``.
        every: Watch each n-th step of an epoch, or ``"auto"``: as many as keep
            watching under 5 % of the time.
        schedule: Instead of ``every``: a `schedule.Schedule`, or a function of
            ``(epoch, step)``.
        epochs: Watch in these epochs only; in all if ``None``.
        layers: Names of the layers to watch; all if ``None``.
        reduction: How the loss reduces over the batch, ``"mean"`` or ``"sum"``.
        loss_scale: ``c`` itself, for weighted, masked or accumulated losses.
        batch_dim: Batch axis of the model's inputs and outputs.
        scaler: The ``torch.amp.GradScaler`` that scales the loss.
        rows_per_sample: ``k`` or ``{layer: k}``, see `hooks.capture`.
        conv_rows: ``"positions"`` or ``"patches"``, see `hooks.capture`.
        gates: ``"stacked"``, ``"apart"`` or ``"both"``, see `hooks.capture`.
        strict: Refuse a model that has parameters no rule covers.
        missing: What missing labels get: ``"raise"`` or ``"group"``.
        aggregate: ``"batch"``: a spectrum of each watched batch, then mean and
            spread over the window (from one `collect` to the next); ``"window"``:
            one of the gradients and rows of all of them together. In distributed
            training (``distributed``) the batches of all ranks count: ``"batch"``
            gives every rank the records of all, told apart by ``rank``;
            ``"window"`` what one process shows that watches all these batches one
            after another. A window's gradient is thus the *sum* over ranks of the
            local group gradients, each with the ``c`` of its rank's own batch, and
            hence `world size` times what `DistributedDataParallel`, which averages,
            leaves in ``.grad``. The record has the ``c`` of the last batch: scales
            ``sum`` and ``mean`` hold where all batches are of one size (or with
            ``loss_scale``).
        pooled: Also watch all samples together, as group ``all``.
        permutations: Relabellings computed by `collect`; 0 leaves them to
            ``EpochSpectra.divergences``.
        null_batches: Number of watched batches per epoch whose reduced factors are
            kept for the null.
        strata: ``{name: {subject: stratum}}``: what labels move within, beside the
            target (sites, and whatever split and sampler stratify by).
        families: ``{subject: family}`` of everybody (None: no relative). Relatives are
            no strangers: families with as many members in each stratum exchange labels
            as a whole, members of one in one stratum among themselves
            (`inference.exchange`). A family of which some take no part, of another
            group or batch, exchanges with families that lack as many.
        seed: Of the relabellings.
        groups: Every group that may be seen, ``{grouping: [names]}``, or the names of
            bare labels; others are refused. A window of a distributed run needs it:
            a rank whose batches lack a group adds nothing to it.
        distributed: ``"auto"``: in a process group of several ranks (that of a
            `DistributedDataParallel`, else the default one) `collect` is collective,
            and every rank has to call it; ``"off"``: each process has its own.

    Raises:
        InputError: If a setting cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        quantities: Iterable[str] = QUANTITIES,
        every: int | Literal["auto"] = 1,
        schedule: Schedule | Callable[[int, int], bool] | None = None,
        layers: Iterable[str] | None = None,
        reduction: str = "mean",
        *,
        loss_scale: float | None = None,
        batch_dim: int = 0,
        scaler: torch.amp.GradScaler | None = None,
        rows_per_sample: int | Mapping[str, int] | None = None,
        conv_rows: str = "positions",
        gates: str = "stacked",
        strict: bool = False,
        missing: str = "raise",
        aggregate: str = "batch",
        pooled: bool = True,
        permutations: int = 0,
        null_batches: int = 1,
        strata: Strata | None = None,
        families: Mapping[str, str | None] | None = None,
        seed: int = 0,
        epochs: Iterable[int] | None = None,
        groups: Groups | None = None,
        distributed: str = "auto",
    ) -> None:
        for name, value, choices in (
            ("aggregate", aggregate, AGGREGATES),
            ("distributed", distributed, DISTRIBUTED),
        ):
            if value not in choices:
                raise InputError(
                    f"{name}='{value}': choose {' or '.join(map(repr, choices))}."
                )
        if permutations < 0 or null_batches < 0:
            raise InputError(f"{permutations=}, {null_batches=}: not below zero.")
        self.model = model
        self.quantities: tuple[Quantity, ...] = check_quantities(quantities)
        self.additivity: dict[str, float] | None = None
        self.coverage: list[CoverageRow] | None = None
        self._schedule = _read_schedule(every, schedule)
        self._epochs = None if epochs is None else frozenset(epochs)
        self._settings: dict[str, Any] = {
            "layers": None if layers is None else tuple(layers),
            "quantities": self.quantities,
            "batch_dim": batch_dim,
            "rows_per_sample": rows_per_sample,
            "conv_rows": conv_rows,
            "gates": gates,
            "strict": strict,
            "missing": missing,
        }
        self._scale: dict[str, Any] = {
            "reduction": reduction,
            "loss_scale": loss_scale,
            "scaler": scaler,
        }
        self._pooled, self._null_batches = pooled, null_batches
        self._permutations, self._seed = permutations, seed
        self._strata: Strata = strata or {}
        self._families = read_families(families)
        self._epoch, self._step = 0, 0
        self._steps: int | None = None
        self._active: capture | None = None
        self._pending: list[_Pending] = []
        self._solver = Solver()
        self._window = Window() if aggregate == "window" else None
        self._fixed = None if groups is None else read_fixed(groups, missing)
        self._distributed = distributed
        self._observed: list[_Pending] = []
        self._trained_on: set[str] = set()
        self._batches = 0
        self._survey = Survey(model, self._settings["layers"])
        self._capture([0])  # refuse bad settings now
        self._ranks()

    # -- training batches --------------------------------------------------------

    def begin_epoch(self, epoch: int, steps: int | None = None) -> None:
        """Announce an epoch; optional, except for evenly spaced schedules.

        Args:
            epoch: Counted from 0.
            steps: Number of steps it will have.
        """
        self._epoch, self._step, self._steps = epoch, 0, steps

    @contextmanager
    def watch(
        self,
        groups: Groups,
        subjects: Labels | None = None,
        targets: Labels | None = None,
        loss_scale: float | None = None,
    ) -> Iterator[capture | None]:
        """Watch one batch, if its step is scheduled.

        Forward and backward go inside. Unscheduled steps carry no hook.

        Args:
            groups: Labels ``[N]`` or ``{grouping: labels}``.
            subjects: The person behind each sample, ``[N]``.
            targets: What training predicts, ``[N]``.
            loss_scale: ``c`` of this batch, where it differs from batch to batch
                (weights, accumulation); the monitor's if not given.

        Yields:
            The capture, or ``None`` on unscheduled steps.
        """
        captured = self.start(groups, subjects, targets, loss_scale)
        try:
            yield captured
        except BaseException:
            self._abandon()
            raise
        self.stop()

    def start(
        self,
        groups: Groups,
        subjects: Labels | None = None,
        targets: Labels | None = None,
        loss_scale: float | None = None,
    ) -> capture | None:
        """`watch` without the ``with``, for the callbacks of a framework.

        Raises:
            CaptureError: If the step before was not stopped.
        """
        if self._active is not None:
            raise CaptureError("The step before is still watched: call stop() first.")
        step, self._step = self._step, self._step + 1
        if self._epochs is not None and self._epoch not in self._epochs:
            return None
        if not self._schedule.watches(self._epoch, step, self._steps):
            return None
        self._ranks()  # the process group may be younger than the monitor
        began = time.perf_counter()
        captured = self._capture(
            groups,
            subjects=subjects,
            targets=targets,
            additivity=self.additivity is None,
            lasting=True,
            **({} if loss_scale is None else {"loss_scale": loss_scale}),
        )
        self._refuse_unlisted(captured)
        if captured.labelling.identified:
            self._trained_on.update(captured.labelling.subjects)
        self._active = captured.__enter__()
        self._spend(began)
        return self._active

    def stop(self) -> None:
        """End the step begun by `start` and take in what it showed.

        Raises:
            CaptureError: If no backward pass happened inside.
        """
        captured, self._active = self._active, None
        if captured is None:
            return
        began = time.perf_counter()
        captured.__exit__(None, None, None)
        step = self._step - 1
        pending = _Pending(captured, self._pooled, step)
        number = len(self._observed)
        if number < self._null_batches:
            pending.number = number
            self._observed.append(pending)
        if self._window is not None:
            pending.observe()
            self._window.add(*pending.measurable)
            pending.let_go()
        else:
            self._pending.append(pending)
            if pending.may_wait and self._solver.beside(pending.nbytes):
                self._solver.submit(pending.reduce, pending.nbytes)
            else:
                self._solver.submit(pending.reduce())
        if self.additivity is None:
            self.additivity = captured.additivity_error()
            self.coverage = captured.coverage()
        self._batches += 1
        self._spend(began)

    def discard(self) -> None:
        """End the step begun by `start` without taking in what it showed."""
        self._abandon()

    def relabel(
        self,
        groups: Groups,
        subjects: Labels | None = None,
        targets: Labels | None = None,
    ) -> None:
        """Give the labels of the forward calls from here on (``capture.relabel``)."""
        if self._active is not None:
            self._active.relabel(groups, subjects, targets)
            self._refuse_unlisted(self._active)
            if self._active.labelling.identified:
                self._trained_on.update(self._active.labelling.subjects)

    def collect(self, epoch: int | None = None) -> EpochSpectra:
        """Return what was watched since the last call, and empty the monitor.

        In a distributed run every rank has to call it, and gets what all watched; the
        divergences of its training batches then carry no p.

        Args:
            epoch: Written into the result; the announced or counted one if not
                given. The next epoch counts on from it.
        """
        number = self._epoch if epoch is None else epoch
        pending, self._pending = self._pending, []
        kept, self._observed = self._observed, []
        batches, self._batches = self._batches, 0
        self._survey.outside = None  # another epoch may use weights in other ways
        ranks = self._ranks()
        if ranks is not None:
            batches = sum(ranks.gather(batches))
            if self._window is not None:
                self._window.join(ranks)
        began = time.perf_counter()  # waiting for slower ranks is not watching
        solved = self._solver.drain()
        observed = [one.seen for one in kept if one.seen is not None]
        spectra = spectra_of([one.batch for one in pending], solved)
        if self._window is not None:
            spectra = self._window.spectra()
        self._spend(began)
        if ranks is not None and self._window is None:
            spectra = [
                replace(spectrum, rank=rank)
                for rank, found in enumerate(ranks.gather(spectra))
                for spectrum in found
            ]
        result = EpochSpectra(
            number,
            "train",
            spectra,
            batches,
            observed,
            self._strata,
            refused=NO_NULL if ranks is not None else "",
            families=self._families,
        )
        self.begin_epoch(number + 1)
        if self._permutations:
            result.comparisons(self._permutations, seed=self._seed)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: where the schedule stands, and whom training saw.

        Collect before saving. Plain values only, which ``torch.load`` reads with
        ``weights_only=True``.
        """
        return {
            "epoch": self._epoch,
            "step": self._step,
            "steps": self._steps,
            "additivity": self.additivity,
            "coverage": self.coverage and [tuple(row) for row in self.coverage],
            "trained_on": sorted(self._trained_on),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._epoch, self._step = state["epoch"], state["step"]
        self._steps = state["steps"]
        self.additivity, rows = state["additivity"], state["coverage"]
        self.coverage = rows and [CoverageRow(*row) for row in rows]
        self._trained_on = set(state["trained_on"])

    # -- held-out people ---------------------------------------------------------

    def probe(
        self,
        batches: Iterable[ProbeBatch | tuple[Any, Any, Groups, Labels]],
        loss_function: LossFunction | None = None,
        epoch: int = 0,
        adjoint: Literal["margin", "loss", "reformed"] = "margin",
    ) -> EpochSpectra:
        """Pass held-out people in evaluation mode; nothing of the model changes.

        ``.grad``, weights, buffers, training flags and random state are those of
        before. All batches are taken together as one set of people.

        Args:
            batches: ``(inputs, targets, groups, subjects)`` each.
            loss_function: Of ``(outputs, targets)``; needed for ``"loss"`` and
                ``"reformed"``.
            epoch: Written into the result.
            adjoint: ``"margin"``: adjoints of `margin` summed over people, which
                knows no labels, so that groups may be compared even where they
                are the target; ``"loss"``: adjoints of the loss; ``"reformed"``:
                the same, and beside them the loss taken at each class for
                everybody, for the null of a grouping that is the target
                (``result.divergences()``, `reformed.Reformed`).

        Returns:
            The same as `collect`, with ``source="probe"``.

        Raises:
            InputError: If there are no batches, the loss is missing, or somebody
                was watched in training by this monitor.
        """
        if adjoint not in ("margin", "loss", "reformed"):
            raise InputError(
                f"adjoint='{adjoint}': choose 'margin', 'loss' or 'reformed'."
            )
        if adjoint != "margin" and loss_function is None:
            raise InputError(f"adjoint='{adjoint}' needs the loss_function.")
        held = [ProbeBatch(*batch) for batch in batches]
        if not held:
            raise InputError("probe: there are no batches of held-out people.")
        classes = classes_of(held) if adjoint == "reformed" else {}

        def scalar_of(outputs: Any, targets: Any) -> Tensor:
            if adjoint == "margin" or loss_function is None:
                return margin(outputs).sum()
            return loss_function(outputs, targets)

        free = adjoint == "margin"
        passed = self._pass_probe(held, scalar_of, label_free=free)
        layers = passed[0]
        seen = _observe(*passed, trained_on=False, label_free=free)
        observed = [] if seen is None else [seen]
        result = EpochSpectra(
            epoch,
            "probe",
            measure(*passed),
            1,
            observed,
            self._strata,
            families=self._families,
        )
        if adjoint == "reformed" and layers:

            def at(value: float) -> LossFunction:
                return lambda outputs, y: scalar_of(outputs, torch.full_like(y, value))

            by_class = {
                name: self._pass_probe(held, at(value))[0]
                for name, value in classes.items()
            }
            result.reformed = reform(layers, by_class, self._strata, self._families)
        return result

    def _pass_probe(
        self,
        batches: Iterable[ProbeBatch],
        scalar_of: LossFunction,
        label_free: bool = False,
    ) -> tuple[list[LayerRows], Iterable[LoneMatrix], Wanted, frozenset[str]]:
        """Pass all batches once; give what `measure` takes."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        together: dict[str, LayerRows] = {}
        lone: dict[str, LoneMatrix] = {}
        wanted, elsewhere = Wanted(self.quantities), frozenset[str]()
        scale = self._scale | {"scaler": None}  # nothing scales the loss here
        if label_free:
            scale |= {"reduction": "sum", "loss_scale": None}
        with undisturbed(self.model), torch.enable_grad():
            for inputs, targets, groups, subjects in batches:
                with self._capture(
                    groups,
                    subjects=subjects,
                    targets=targets,
                    additivity=False,
                    **scale,
                ) as captured:
                    self._refuse_trained_on(captured)
                    scalar = scalar_of(self.model(inputs), targets)
                    torch.autograd.grad(scalar, trained, allow_unused=True)
                rows, matrices, wanted, elsewhere = captured.measurable(self._pooled)
                for layer in rows:
                    before = together.setdefault(
                        layer.layer, LayerRows(layer.layer, [])
                    )
                    before.calls.extend(layer.calls)
                for matrix in matrices:
                    name = matrix.parameter
                    lone[name] = lone[name].plus(matrix) if name in lone else matrix
        return list(together.values()), list(lone.values()), wanted, elsewhere

    def _refuse_trained_on(self, captured: capture) -> None:
        """Refuse held-out people who were watched in training."""
        if not captured.labelling.identified:
            return
        if known := sorted(self._trained_on & {*captured.labelling.subjects}):
            raise InputError(
                f"probe: {len(known)} people were watched in training, the first "
                f"{known[0]}; pass people whom training never touches."
            )

    # -- inside ------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches a copy of the model, and has seen nothing yet."""
        fresh = {"_pending": [], "_observed": [], "_batches": 0, "_active": None}
        return self.__dict__ | fresh | {"_survey": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._survey = Survey(self.model, self._settings["layers"])

    def _capture(self, groups: Groups, **more: Any) -> capture:
        """Return a context for one batch, with the monitor's settings."""
        settings = self._settings | self._scale | more
        captured = capture(self.model, groups, survey=self._survey, **settings)
        self._survey = captured.survey  # a fresh one where the model has changed
        return captured

    def _ranks(self) -> Ranks | None:
        """Return the processes that are watched together, if there are several.

        Raises:
            InputError: If their windows need the list of groups.
        """
        ranks = ranks_of(self.model) if self._distributed == "auto" else None
        if ranks is not None and self._window is not None and self._fixed is None:
            raise InputError(
                f"aggregate='window' on {ranks.size} ranks needs groups={{grouping: "
                "[names]}, every group that may be seen; or pass distributed='off'."
            )
        return ranks

    def _refuse_unlisted(self, captured: capture) -> None:
        if self._fixed is not None:
            refuse_unlisted(captured.labelling, self._fixed)

    def _abandon(self) -> None:
        captured, self._active = self._active, None
        if captured is not None:
            captured.__exit__(None, None, None)

    def _spend(self, began: float) -> None:
        if isinstance(self._schedule, TimeBudget):
            self._schedule.spent += time.perf_counter() - began


class _Pending:
    """A watched batch on its way to spectra.

    Attributes:
        layers: Its rows.
        batch: What is left once they are reduced.
        nbytes: What is kept alive until then.
        may_wait: Whether another thread may reduce it while training goes on.
        number: Which of the batches it is that a null is formed of, if it is one.
        seen: What was kept for that null.
    """

    number: int | None = None
    seen: Observed | None = None

    def __init__(self, captured: capture, pooled: bool, step: int) -> None:
        measurable = captured.measurable(pooled, step)
        self.layers = measurable[0]
        self.batch = ReducedBatch()
        self.nbytes = sum(
            rows.nbytes for layer in self.layers for _, rows in layer.calls
        )
        on_cpu = all(not p.is_cuda for p in captured.model.parameters())
        self.may_wait = captured.lasts and on_cpu and self.nbytes <= WAITING_BYTES
        self._captured, self.measurable = captured, measurable

    def reduce(self) -> list[Reduced]:
        """Reduce the rows, and let go of them; marked if they were written to."""
        with torch.no_grad():
            self.batch = reduce_batch(*self.measurable)
        self.observe()
        problems = self.batch.problems
        if not self._captured.unchanged():  # somebody kept a tensor, and wrote to it
            problems = [replace(one, status="failed") for one in problems]
            self.seen = None
        self.let_go()
        return problems

    def let_go(self) -> None:
        """Keep no row alive."""
        del self.layers, self.measurable, self._captured

    def observe(self) -> None:
        """Keep what a null needs, if it is formed of this batch."""
        if self.number is not None:
            layers, lone, wanted, elsewhere = self.measurable
            kept = _observe(layers, lone, wanted, elsewhere, True, number=self.number)
            self.seen = kept


def _read_schedule(
    every: int | str, schedule: Schedule | Callable[[int, int], bool] | None
) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    if schedule is not None:
        if not callable(schedule):
            raise InputError(f"{schedule=}: a Schedule or a function (epoch, step).")
        return Decided(schedule)
    if every == "auto":
        return TimeBudget()
    if not isinstance(every, int):
        raise InputError(f"{every=}: a number of steps, or 'auto'.")
    return EveryNth(every)


def _observe(
    layers: list[LayerRows],
    lone: Iterable[LoneMatrix],
    wanted: Wanted,
    elsewhere: Set[str],
    trained_on: bool,
    label_free: bool = False,
    number: int = 0,
) -> Observed | None:
    """Keep what a null needs of captured rows; None if nothing was captured.

    Samples without a person behind them are others in each batch, hence its number.
    """
    lone = list(lone)
    batches = [x for layer in layers for x in layer.labellings]
    batches += [x for matrix in lone for x in matrix.labellings]
    labellings = tuple(dict.fromkeys(batches))
    if not labellings:
        return None
    groupings = {
        name: [group for who in labellings for group in _labels_of(who.groupings[name])]
        for name in labellings[0].groupings
    }
    targets = [who.targets for who in labellings]
    subjects = [
        [p if who.identified else f"{number}: {p}" for p in who.subjects]
        for who in labellings
    ]
    order = {p: i for i, p in enumerate(dict.fromkeys(chain(*subjects)))}
    people = {
        who: torch.tensor([order[p] for p in own], dtype=torch.int64)
        for who, own in zip(labellings, subjects, strict=True)
    }
    with torch.no_grad():
        kept = keep_layers(layers, lone, wanted, elsewhere, people)
    return Observed(
        subjects=list(chain(*subjects)),
        groupings=groupings,
        targets=(
            None
            if any(t is None for t in targets)
            else [label for column in targets for label in column or ()]
        ),
        layers=kept,
        trained_on=trained_on,
        label_free=label_free,
    )


def _labels_of(groups: Mapping[str, Tensor]) -> list[str]:
    """Return the label of each sample, in order."""
    at = {i: group for group, samples in groups.items() for i in samples.tolist()}
    return [at[i] for i in range(len(at))]
