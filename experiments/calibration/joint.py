"""Tests of whole trainings: folds and seeds, epochs, layers, sites, re-formed losses.

Networks are trained many as one (`networks`); what they show, its relabellings and p
come from the package, network by network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch

from experiments.calibration.networks import (
    EPOCHS,
    FEATURES,
    FOLDS,
    HELD_OUT,
    SHAPE,
    TRAINED_ON,
    Cohort,
    Task,
    Trained,
    fold_tasks,
    plain,
    sites,
    train_many,
)
from experiments.calibration.trained import QUANTITIES, combined_p
from experiments.power.stack import Layers, put_back
from spectral_mlops import SpectralMonitor
from spectral_mlops.inference.comparison import Comparison, average, to_divergences
from spectral_mlops.inference.significance import combined_z, p_value
from spectral_mlops.models.mlp import Mlp
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.training.trajectories import trajectory_table

PACKAGE = "the package"
"""Begins the name of every method that is the package's."""
SEEDS = 3
"""Networks per fold of the joint test."""
WATCHED = tuple(range(1, EPOCHS, 2))

Found = dict[tuple[str, str], float]
"""p by method and quantity."""
Comparisons = list[Comparison]


@dataclass(frozen=True)
class Cell:
    """One kind of test.

    Attributes:
        title: In tables.
        tasks: Networks of one data set, from its seed.
        kept: Epochs whose weights are looked at.
        test: From what they show to p by method and quantity; methods of the
            package begin with its name, the others are there to be compared.
    """

    title: str
    tasks: Callable[[int], list[Task]]
    kept: tuple[int, ...]
    test: Callable[["Shown"], Found]


class Shown:
    """What the networks of one data set show of its held-out people.

    Args:
        tasks: Its networks.
        trained: Those of several data sets.
        start: Place of its first one.
        seed: Of the data set and of its relabellings.
        permutations: Relabellings beside the observed labels.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        trained: Trained,
        start: int,
        seed: int,
        permutations: int,
    ) -> None:
        self.cohort: Cohort = tasks[0].cohort
        self.networks = range(start, start + len(tasks))
        self.trained, self.seed, self.permutations = trained, seed, permutations

    def probe(
        self,
        layers: Layers,
        place: int,
        adjoint: Literal["margin", "reformed"] = "margin",
    ) -> EpochSpectra:
        """Pass the held-out people through one network."""
        model = Mlp(FEATURES, 2, SHAPE)
        put_back(model, layers, place)
        held = slice(TRAINED_ON, TRAINED_ON + HELD_OUT)
        ids = [f"s{i:03d}" for i in range(HELD_OUT)]
        sites_of = dict(zip(ids, self.cohort.sites[held].tolist(), strict=True))
        strata = {"site": {who: str(site) for who, site in sites_of.items()}}
        several = len(set(sites_of.values())) > 1
        monitor = SpectralMonitor(
            model, pooled=False, epochs=(), strata=strata if several else None
        )
        classes = self.cohort.classes[held]
        batch = (self.cohort.inputs[held], classes, {"class": classes.tolist()}, ids)
        loss = torch.nn.CrossEntropyLoss()
        return monitor.probe([batch], loss, adjoint=adjoint)

    def compared(self, shown: EpochSpectra, seed: int | None = None) -> Comparisons:
        """Under the data set's relabellings, or those of another seed."""
        chosen = self.seed if seed is None else seed
        return shown.comparisons(self.permutations, seed=chosen)


# -- tests -----------------------------------------------------------------------


def p_of(comparisons: Comparisons, method: str, grouping: str = "class") -> Found:
    """Combined p over layers, by quantity."""
    there = {item.quantity for item in comparisons if item.has_null}
    return {
        (method, quantity): combined_p(comparisons, grouping, quantity)
        for quantity in QUANTITIES
        if quantity in there
    }


def reformed(shown: Shown) -> Found:
    """Loss gradients of held-out people, adjoints moved with the labels or left."""
    seen = shown.probe(shown.trained.best, shown.networks[0], "reformed")
    assert seen.reformed is not None
    own = seen.reformed.comparisons(shown.permutations, seed=shown.seed)
    left = [x for x in shown.compared(seen) if x.quantity != "activation"]
    return p_of(own, PACKAGE, "target") | p_of(left, "adjoints stay behind")


