"""Many perceptrons trained as one: weights stacked over permutations.

All retrainings of a fold have the same people, first weights, batch sizes and
dropout masks (permuted targets leave the numbers of every label alone, and random
numbers come from seed, fold and epoch); only who is in which batch, and with what
target, differs. Their steps are so one batched product per layer, and one
optimizer updates the stack, elementwise as it would each network. The numbers are
those of one training after the other, to rounding.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout

from spectral_mlops.models import MODELS
from spectral_mlops.models.mlp import Mlp
from spectral_mlops.probe import margin
from spectral_mlops.records import DEGENERATE, Quantity
from spectral_mlops.schedule import evenly_spaced
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.solve import solve
from spectral_mlops.spectra.statistics import function_of_spectra
from spectral_mlops.training.fold import FoldRun, even_order
from spectral_mlops.training.optimisation import is_plain
from spectral_mlops.training.plan import NONE, Plan
from spectral_mlops.training.retrain_statistic import Cell, Statistic

STACK_BYTES = 8 * 2**20
"""Of the weights of one stack; more of them leave the processor's caches."""
MAX_STACK = 64

Found = dict[tuple[str, str, Quantity, str, str], NDArray[np.float64]]


def can_batch(plan: Plan) -> bool:
    """Whether a stack does what the run's training does, and all have a group.

    It is of the built-in perceptron without normalisation, trained by plain steps
    (`optimisation.is_plain`); all else is trained one by one.
    """
    name = plan.config.model.name
    known = name in MODELS and MODELS.get(name).build is Mlp
    known = known and plan.config.model.settings.get("norm", "none") == "none"
    known = known and is_plain(plan.config.training)
    rows = np.arange(len(plan.cohort.people))
    return known and not any(NONE in x for x in plan.labels(rows).values())


