"""Cohorts without a group difference, and tests of them: valid ones and others.

No network: rows of A and Δ are drawn per person, as a layer of width 6 × 5 might
show them. A cell is a way to draw a cohort and the methods that are tried on it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.spectra.kept import Kept, KeptRows
from spectral_mlops.spectra.kept_gradients import GradientRows
from spectral_mlops.spectra.null import Relabelled
from spectral_mlops.spectra.statistics import STATISTICS

Array = NDArray[np.float64]

PEOPLE, D_IN, D_OUT = 40, 6, 5
PASSES = 8
QUANTITIES = ("gradient", "activation", "adjoint")


@dataclass(frozen=True)
class Cohort:
    """People under the null.

    Attributes:
        passes: Their rows, as seen once or several times.
        labels: Group of each person.
        strata: What labels move within, per person.
        families: Family of each person, where there are relatives.
    """

    passes: list[GradientRows]
    labels: list[str]
    strata: list[str]
    families: list[str] | None = None


Method = Callable[[Cohort, str, int, int], Array]
"""From cohort, quantity, P and seed to the statistic under each relabelling."""


@dataclass(frozen=True)
class Cell:
    """One kind of cohort.

    Attributes:
        title: In tables.
        draw: Draws a cohort.
        valid: The package's way.
        others: Ways that ought not to be taken, by name.
    """

    title: str
    draw: Callable[[np.random.Generator], Cohort]
    valid: Method
    others: dict[str, Method]


# -- people ----------------------------------------------------------------------


def rows_of(
    rng: np.random.Generator, persons: Tensor, owner: Tensor, noise: float
) -> Tensor:
    """Rows around each person's own, which are ``[n, d]``."""
    errors = torch.from_numpy(rng.normal(size=(len(owner), persons.shape[1])))
    return persons[owner] + noise * errors


def people(rng: np.random.Generator, sizes: Array | None = None) -> list[Tensor]:
    """Each person's own row of A and of Δ, shapes ``[n, 6]`` and ``[n, 5]``."""
    scale = np.ones((PEOPLE, 1)) if sizes is None else sizes
    return [
        torch.from_numpy(rng.normal(size=(PEOPLE, d)) * scale) for d in (D_IN, D_OUT)
    ]


def factors(
    rng: np.random.Generator,
    persons: Sequence[Tensor],
    rows: Sequence[int],
    noise: float = 1.0,
) -> GradientRows:
    """So many rows of each person."""
    owner = torch.repeat_interleave(torch.arange(PEOPLE), torch.tensor(rows))
    a, d = (rows_of(rng, own, owner, noise) for own in persons)
    return GradientRows(a, d, owner, PEOPLE)


def split(first: int) -> list[str]:
    """So many people in group a, the rest in b."""
    return ["a"] * first + ["b"] * (PEOPLE - first)


def plain(first: int, rows: int = 1) -> Callable[[np.random.Generator], Cohort]:
    """Groups of given size, every person with as many rows."""

    def draw(rng: np.random.Generator) -> Cohort:
        seen = factors(rng, people(rng), [rows] * PEOPLE)
        return Cohort([seen], split(first), ["all"] * PEOPLE)

    return draw


def heavy_tails(rng: np.random.Generator) -> Cohort:
    """People's sizes have a tail without variance (Student's t, 1.5 df)."""
    sizes = 1 / np.sqrt(rng.chisquare(1.5, size=(PEOPLE, 1)) / 1.5)
    seen = factors(rng, people(rng, sizes), [1] * PEOPLE)
    return Cohort([seen], split(20), ["all"] * PEOPLE)


def unequal_rows(rng: np.random.Generator) -> Cohort:
    """80 % of group a, but 30 % of b, have eight rows; the others have two."""
    labels = split(20)
    share = np.where(np.array(labels) == "a", 0.8, 0.3)
    rows = np.where(rng.uniform(size=PEOPLE) < share, 8, 2).tolist()
    seen = factors(rng, people(rng), rows)
    return Cohort([seen], labels, [str(r) for r in rows])


def confounded(rng: np.random.Generator) -> Cohort:
    """One class's rows are flatter; 85 % of it, 15 % of the other are in a."""
    target = np.arange(PEOPLE) % 2
    share = np.where(target, 0.85, 0.15)
    labels = np.where(rng.uniform(size=PEOPLE) < share, "a", "b")
    steep = torch.from_numpy(2.0 * (1 - target)).unsqueeze(1)
    persons = [own * torch.exp(steep - torch.arange(own.shape[1]) * steep / 2)
               for own in people(rng)]  # fmt: skip
    seen = factors(rng, persons, [1] * PEOPLE, noise=0.1)
    return Cohort([seen], labels.tolist(), target.astype(str).tolist())


def several_passes(rng: np.random.Generator) -> Cohort:
    """The same people in eight batches; their rows differ by noise."""
    own = people(rng)
    seen = [factors(rng, own, [1] * PEOPLE, noise=0.1) for _ in range(PASSES)]
    return Cohort(seen, split(20), ["all"] * PEOPLE)


