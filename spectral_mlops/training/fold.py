"""One fold: a network, its people, and the monitor that watches it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_mlops.cohorts import Adjustment, FeatureScaler
from spectral_mlops.hooks import capture
from spectral_mlops.models import build_model
from spectral_mlops.monitor import EpochSpectra, SpectralMonitor
from spectral_mlops.schedule import EvenlySpaced
from spectral_mlops.training.details import FoldDetails
from spectral_mlops.training.distributed import Team, check_separable
from spectral_mlops.training.held_out import HeldOut, MixedPeople
from spectral_mlops.training.inputs import (
    Inputs,
    ScaledPeople,
    inputs_of_people,
    lengths_of,
    pieces,
)
from spectral_mlops.training.optimisation import Optimisation
from spectral_mlops.training.performance import Said
from spectral_mlops.training.plan import Plan


class FoldRun:
    """Train one network on the training people of one fold.

    Everything fitted is fitted on those. Random numbers are drawn from the seeds,
    the fold and the epoch alone, so that a network does not depend on its siblings.

    Args:
        plan: The run.
        number: Which fold, counted from 0.
        device: Where tensors live.
        seed: Which of the fold's ``training.seeds`` networks, counted from 0: they
            differ in first weights, batch order and dropout, and in nothing else.
        targets: Target of every person, in the cohort's order, to train on instead of
            their own (as some controls do).
        watched: Whether training batches are watched.
        details: Whether directions and influence are kept, as the settings say.
        team: The processes that share its batches; this one alone if not given.
    """

    def __init__(
        self,
        plan: Plan,
        number: int,
        device: torch.device,
        *,
        seed: int = 0,
        targets: NDArray[Any] | None = None,
        watched: bool = True,
        details: bool = False,
        team: Team | None = None,
    ) -> None:
        self.plan, self.number, self.device = plan, number, device
        self.seed, self.team = seed, team or Team()
        config, fold = plan.config, plan.folds[number]
        self.train_rows = plan.cohort.rows(fold.train_ids)
        self.validation_rows = plan.cohort.rows(fold.validation_ids)
        self.adjustment = plan.adjustment(self.train_rows)
        self.scaler = fit_scaler(plan, self.train_rows, self.adjustment)
        self._seed(epoch=-1)
        self.model = build_model(config.model, self.scaler.inputs, plan.task.outputs)
        self.model.to(device)
        if self.team.size > 1:
            check_separable(self.model)
        learned = plan.targets if targets is None else targets
        self.scale = plan.task.scale(learned[self.train_rows])
        self.learned = plan.task.learned(learned[self.train_rows], self.scale)
        self._strata = torch.from_numpy(plan.task.strata(learned)[self.train_rows])
        self.optimisation = Optimisation(
            self.model,
            config.training,
            device,
            self.learned,
            len(plan.classes),
            shared=self.team.size > 1,
        )
        self.optimizer = self.optimisation.optimizer
        self.monitor = SpectralMonitor(
            self.model,
            quantities=plan.quantities,
            schedule=EvenlySpaced(config.spectra.batches_per_epoch),
            layers=config.spectra.layers,
            reduction="mean",
            scaler=self.optimisation.scaler,
            missing="group",
            null_batches=config.spectra.batches_per_epoch,
            strata=plan.strata(),
            families=plan.families,
            seed=config.comparison.seed,
            epochs=None if watched else (),
            distributed="off",  # the shares of a batch are one batch: `Team.join`
        )
        self.inputs = self._inputs(self.train_rows)
        self.targets = torch.from_numpy(self.learned).to(device)
        self.validation_inputs = self._inputs(self.validation_rows)
        self.lazy = isinstance(self.inputs, ScaledPeople)
        self.held_out = self._make_held_out()
        self.details = FoldDetails(plan, number, seed) if details else None
        self.best_loss, self.best_epoch, self.stopped = float("inf"), -1, False
        self.best_weights = copy.deepcopy(self.model.state_dict())
        self.initial_weights = copy.deepcopy(self.model.state_dict())

    def train_epoch(self, epoch: int) -> tuple[EpochSpectra, float]:
        """Pass over the training people once, watching scheduled batches.

        Args:
            epoch: Counted from 0.

        Returns:
            What was seen, and the loss per person, a mean by the weights of their
            classes.
        """
        self._seed(epoch)
        self.model.train()
        groups = self.plan.labels(self.train_rows)[self.plan.primary]
        batches = self._batches(even_order(groups))
        if self.team.rank:  # dropout of its own; the order of people is that of all
            self._seed(epoch, self.team.rank)
        how, team = self.optimisation, self.team
        masses = how.masses([self.learned[batch.numpy()] for batch in batches])
        self.monitor.begin_epoch(epoch, steps=len(batches))
        total = torch.zeros((), device=self.device)
        for number, (batch, mass) in enumerate(zip(batches, masses, strict=True)):
            share = team.share(batch)
            rows = self.train_rows[share.numpy()]
            people = self.plan.cohort.people.index[rows]
            targets, labels = self.targets[share], self.plan.labels(rows)
            scale = how.scale_of(mass)
            how.begin(epoch, number, len(batches))
            strata = self._strata[share]
            with self.monitor.watch(labels, people, strata, scale) as seen:
                with team.together():
                    if len(share):
                        with how.precision():
                            outputs = self.model(self.inputs[share])
                            loss = how.loss(outputs, targets, mass)
                        how.backward(loss)
                        total += loss.detach() * mass
                if seen is not None:
                    self._join(seen)
                if self.details is not None and seen is not None:
                    self.details.step(seen, self.optimizer)
            if how.ends_step(number, len(batches)):
                team.add_gradients(self.model)
            how.end(number, len(batches))
        if self.details is not None:
            self.details.end_epoch(epoch, self.model, self.held_out or ())
        loss_of_all = team.total(float(total)) / how.masses([self.learned])[0]
        return self.monitor.collect(epoch), loss_of_all

    def validate(self, epoch: int) -> Said:
        """Predict the validation people, and keep the weights of the lowest loss.

        A network that has run out of patience goes on only as long as its siblings
        do; its weights are chosen.
        """
        said = self._predict(self.validation_rows, self.validation_inputs)
        patience = self.plan.config.training.patience
        if self.stopped:
            return said
        if said.loss < self.best_loss:
            self.best_loss, self.best_epoch = said.loss, epoch
            self.best_weights = copy.deepcopy(self.model.state_dict())
        elif patience is not None:
            self.stopped = epoch - self.best_epoch >= patience
        return said

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, after an epoch."""
        return {
            "model": self.model.state_dict(),
            **self.optimisation.state_dict(),
            "monitor": self.monitor.state_dict(),
            "best": (self.best_loss, self.best_epoch, self.best_weights),
            "stopped": self.stopped,
            "details": self.details.state_dict() if self.details else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the fold's people are those it has."""
        self.model.load_state_dict(state["model"])
        self.optimisation.load_state_dict(state)
        self.stopped = state["stopped"]
        self.monitor.load_state_dict(state["monitor"])
        self.best_loss, self.best_epoch, weights = state["best"]
        self.best_weights = {k: w.to(self.device) for k, w in weights.items()}
        if self.details is not None:
            self.details.load_state_dict(state["details"])

    def restore_best(self) -> None:
        """Load the weights chosen by validation loss."""
        self.model.load_state_dict(self.best_weights)

    def probe(self, epoch: int) -> EpochSpectra | None:
        """Pass the held-out people, if there are any; nothing of the model changes."""
        held = self.held_out
        return None if held is None else self.monitor.probe(held, epoch=epoch)

    def predict_probe(self) -> Said | None:
        """Predict the held-out people, if there are any."""
        if self.plan.probe is None or self.held_out is None:
            return None
        inputs = self.held_out.inputs
        assert not isinstance(inputs, MixedPeople)
        return self._predict(self.plan.cohort.rows(self.plan.probe.ids), inputs)

    def _join(self, seen: capture) -> None:
        """Put a watched batch together on the first process; the others drop it."""
        self.team.join(seen)
        if not self.team.first:
            self.monitor.discard()
            self.monitor.additivity = {}  # the first batch has shown it

    def _batches(self, order: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split an epoch; batch statistics need a second person in the last batch."""
        size = self.plan.config.training.batch_size
        batches = order.split(size)
        if len(order) % size == 1 and _uses_batch_statistics(self.model):
            return (*batches[:-2], torch.cat(batches[-2:]))
        return batches

    def _predict(self, rows: NDArray[np.intp], inputs: Inputs) -> Said:
        self.model.eval()
        with torch.no_grad():
            size = self.plan.config.training.batch_size
            outputs = torch.cat([self.model(x) for x in pieces(inputs, size)])
        ids = tuple(self.plan.cohort.people.index[rows])
        task, targets = self.plan.task, self.plan.targets[rows]
        return task.said(ids, targets, outputs, self.scale)

    def _make_held_out(self) -> HeldOut | None:
        if self.plan.probe is None:
            return None
        rows = self.plan.cohort.rows(self.plan.probe.ids)
        return HeldOut(
            self._inputs(rows),
            torch.from_numpy(self.plan.target_strata[rows]),
            self.plan.labels(rows),
            [str(who) for who in self.plan.probe.ids],
            self.plan.config.training.batch_size if self.lazy else None,
            torch.arange(len(rows)),
        )

    def _inputs(self, rows: NDArray[np.intp]) -> Inputs:
        return inputs_of_people(
            self.plan.cohort, self.scaler, rows, self.device, self.adjustment
        )

    def _tensor(self, rows: NDArray[np.intp]) -> torch.Tensor:
        people = ScaledPeople(
            self.plan.cohort, self.scaler, rows, self.device, self.adjustment
        )
        return people.whole()

    def _seed(self, epoch: int, rank: int = 0) -> None:
        words = [self.plan.config.training.seed, self.number, epoch + 1]
        # words of their own, not seed + 1: runs of other seeds share no network
        words += [self.seed] * (self.seed > 0)
        key = (rank,) if rank else ()
        state = np.random.SeedSequence(words, spawn_key=key)
        torch.manual_seed(int(state.generate_state(1)[0]))


def fit_scaler(
    plan: Plan, rows: NDArray[np.intp], adjustment: Adjustment | None = None
) -> FeatureScaler:
    """Fit what goes before the network on some people.

    Args:
        plan: The run.
        rows: Of the training people.
        adjustment: What is taken out before, fitted on them too if not given.
    """
    cohort = plan.cohort
    adjustment = adjustment or plan.adjustment(rows)
    if plan.layout == "volume" and adjustment == Adjustment():
        return FeatureScaler.fit_volumes(cohort.features, rows)
    features = adjustment.apply(cohort, rows)
    if plan.layout == "volume":
        return FeatureScaler.fit_volumes(features, np.arange(len(rows)))
    return FeatureScaler.fit(
        features,
        layout=plan.layout,
        lengths=lengths_of(cohort, rows),
        order=cohort.space.order,
    )


def _uses_batch_statistics(model: torch.nn.Module) -> bool:
    kind = torch.nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) for module in model.modules())


def even_order(groups: Sequence[str]) -> torch.Tensor:
    """Shuffle people so that every batch has the groups in their overall shares.

    The spectrum of a group depends on how many of its people are in a batch; with
    shares that vary from batch to batch, curves would show the shares. Members of
    a group stand at even distances, in random order, from a random start.

    Args:
        groups: Label of each person, length ``n``.

    Returns:
        A permutation of ``n`` people, from torch's random state.
    """
    place = torch.empty(len(groups))
    for group in sorted(set(groups)):
        members = torch.tensor([i for i, label in enumerate(groups) if label == group])
        steps = torch.randperm(len(members)) + torch.rand(())
        place[members] = steps / len(members)
    return place.argsort()