def folds_and_seeds(shown: Shown) -> Found:
    """Seeds averaged, then folds, under the same relabellings; and runs as units."""
    runs = [shown.compared(shown.probe(shown.trained.best, i)) for i in shown.networks]
    folds = [runs[k * SEEDS : (k + 1) * SEEDS] for k in range(FOLDS)]
    joint = average([average(fold) for fold in folds])
    assert all(item.testable for item in joint)
    return p_of(joint, PACKAGE) | sign_flip(runs, shown.seed, shown.permutations)


def sign_flip(runs: Sequence[Comparisons], seed: int, flips: int) -> Found:
    """Take runs for units: is their mean z above zero, by flipping its signs?"""
    signs = np.random.default_rng([5, seed]).choice([-1.0, 1.0], (flips, len(runs)))
    signs = np.concatenate([np.ones((1, len(runs))), signs])
    found = {}
    for quantity in QUANTITIES:
        z = [
            combined_z(
                np.stack(
                    [x.values for x in run if x.quantity == quantity and x.has_null],
                    axis=1,
                )
            )[0]
            for run in runs
        ]
        name = f"sign-flip over {len(runs)} runs"
        found[name, quantity] = float(p_value((signs * np.array(z)).mean(1)))
    return found


def over_epochs(shown: Shown) -> Found:
    """Epochs averaged, and adjusted: the package's ways, and ways that look alike."""
    place = shown.networks[0]
    seen = {e: shown.probe(shown.trained.epochs[e], place) for e in WATCHED}
    along = {e: shown.compared(x) for e, x in seen.items()}
    anew = [
        shown.compared(x, seed=10**6 + 100 * shown.seed + e) for e, x in seen.items()
    ]
    found = p_of(average([*along.values()]), f"{PACKAGE}: mean over epochs")
    found |= p_of(average(anew), "mean over epochs, labels drawn anew in each")
    table = trajectory_table(along)
    single = [row for x in along.values() for row in to_divergences(x)]
    last = to_divergences(along[WATCHED[-1]])
    for quantity in QUANTITIES:
        rows = table[table["quantity"] == quantity]
        own, every = ([r for r in x if r.quantity == quantity] for x in (last, single))
        ways: Mapping[str, Sequence[float]] = {
            f"{PACKAGE}: max-T over layers": [r.p_max for r in own],
            "least p of all layers": [r.p for r in own],
            f"{PACKAGE}: max-T over epochs and layers": rows["p_max"].tolist(),
            f"{PACKAGE}: clusters over epochs and layers": rows["cluster_p"].tolist(),
            "least p of all epochs and layers": [r.p for r in every],
        }
        found |= {(way, quantity): least(p) for way, p in ways.items()}
    return found


def least(p: Sequence[float]) -> float:
    """The smallest p there is; 1 where there is none, as without a cluster."""
    known = pd.Series(p, dtype=float).dropna()
    return float(known.min()) if len(known) else 1.0


def confounded(shown: Shown) -> Found:
    """Groups that depend on the site: relabelled within sites, and anywhere."""
    seen = shown.probe(shown.trained.best, shown.networks[0])
    anywhere = seen.comparisons(shown.permutations, strata=None, seed=shown.seed)
    return p_of(shown.compared(seen), PACKAGE) | p_of(anywhere, "no strata of site")


def one_network(draw: Callable[[int], Cohort]) -> Callable[[int], list[Task]]:
    """One network per data set, on four of five folds."""
    return lambda seed: fold_tasks(draw(seed), seed, 1)[:1]


CELLS = {
    "reformed": Cell(
        "held-out people, classes as groups, the loss's own gradients",
        one_network(plain),
        (),
        reformed,
    ),
    "folds-seeds": Cell(
        f"held-out people, {FOLDS} folds × {SEEDS} seeds",
        lambda seed: fold_tasks(plain(seed), seed, SEEDS),
        (),
        folds_and_seeds,
    ),
    "epochs": Cell(
        f"held-out people, {len(WATCHED)} epochs, layers apart",
        one_network(plain),
        WATCHED,
        over_epochs,
    ),
    "sites": Cell(
        "held-out people, classes that depend on the site",
        one_network(sites),
        (),
        confounded,
    ),
}


def measure(cell: Cell, seeds: Sequence[int], permutations: int) -> list[Found]:
    """Train the networks of some data sets as one, and test each data set."""
    tasks = [cell.tasks(seed) for seed in seeds]
    trained = train_many([task for own in tasks for task in own], cell.kept)
    found, start = [], 0
    for seed, own in zip(seeds, tasks, strict=True):
        found.append(cell.test(Shown(own, trained, start, seed, permutations)))
        start += len(own)
    return found
