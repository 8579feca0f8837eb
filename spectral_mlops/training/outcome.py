"""The primary outcome and its controls: one z each, under the same relabellings.

An outcome is the combined z of one quantity over all layers (`combined_z`), under the
observed labels and under every relabelling. Because the relabellings are the same,
two outcomes of the same people can be subtracted relabelling by relabelling: *one
beats the other* if so large an observed difference is rare among the relabelled ones,
p at most ``controls.level``: relabelling these people does not make their groups that
much more detectable in the one than in the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.effects import smallest_detectable
from spectral_mlops.inference.significance import (
    Array,
    combined_z,
    p_value,
    standardise,
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One quantity, two or more groups, all layers together.

    Attributes:
        values: z under every relabelling, the observed one first, shape ``[P + 1]``;
            ``[1]`` holding NaN where there is none.
        layers: Divergence under every relabelling, by layer and pair of groups,
            shape ``[P + 1]`` each.
        statistic: Mean over layers of the standardised divergence.
        null: Which relabellings of whom; equal texts mean the same ones.
        strata: What labels moved within.
        people: People per group, in words.
        reason: Why something is missing, or empty.
        scale: The values whose relabellings p counts, if not its own.
    """

    values: Array
    layers: Mapping[str, Array]
    statistic: float
    null: str
    strata: str
    people: str
    reason: str = ""
    scale: Array | None = None

    @property
    def z(self) -> float:
        """How detectable the difference is."""
        return float(self.values[0])

    @property
    def p(self) -> float:
        """Share of relabellings that reach it, the observed one included."""
        null = (self.values if self.scale is None else self.scale)[1:]
        if len(self.values) < 2:
            return float("nan")
        return float(p_value(np.concatenate([self.values[:1], null])))

    def beyond(self, other: "Outcome") -> "Outcome":
        """Return this outcome less another, relabelling by relabelling.

        Args:
            other: Of the same people under the same relabellings.

        Returns:
            The difference, standardised over its relabellings; its ``p`` is that of
            this one beating the other.
        """
        if self.null != other.null or len(self.values) != len(other.values):
            return no_outcome(other.reason or "other people or relabellings")
        difference = standardise(self.values - other.values)
        if not np.isfinite(difference[0]):
            same = "the trained networks show just the same"
            return no_outcome(self.reason or other.reason or same)
        return replace(
            self,
            values=difference,
            layers={},
            scale=None,
            statistic=self.statistic - other.statistic,
        )

    def on_scale_of(self, other: "Outcome") -> "Outcome":
        """Measure by the means and SDs of another outcome's relabellings.

        Of the same networks, whose divergences are on one scale: people who vary less
        among themselves would else seem to differ more for the same divergence.

        Args:
            other: With the same layers.
        """
        if not (np.isfinite(self.z) and self.layers.keys() == other.layers.keys()):
            return self
        theirs = np.stack([*other.layers.values()], axis=1)
        mine = np.stack([self.layers[name] for name in other.layers], axis=1)
        eligible = np.isfinite(standardise(theirs)[0])
        mine, theirs = mine[:, eligible], theirs[:, eligible]
        mean, sd = np.nanmean(theirs, axis=0), np.nanstd(theirs, axis=0)
        t = [(x - mean) / sd for x in (mine, theirs)]
        over_layers, reference = (x.mean(1) for x in t)
        return replace(
            self,
            values=(over_layers - reference.mean()) / reference.std(),
            statistic=float(over_layers[0]),
            scale=other.values,
        )

    @property
    def smallest_detectable(self) -> float:
        """Smallest z that reaches p ≤ .05 with 80 % power (`effects`)."""
        return smallest_detectable(self.values).value

    def sentence(self, quantity: str, grouping: str, level: float = 0.05) -> str:
        """Say what the outcome means, and what it does not."""
        if not np.isfinite(self.p):
            return f"No test of {quantity} between groups of {grouping}: {self.reason}."
        within = f" within {self.strata}".removeprefix(" within none")
        text = (
            f"{p_text(self.p)}: among relabellings of these subjects{within}, so large "
            f"a difference in {quantity} is this rare for this trained network: "
        )
        if self.p <= level:
            text += f"{grouping} is associated with what the network sees. "
        else:
            text += (
                f"no association of {grouping} with what the network sees is shown "
                f"(z = {self.z:.2f}; the smallest that {self.people} people show with "
                f"80 % power is z = {self.smallest_detectable:.2f}). "
            )
        return text + (
            "It does not by itself show that dynamics differ beyond the inputs, nor "
            "that a new training run would agree."
        )


def no_outcome(reason: str) -> Outcome:
    """Return an outcome that there is not, and why."""
    nothing = float("nan")
    return Outcome(np.array([nothing]), {}, nothing, "none", "none", "", reason)


def p_text(p: float) -> str:
    """Return ``p = .012``."""
    return f"p = {p:.3f}".replace("0.", ".", 1)


def outcome_of(
    comparisons: Iterable[Comparison], quantity: str, grouping: str
) -> Outcome:
    """Put all layers and pairs of one quantity and grouping together.

    Args:
        comparisons: With relabellings of everyone together, averaged over folds.
        quantity: Of which.
        grouping: Of which.

    Returns:
        The outcome, with a reason where no layer is testable.
    """
    about = [
        item
        for item in comparisons
        if item.quantity == quantity and item.grouping == grouping
    ]
    usable = [item for item in about if item.testable and item.has_null]
    if not usable:
        reasons = [item.reason for item in about if item.reason]
        return no_outcome(reasons[0] if reasons else "no layer shows both groups")
    values = np.stack([item.values for item in usable], axis=1)
    z = combined_z(values)
    if not np.isfinite(z[0]):
        return no_outcome("no relabelling within the strata changes the groups")
    layers = standardise(values)[0]
    sizes = {item.group_a: item.subjects_a for item in usable}
    sizes |= {item.group_b: item.subjects_b for item in usable}
    return Outcome(
        values=z,
        layers={f"{x.layer}: {x.group_a}, {x.group_b}": x.values for x in usable},
        statistic=float(layers[np.isfinite(layers)].mean()),
        null=usable[0].null,
        strata=usable[0].strata,
        people=" + ".join(str(sizes[group]) for group in sorted(sizes)),
    )


def mean_outcome(draws: Sequence[Outcome]) -> Outcome:
    """Average outcomes over random draws, relabelling by relabelling.

    Args:
        draws: At least one, all under the same relabellings of the same people.
    """
    known = [draw for draw in draws if np.isfinite(draw.z)]
    if not known:
        return draws[0]
    return replace(
        known[0],
        values=np.mean([draw.values for draw in known], axis=0),
        layers={},
        statistic=float(np.mean([draw.statistic for draw in known])),
    )