def families_of_two(rng: np.random.Generator) -> Cohort:
    """Siblings share their label and most of their rows: 10 families in each group."""
    of = torch.arange(PEOPLE) // 2
    shared, own = people(rng), people(rng)
    related = [x[of] + 0.3 * y for x, y in zip(shared, own, strict=True)]
    seen = factors(rng, related, [1] * PEOPLE, noise=0.1)
    families = [str(family) for family in of.tolist()]
    return Cohort([seen], split(20), ["all"] * PEOPLE, families)


# -- methods ---------------------------------------------------------------------


def weighted(seen: GradientRows) -> GradientRows:
    """Give each person the same weight, whatever their number of rows."""
    weight = torch.bincount(seen.owner)[seen.owner].double().rsqrt().unsqueeze(1)
    return GradientRows(
        seen.activation * weight, seen.adjoint * weight, seen.owner, seen.people
    )


def divergence(seen: GradientRows, quantity: str, codes: NDArray[np.int64]) -> Array:
    """Jensen-Shannon divergence of the two groups under each relabelling."""
    kept: Kept = seen
    if quantity != "gradient":
        kept = KeptRows(getattr(seen, quantity), seen.owner)
    relabelled = Relabelled(kept, torch.from_numpy(codes))
    return STATISTICS.get("js").under(relabelled, 0, 1).numpy()


def over_passes(
    cohort: Cohort, quantity: str, draws: Iterator[NDArray[np.int64]]
) -> Array:
    """Mean over passes, each under the relabellings that come next."""
    return np.mean(
        [
            divergence(weighted(seen), quantity, codes)
            for seen, codes in zip(cohort.passes, draws, strict=False)
        ],
        axis=0,
    )


def drawn_once(cohort: Cohort, quantity: str, permutations: int, seed: int) -> Array:
    """Subjects relabelled within strata, once for all passes: the package's way."""
    codes = draw_relabellings(
        cohort.labels, cohort.strata, permutations, seed, cohort.families
    )
    return over_passes(cohort, quantity, (codes for _ in cohort.passes))


def drawn_anew(cohort: Cohort, quantity: str, permutations: int, seed: int) -> Array:
    """Subjects relabelled anew in each pass."""
    return over_passes(
        cohort,
        quantity,
        (
            draw_relabellings(
                cohort.labels, cohort.strata, permutations, PASSES * seed + i
            )
            for i in count()
        ),
    )


def without_strata(
    cohort: Cohort, quantity: str, permutations: int, seed: int
) -> Array:
    """Subjects relabelled whatever their stratum."""
    anywhere = replace(cohort, strata=["all"] * PEOPLE)
    return drawn_once(anywhere, quantity, permutations, seed)


def as_strangers(cohort: Cohort, quantity: str, permutations: int, seed: int) -> Array:
    """Subjects relabelled as if nobody were related."""
    return drawn_once(replace(cohort, families=None), quantity, permutations, seed)


def rows_relabelled(
    cohort: Cohort, quantity: str, permutations: int, seed: int
) -> Array:
    """Rows relabelled as if each were a person."""
    (seen,) = cohort.passes
    labels = [cohort.labels[person] for person in seen.owner.tolist()]
    codes = draw_relabellings(labels, ["all"] * len(labels), permutations, seed)
    rows = torch.arange(len(labels))
    single = GradientRows(seen.activation, seen.adjoint, rows, len(rows))
    return divergence(single, quantity, codes)


def rows_weigh(cohort: Cohort, quantity: str, permutations: int, seed: int) -> Array:
    """Subjects relabelled whatever their stratum; who has more rows weighs more."""
    (seen,) = cohort.passes
    codes = draw_relabellings(cohort.labels, ["all"] * PEOPLE, permutations, seed)
    return divergence(seen, quantity, codes)


CELLS = {
    "equal": Cell("20 and 20 people, one row each", plain(20), drawn_once, {}),
    "small-group": Cell("4 and 36 people", plain(4), drawn_once, {}),
    "heavy-tails": Cell(
        "20 and 20 people, heavy-tailed sizes", heavy_tails, drawn_once, {}
    ),
    "many-rows": Cell(
        "8 rows per person",
        plain(20, rows=8),
        drawn_once,
        {"rows relabelled, not people": rows_relabelled},
    ),
    "unequal-rows": Cell(
        "number of rows depends on group",
        unequal_rows,
        drawn_once,
        {
            "no strata of row counts": without_strata,
            "no strata, rows weigh": rows_weigh,
        },
    ),
    "confounded": Cell(
        "target depends on group",
        confounded,
        drawn_once,
        {"no strata of the target": without_strata},
    ),
    "passes": Cell(
        "the same people in 8 batches",
        several_passes,
        drawn_once,
        {"labels drawn anew per batch": drawn_anew},
    ),
    "families": Cell(
        "20 families of two, of one label",
        families_of_two,
        drawn_once,
        {"relatives as strangers": as_strangers},
    ),
}