def chunk_size(plan: Plan) -> int:
    """How many networks go into one stack."""
    fold = FoldRun(plan, 0, torch.device("cpu"))
    size = 4 * sum(weight.numel() for weight in fold.model.parameters())
    return max(1, min(MAX_STACK, STACK_BYTES // size))


def measure_batch(plans: Sequence[Plan], device: str = "cpu") -> list[Statistic]:
    """Train all folds of several plans and measure them.

    Args:
        plans: Of one run, `can_batch`, each with its targets.
        device: Where tensors live.

    Returns:
        What `measure_training` gives for each.
    """
    first = plans[0]
    found: dict[str, list[Found]] = {"train": [], "probe": []}
    for number in range(len(first.folds)):
        stack = _Stack(plans, number, torch.device(device))
        for epoch in range(first.config.training.epochs):
            stack.train_epoch(epoch)
            stack.validate()
        found["train"].append(_mean(stack.watched))
        if first.probe is not None:
            found["probe"].append(stack.probe())
    averaged = {
        Cell(source, *key): values
        for source, folds in found.items()
        for key, values in _mean(folds).items()
    }
    return [
        {cell: float(values[b]) for cell, values in averaged.items()}
        for b in range(len(plans))
    ]


class _Stack:
    """One fold of several plans."""

    def __init__(
        self, plans: Sequence[Plan], number: int, device: torch.device
    ) -> None:
        self.plan = plans[0]
        self.base = FoldRun(self.plan, number, device)
        model = self.base.model
        assert isinstance(model, Mlp)
        self.model = model
        self.names = [f"hidden_{i}" for i in range(1, model.depth + 1)] + ["output"]
        self.size = len(plans)
        self.weights = [
            parameter.detach().expand(self.size, *parameter.shape).clone()
            for name in self.names
            for parameter in (
                model.get_parameter(f"{name}.weight"),
                model.get_parameter(f"{name}.bias"),
            )
        ]
        for weight in self.weights:
            weight.requires_grad_()
        self.optimizer = self.base.optimizer
        self.optimizer.param_groups[0]["params"] = self.weights
        self.optimizer.param_groups[0]["fused"] = True  # one pass over the stack
        rows = self.base.train_rows
        self.device = device
        self.labels = [plan.labels(rows)[plan.primary] for plan in plans]
        self.targets = self._stacked([plan.targets[rows] for plan in plans])
        held = self.base.validation_rows
        self.held_targets = self._stacked([plan.targets[held] for plan in plans])
        everyone = self.plan.labels(np.arange(len(self.plan.cohort.people)))
        self.groups = {name: sorted(set(labels)) for name, labels in everyone.items()}
        self.codes = self._coded(plans, rows)
        if self.plan.probe is not None:
            aside = self.plan.cohort.rows(self.plan.probe.ids)
            self.probe_inputs = self.base._tensor(aside)
            self.probe_codes = self._coded(plans, aside)
        self.best_loss = torch.full(
            (self.size,), torch.inf, dtype=torch.float64, device=device
        )
        self.best = [weight.detach().clone() for weight in self.weights]
        self.watched: list[Found] = []

    def train_epoch(self, epoch: int) -> None:
        """Pass over the training people, watching scheduled batches of the last."""
        config = self.plan.config
        order = self._orders(epoch).to(self.device)
        batches = order.split(config.training.batch_size, dim=1)
        watched: list[int] = []
        if epoch == config.training.epochs - 1:
            watched = evenly_spaced(config.spectra.batches_per_epoch, len(batches))
        for step, index in enumerate(batches):
            targets = self.targets.gather(1, index).flatten()
            self.optimizer.zero_grad()
            inputs, outputs = self._forward(self.base.inputs[index], self.weights, True)
            logits = outputs[-1].flatten(0, 1)
            loss = cross_entropy(logits, targets, reduction="sum") / index.shape[1]
            if step in watched:
                for output in outputs:
                    output.retain_grad()
            loss.backward()
            if step in watched:
                adjoints = [x.grad for x in outputs if x.grad is not None]
                codes = {name: x.gather(1, index) for name, x in self.codes.items()}
                self.watched.append(self._divergences(inputs, adjoints, codes))
            self.optimizer.step()

    def validate(self) -> None:
        """Keep each network's weights of the lowest validation loss."""
        with torch.no_grad():
            held = self.base.validation_inputs
            shared = held.expand(self.size, *held.shape)
            logits = self._forward(shared, self.weights, False)[1][-1]
            said = logits.double().softmax(-1)
            said = said.gather(-1, self.held_targets.unsqueeze(-1)).squeeze(-1)
            loss = -said.clamp_min(torch.finfo(torch.float64).tiny).log().mean(1)
            better = loss < self.best_loss
            self.best_loss = torch.where(better, loss, self.best_loss)
            for best, weight in zip(self.best, self.weights, strict=True):
                best[better] = weight[better]

    def probe(self) -> Found:
        """Pass the held-out people through the chosen weights."""
        shared = self.probe_inputs.expand(self.size, *self.probe_inputs.shape)
        weights = [weight.requires_grad_() for weight in self.best]
        inputs, outputs = self._forward(shared, weights, False)
        total = margin(outputs[-1].flatten(0, 1)).sum()
        adjoints = torch.autograd.grad(total, outputs)
        return self._divergences(inputs, adjoints, self.probe_codes)

    def _forward(
        self, x: Tensor, weights: Sequence[Tensor], training: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs and the outputs of every layer, ``[B, N, d]`` each."""
        inputs, outputs = [], []
        last = len(self.names) - 1
        for i in range(last + 1):
            weight, bias = weights[2 * i : 2 * i + 2]
            inputs.append(x)
            z = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            outputs.append(z)
            if i == last:
                break
            x = self.model.activation(z)
            if training:  # the same mask for all networks, drawn as each would
                x = x * dropout(x.new_ones(x.shape[1:]), self.model.dropout.p, True)
        return inputs, outputs

    def _orders(self, epoch: int) -> Tensor:
        """Everybody's place in the epoch, ``[B, n]``; each as if drawn alone."""
        self.base._seed(epoch)
        state = torch.get_rng_state()
        if all(labels == self.labels[0] for labels in self.labels):
            return even_order(self.labels[0]).expand(self.size, -1)
        orders = []
        for labels in self.labels:
            torch.set_rng_state(state)
            orders.append(even_order(labels))
        return torch.stack(orders)

    def _divergences(
        self,
        inputs: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        codes: Mapping[str, Tensor],
    ) -> Found:
        """Compare the groups of one batch, network by network; NaN where it cannot.

        Rows of other people are set to zero, which changes no singular value.
        """
        config = self.plan.config
        function = function_of_spectra(config.comparison.divergence)
        chosen = config.spectra.layers or self.names
        found: Found = {}
        layers = [
            layer
            for layer in zip(self.names, inputs, adjoints, strict=True)
            if layer[0] in chosen
        ]
        for grouping, groups in self.groups.items():
            members = [codes[grouping] == k for k in range(len(groups))]
            there = [member.any(1).cpu() for member in members]
            for name, a, d in layers:
                with torch.no_grad():
                    solved = _spectra(self.plan.quantities, a, d, members)
                for quantity, spectra in solved.items():
                    for i, j in combinations(range(len(groups)), 2):
                        p, q = spectra[i], spectra[j]
                        lacks = ~(there[i] & there[j]) | (_flat(p) & _flat(q))
                        value = function(p, q).masked_fill(lacks, torch.nan)
                        key = (grouping, name, quantity, groups[i], groups[j])
                        found[key] = value.numpy()
        return found

    def _coded(
        self, plans: Sequence[Plan], rows: NDArray[np.intp]
    ) -> dict[str, Tensor]:
        """Number of everybody's group in every plan, ``[B, n]`` per grouping."""
        coded = {}
        for name, groups in self.groups.items():
            numbers = {group: k for k, group in enumerate(groups)}
            labels = [plan.labels(rows)[name] for plan in plans]
            coded[name] = self._stacked([[numbers[x] for x in own] for own in labels])
        return coded

    def _stacked(self, rows: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).to(self.device)


def _spectra(
    quantities: Sequence[Quantity], a: Tensor, d: Tensor, members: Sequence[Tensor]
) -> dict[Quantity, list[Tensor]]:
    """Singular values of the groups of every network, ``[B, R]`` each."""
    factors = [
        LayerFactors(
            (number, network),
            (a[network] * member[network].unsqueeze(1)).unsqueeze(1),
            (d[network] * member[network].unsqueeze(1)).unsqueeze(1),
        )
        for number, member in enumerate(members)
        for network in range(len(a))
    ]
    everyone = Groups(a.shape[1], [None])
    solved = solve(reduce_layers(factors, everyone, quantities))
    found = {(one.key.quantity, one.key.layer): one.values for one in solved}
    return {
        quantity: [
            torch.from_numpy(
                np.stack([found[quantity, (k, network)] for network in range(len(a))])
            )
            for k in range(len(members))
        ]
        for quantity in quantities
    }


def _flat(values: Tensor) -> Tensor:
    """Whether a spectrum has no shape (`Spectrum.degenerate`), ``[B]``."""
    return ~(values[:, 1:] > DEGENERATE * values[:, :1]).any(1)


def _mean(parts: Sequence[Found]) -> Found:
    """Mean over those batches, or folds, that have a value."""
    result: Found = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = np.stack([part[key] for part in parts if key in part])
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            result[key] = np.where(known, values, 0.0).sum(0) / known.sum(0)
    return result
