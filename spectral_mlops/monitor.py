"""From hooks to spectra, on scheduled steps of a training run.

`SpectralMonitor` watches; `EpochSpectra` is what one epoch showed. Training batches
are watched on the fly and describe; the probe (held-out people, evaluation mode,
weights and statistics untouched) is where inference happens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from spectral_mlops.backlog import Backlog
from spectral_mlops.epoch_spectra import EpochSpectra
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.hooks.captures import Captures
from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.distributed import Ranks, ranks_of
from spectral_mlops.hooks.groups import Groups, Labels, read_fixed, refuse_unlisted
from spectral_mlops.hooks.window import Window
from spectral_mlops.probe import LossFunction, Probe, ProbeBatch
from spectral_mlops.records import QUANTITIES, Quantity, check_quantities
from spectral_mlops.schedule import Schedule, Steps, read_schedule
from spectral_mlops.validity import Strata, read_families

AGGREGATES = ("batch", "window")
DISTRIBUTED = ("auto", "off")
NO_NULL = "the null of a distributed run is formed on the probe only"

__all__ = ["EpochSpectra", "SpectralMonitor"]


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
        self._steps = Steps(read_schedule(every, schedule), epochs)
        self._captures = Captures(
            model,
            layers=None if layers is None else tuple(layers),
            quantities=self.quantities,
            batch_dim=batch_dim,
            reduction=reduction,
            loss_scale=loss_scale,
            scaler=scaler,
            rows_per_sample=rows_per_sample,
            conv_rows=conv_rows,
            gates=gates,
            strict=strict,
            missing=missing,
        )
        window = Window() if aggregate == "window" else None
        self._pooled = pooled
        self._backlog = Backlog(pooled, null_batches, window)
        self._permutations, self._seed = permutations, seed
        self._strata: Strata = strata or {}
        self._families = read_families(families)
        self._active: capture | None = None
        self._fixed = None if groups is None else read_fixed(groups, missing)
        self._distributed = distributed
        self._trained_on: set[str] = set()
        self._ranks()

    # -- training batches --------------------------------------------------------

    def begin_epoch(self, epoch: int, steps: int | None = None) -> None:
        """Announce an epoch; optional, except for evenly spaced schedules.

        Args:
            epoch: Counted from 0.
            steps: Number of steps it will have.
        """
        self._steps.begin_epoch(epoch, steps)

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
        if not self._steps.next():
            return None
        self._ranks()  # the process group may be younger than the monitor
        with self._steps.watching():
            captured = self._captures.of(
                groups,
                subjects=subjects,
                targets=targets,
                additivity=self.additivity is None,
                lasting=True,
                **({} if loss_scale is None else {"loss_scale": loss_scale}),
            )
            self._note_people(captured)
            self._active = captured.__enter__()
        return self._active

    def stop(self) -> None:
        """End the step begun by `start` and take in what it showed.

        Raises:
            CaptureError: If no backward pass happened inside.
        """
        captured, self._active = self._active, None
        if captured is None:
            return
        with self._steps.watching():
            captured.__exit__(None, None, None)
            self._backlog.add(captured, self._steps.step - 1)
            if self.additivity is None:
                self.additivity = captured.additivity_error()
                self.coverage = captured.coverage()

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
            self._note_people(self._active)

    def collect(self, epoch: int | None = None) -> EpochSpectra:
        """Return what was watched since the last call, and empty the monitor.

        In a distributed run every rank has to call it, and gets what all watched; the
        divergences of its training batches then carry no p.

        Args:
            epoch: Written into the result; the announced or counted one if not
                given. The next epoch counts on from it.
        """
        number = self._steps.epoch if epoch is None else epoch
        self._captures.begin_anew()  # another epoch may use weights in other ways
        ranks = self._ranks()
        if ranks is not None:
            self._backlog.join(ranks)  # waiting for slower ranks is not watching
        with self._steps.watching():
            spectra, observed, batches = self._backlog.take()
        if ranks is not None and self._backlog.window is None:
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
            **self._steps.state_dict(),
            "additivity": self.additivity,
            "coverage": self.coverage and [tuple(row) for row in self.coverage],
            "trained_on": sorted(self._trained_on),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._steps.load_state_dict(state)
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
        held = (ProbeBatch(*batch) for batch in batches)  # read one at a time
        probe = Probe(self.model, held, self._watch_held_out, self._pooled)
        return probe.spectra(
            loss_function, epoch, adjoint, self._strata, self._families
        )

    def _watch_held_out(self, batch: ProbeBatch, label_free: bool) -> capture:
        """Return a context for one batch of the probe.

        Raises:
            InputError: If somebody of it was watched in training.
        """
        scale: dict[str, Any] = {"scaler": None}  # nothing scales the loss here
        if label_free:
            scale |= {"reduction": "sum", "loss_scale": None}
        captured = self._captures.of(
            batch.groups,
            subjects=batch.subjects,
            targets=batch.targets,
            additivity=False,
            **scale,
        )
        self._refuse_trained_on(captured)
        return captured

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
        return self.__dict__ | {"_active": None}

    def _ranks(self) -> Ranks | None:
        """Return the processes that are watched together, if there are several.

        Raises:
            InputError: If their windows need the list of groups.
        """
        ranks = ranks_of(self.model) if self._distributed == "auto" else None
        window = self._backlog.window is not None
        if ranks is not None and window and self._fixed is None:
            raise InputError(
                f"aggregate='window' on {ranks.size} ranks needs groups={{grouping: "
                "[names]}, every group that may be seen; or pass distributed='off'."
            )
        return ranks

    def _note_people(self, captured: capture) -> None:
        """Remember whom training watches.

        Raises:
            InputError: If one of their groups was not listed.
        """
        if self._fixed is not None:
            refuse_unlisted(captured.labelling, self._fixed)
        if captured.labelling.identified:
            self._trained_on.update(captured.labelling.subjects)

    def _abandon(self) -> None:
        captured, self._active = self._active, None
        if captured is not None:
            captured.__exit__(None, None, None)
