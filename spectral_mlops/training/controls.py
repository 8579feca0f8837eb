"""Controls: what else could make groups this different in the trained networks.

Most only pass other people, other labels or other weights through the probe's path;
`unrelated-target` alone trains again, unwatched. Each gives the primary outcome under
the control. *The trained networks beat a control* if trained less control is rare, p
at most ``controls.level``, among the same relabellings (`Outcome.beyond`). Each of the
two is standardised by its own relabellings, as other networks have another scale;
surrogate people pass through the same networks and are measured on the scale of the
real ones. People of equal loss are fewer people with relabellings of their own: among
them the difference has to show by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_mlops.inference.exchange import draw_exchanges, kinds_of
from spectral_mlops.monitor import SpectralMonitor
from spectral_mlops.training.controls_input import input_comparisons
from spectral_mlops.training.controls_people import (
    equal_sizes,
    match_by_loss,
    nuisance_columns,
    nuisance_groups,
    permuted_within,
    random_halves,
    surrogate_mixing,
)
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.held_out import HeldOut
from spectral_mlops.training.networks import mean_comparisons
from spectral_mlops.training.outcome import (
    Outcome,
    mean_outcome,
    no_outcome,
    outcome_of,
)
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.verdict import ControlRow
from spectral_mlops.validity import with_families

FEWEST = 6
"""People per group below which a control of fewer people says nothing."""

Job = Callable[[], Iterator[ControlRow]]


class Controls:
    """Hold a primary outcome against its controls.

    Args:
        plan: The run; it has a probe.
        networks: Of all folds and seeds, with the weights of the chosen checkpoints.
        trained: The primary outcome.
        init: The same at the untrained networks.
    """

    def __init__(
        self, plan: Plan, networks: Sequence[FoldRun], trained: Outcome, init: Outcome
    ) -> None:
        self._plan, self._networks = plan, networks
        self._trained, self._init = trained, init
        self._quantity, self._level = plan.primary_quantity, plan.config.controls.level
        assert plan.probe is not None
        self._rows = plan.cohort.rows(plan.probe.ids)
        self._ids = [str(who) for who in plan.probe.ids]
        self._labels = plan.labels(self._rows)[plan.primary]
        self._targets = plan.target_strata[self._rows]
        strata, within = self._strata_of(self._labels)
        self._within, self._families, self._strata = with_families(
            self._ids, within, strata, plan.families
        )

    def rows(
        self, progress: Callable[[str, int, int], None] | None = None
    ) -> list[ControlRow]:
        """Compute every control that is switched on.

        Args:
            progress: Told ``("controls", done, total)``.
        """
        settings = self._plan.config.controls
        jobs: dict[str, Job] = {
            "init": self._init_rows,
            "input_surrogate": self._surrogate_rows,
            "loss_matched": self._loss_rows,
            "input_spectrum": self._input_rows,
            "matched": self._matched_rows,
            "permuted": self._permuted_rows,
            "pseudo": self._pseudo_rows,
            "nuisance": self._nuisance_rows,
            "unrelated_target": self._unrelated_rows,
        }
        wanted = [job for name, job in jobs.items() if getattr(settings, name)]
        found: list[ControlRow] = []
        for number, job in enumerate(wanted):
            if progress is not None:
                progress("controls", number, len(wanted))
            found += job()
        if progress is not None:
            progress("controls", len(wanted), len(wanted))
        return found

    # -- one method per control ---------------------------------------------------

    def _init_rows(self) -> Iterator[ControlRow]:
        yield self._subtracted(
            "init",
            self._init,
            "training made the groups more detectable",
            "the untrained networks show as much",
        )

    def _surrogate_rows(self) -> Iterator[ControlRow]:
        names = {"input-surrogate": self._labels, "input-pooled": ["all"] * len(self)}
        draws: dict[str, list[Outcome]] = {name: [] for name in names}
        random = self._random("input-surrogate")
        for _ in range(self._plan.config.controls.draws):
            for name, groups in names.items():
                mixing = torch.from_numpy(surrogate_mixing(groups, random))
                outcome = self._probe(mixing=mixing)
                draws[name].append(outcome.on_scale_of(self._trained))
        found = {name: mean_outcome(outcomes) for name, outcomes in draws.items()}
        yield self._subtracted(
            "input-surrogate",
            found["input-surrogate"],
            "more than the groups' input means and covariances give",
            "Gaussian inputs with the groups' means and covariances give as much",
        )
        yield self._meaningless("input-pooled", found["input-pooled"])

    def _loss_rows(self) -> Iterator[ControlRow]:
        said = [p for one in self._networks if (p := one.predict_probe()) is not None]
        losses = np.mean([one.losses for one in said], axis=0)
        matches = match_by_loss(losses, self._labels, self._families)
        if len(matches) < FEWEST:
            outcome = no_outcome(
                f"{len(matches)} people per group have an equal loss" + self._kept_whole
            )
        else:
            outcome = self._probe(sorted(i for match in matches for i in match))
        shown = bool(outcome.p <= self._level)
        says = "a difference stays" if shown else "no difference is shown"
        passes = shown if np.isfinite(outcome.p) else None
        says += " among people of equal loss"
        yield ControlRow("loss-matched", outcome, None, passes, says)

    def _input_rows(self) -> Iterator[ControlRow]:
        settings = self._plan.config.comparison
        firsts = [one for one in self._networks if one.seed == 0]  # one per fold
        for rows in ("uncentred", "centred"):
            compared = [
                input_comparisons(
                    self._held_out(one).compressed(),
                    dict(zip(self._ids, self._labels, strict=True)),
                    dict(zip(self._ids, self._within, strict=True)),
                    rows=rows,
                    grouping=self._plan.primary,
                    strata=self._strata,
                    families=self._families,
                    permutations=settings.permutations,
                    seed=settings.seed,
                    divergence=settings.divergence,
                )
                for one in firsts
            ]
            together = mean_comparisons(firsts, compared)
            outcome = outcome_of(together, "activation", self._plan.primary)
            name = "input" if rows == "uncentred" else "input-centred"
            what = "the inputs themselves" + (
                ", less means," if name != "input" else ""
            )
            yield self._shown(name, outcome, f"{what} differ")

    def _matched_rows(self) -> Iterator[ControlRow]:
        chosen = equal_sizes(self._labels, self._random("matched"), self._families)
        each = len(chosen) // len(set(self._labels))
        if len(chosen) == len(self):
            yield ControlRow("matched", self._trained, None, None, "sizes are equal")
        elif each < FEWEST:
            outcome = no_outcome(
                f"groups of equal size have {each} people" + self._kept_whole
            )
            yield ControlRow("matched", outcome, None, None, "")
        else:
            outcome = self._probe(chosen)
            yield self._shown("matched", outcome, "groups of equal size differ")

    def _permuted_rows(self) -> Iterator[ControlRow]:
        random = self._random("permuted")
        labels = permuted_within(self._labels, self._within, random, self._families)
        yield self._meaningless("permuted", self._probe(labels=labels))

    def _pseudo_rows(self) -> Iterator[ControlRow]:
        random = self._random("pseudo")
        labels = random_halves(len(self), random, self._families)
        yield self._meaningless("pseudo", self._probe(labels=labels))

    def _nuisance_rows(self) -> Iterator[ControlRow]:
        people = self._plan.cohort.people.iloc[self._rows]
        named = self._plan.config.controls.nuisance_columns
        for column in nuisance_columns(people, named):
            if column == self._plan.primary:
                continue
            groups = nuisance_groups(people[column])
            sizes = {g: groups.count(g) for g in groups if g is not None}
            large = {g for g, size in sizes.items() if size >= FEWEST}
            chosen = [i for i, group in enumerate(groups) if group in large]
            if len(large) < 2:
                outcome = no_outcome(f"fewer than two groups of {FEWEST} people")
            else:
                labels = [str(group) for group in groups]
                outcome = self._probe(chosen, labels=labels)
            yield self._shown(f"nuisance {column}", outcome, f"{column} is visible too")

    def _unrelated_rows(self) -> Iterator[ControlRow]:
        targets = self._random_targets()
        models = []
        for one in self._networks:
            other = FoldRun(
                self._plan,
                one.number,
                one.device,
                seed=one.seed,
                targets=targets,
                watched=False,
            )
            for epoch in range(one.best_epoch + 1):
                other.train_epoch(epoch)
            models.append(other.model)
        yield self._subtracted(
            "unrelated-target",
            self._probe(models=models),
            "more than networks trained on a random target show",
            "networks trained on a random target show as much",
        )

    # -- inside -------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def _kept_whole(self) -> str:
        return " in whole families" if self._families else ""

    def _probe(
        self,
        chosen: Sequence[int] | None = None,
        *,
        labels: Sequence[str] | None = None,
        mixing: Tensor | None = None,
        models: Sequence[torch.nn.Module] | None = None,
    ) -> Outcome:
        """Pass people through every network and compare their groups.

        Args:
            chosen: Which people; all if not given.
            labels: Group of each of all people; their own if not given.
            mixing: Multiplies the inputs of all people from the left.
            models: Instead of the networks' own.
        """
        plan, settings = self._plan, self._plan.config.comparison
        rows = list(range(len(self))) if chosen is None else list(chosen)
        groups = self._labels if labels is None else labels
        shown = [groups[i] for i in rows]
        strata = {  # a stratum that is the grouping itself (site) would hold it still
            name: column
            for name, column in plan.strata().items()
            if not _same_groups(shown, [column[self._ids[i]] for i in rows])
        }
        models = models or [one.model for one in self._networks]
        compared = []
        for one, model in zip(self._networks, models, strict=True):
            held = self._held_out(one).chosen(rows, {plan.primary: groups})
            held = held if mixing is None else held.mixed(mixing)
            monitor = SpectralMonitor(
                model,
                quantities=(self._quantity,),
                layers=plan.config.spectra.layers,
                missing="group",
                pooled=False,
                strata=strata,
                families=plan.families,
            )
            compared.append(
                monitor.probe(held).comparisons(
                    settings.permutations,
                    seed=settings.seed,
                    divergence=settings.divergence,
                    relabel="everyone",
                )
            )
        together = mean_comparisons(self._networks, compared)
        return outcome_of(together, self._quantity, plan.primary)

    def _subtracted(self, name: str, outcome: Outcome, yes: str, no: str) -> ControlRow:
        """Return the row of a control that is subtracted from the trained networks."""
        beyond = self._trained.beyond(outcome)
        if not np.isfinite(beyond.p):
            outcome = (
                outcome if outcome.reason else replace(outcome, reason=beyond.reason)
            )
            return ControlRow(name, outcome, None, None, "")
        passes = bool(beyond.p <= self._level)
        return ControlRow(name, outcome, beyond, passes, yes if passes else no)

    def _shown(self, name: str, outcome: Outcome, says: str) -> ControlRow:
        """Return the row of a control that stands beside."""
        shown = outcome.p <= self._level
        return ControlRow(
            name, outcome, None, None, says if shown else f"not shown: {says}"
        )

    def _meaningless(self, name: str, outcome: Outcome) -> ControlRow:
        """Return the row of groups that mean nothing."""
        says = "no difference is there, and none is shown"
        if outcome.p <= self._level:
            says = f"no difference is there; chance shows one in {1 / self._level:.0f}"
        return ControlRow(name, outcome, None, None, says)

    def _strata_of(self, labels: Sequence[str]) -> tuple[str, list[str]]:
        """Return what labels move within: its name, and each person's stratum."""
        columns = {
            "target": [str(target) for target in self._targets],
            **{
                name: [column[person] for person in self._ids]
                for name, column in self._plan.strata().items()
            },
        }
        used = {n: c for n, c in columns.items() if not _same_groups(labels, c)}
        within = [" × ".join(cell) for cell in zip(*used.values(), strict=True)]
        return " × ".join(used) or "none", within or [""] * len(self)

    def _random_targets(self) -> NDArray[np.int64]:
        """Deal everybody's targets anew, those of a family to families of its size."""
        ids = [str(who) for who in self._plan.cohort.people.index]
        families = self._plan.families
        kin = [families[who] for who in ids] if families else None
        random = self._random("unrelated-target")
        (giver,) = draw_exchanges(kinds_of([""] * len(ids), kin), 1, random)
        return self._plan.targets[giver]

    def _held_out(self, network: FoldRun) -> HeldOut:
        assert network.held_out is not None
        return network.held_out

    def _random(self, name: str) -> np.random.Generator:
        """Return random numbers of one control's own."""
        letters = [ord(letter) for letter in name]
        return np.random.default_rng([self._plan.config.comparison.seed, *letters])


def _same_groups(a: Sequence[str], b: Sequence[str]) -> bool:
    pairs = set(zip(a, b, strict=True))
    return len(pairs) == len(set(a)) == len(set(b))
