"""Adjoints re-formed: the null of loss gradients where the grouping is the target.

The loss's adjoints know each person's label, so moving labels between people while
their adjoints stay behind is no fair relabelling. Here the loss is taken at every
class for everybody, once each; under a relabelling a person's rows are those of the
pass of their permuted class, just as if the loss had been computed anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import matrix_rank

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.layer_rows import LayerRows
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.inference.comparison import EVERY_GROUP, Comparison
from spectral_mlops.records import DEGENERATE, Quantity
from spectral_mlops.spectra.batched import compress
from spectral_mlops.spectra.kept import KeptRows
from spectral_mlops.spectra.kept_gradients import GradientRows
from spectral_mlops.spectra.null import MAX_ROWS
from spectral_mlops.spectra.statistics import (
    OfSpectra,
    find_statistic,
    function_of_spectra,
)
from spectral_mlops.validity import (
    BY_ROWS,
    Families,
    Null,
    People,
    Strata,
    draw_people,
    same_partition,
    uneven_rows,
)

QUANTITIES: tuple[Quantity, ...] = ("gradient", "adjoint")
"""What depends on labels; activations do not, and need nothing re-formed."""
GROUPING = "target"
"""Where no grouping has a name for the classes."""
DEGENERATE_ROWS = "degenerate: rank 1, a spectrum has no shape to compare"
VALID = "held-out people; adjoints re-formed"
TOLERANCE = 1e-4
"""Relative gap above which the loss is not a plain mean or sum over people."""


@dataclass(frozen=True, eq=False)
class ReformedLayer:
    """The rows of one layer, with the adjoints of every class.

    Attributes:
        activation: Rows of A, float64, compressed, shape ``[r, k_in]``.
        adjoints: Rows of Δ by class, shape ``[r, k_out]`` each.
        sample: Which sample each row belongs to, shape ``[r]``.
    """

    activation: Tensor
    adjoints: Mapping[str, Tensor]
    sample: Tensor

    def degenerate(self, quantity: str) -> bool:
        """Whether spectra have one value at most, as those of two outputs have."""
        factors = list(self.adjoints.values())
        if quantity == "gradient":
            factors.append(self.activation)
        return any(int(matrix_rank(x, rtol=DEGENERATE)) < 2 for x in factors)


@dataclass(frozen=True, eq=False)
class Reformed:
    """The probe with its adjoints taken at every class.

    Attributes:
        subjects: The person behind each sample, length ``N``.
        targets: The class of each sample, length ``N``.
        layers: By name; those whose rows pair up and are few enough.
        strata: ``{name: {subject: stratum}}``, what labels move within.
        reasons: Of the others, why a null cannot be formed.
        families: ``{subject: family}``; families move as blocks.
    """

    subjects: list[str]
    targets: list[str]
    layers: dict[str, ReformedLayer]
    strata: Strata = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    families: Families = field(default_factory=dict)

    @property
    def people(self) -> dict[str, str]:
        """The class of each person, sorted by id: whose labels may be moved.

        Raises:
            InputError: If somebody's samples have two classes.
        """
        found: dict[str, str] = {}
        for person, target in zip(self.subjects, self.targets, strict=True):
            if found.setdefault(person, target) != target:
                raise InputError(
                    f"Subject '{person}' has targets {found[person]} and {target}: "
                    "labels move between people, and a person has one."
                )
        return dict(sorted(found.items()))

    def values(
        self,
        layer: str,
        quantity: str,
        pair: tuple[str, str],
        codes: NDArray[np.int64],
        divergence: str = "js",
        weighting: str = "subjects",
    ) -> NDArray[np.float64]:
        """Divergence of two classes' spectra under every relabelling.

        Args:
            layer: Name of a layer in ``layers``.
            quantity: ``gradient`` or ``adjoint``.
            pair: Two classes.
            codes: Class of each of `people` under each relabelling, as an index into
                the sorted classes, -1 for who takes no part, shape ``[P + 1, n]``
                (`inference.relabel.relabel`).
            divergence: Name of the divergence.
            weighting: ``subjects``: each person weighs the same, whatever their number
                of rows; ``rows``: each row.

        Returns:
            Shape ``[P + 1]``; NaN where a class has an all-zero spectrum.

        Raises:
            InputError: If there is no such layer, or nothing is re-formed for the
                quantity.
        """
        if quantity not in QUANTITIES:
            raise InputError(
                f"quantity='{quantity}': choose {' or '.join(QUANTITIES)}; activations "
                "know no labels."
            )
        if layer not in self.layers:
            why = self.reasons.get(layer, f"there are {', '.join(self.layers)}")
            raise InputError(f"Layer '{layer}' has nothing re-formed: {why}.")
        place = {person: i for i, person in enumerate(self.people)}
        owner = torch.tensor([place[person] for person in self.subjects])
        rows = self.layers[layer]
        owner = owner[rows.sample]
        weight = torch.bincount(owner)[owner].to(torch.float64).rsqrt().unsqueeze(1)
        if weighting == "rows":
            weight = torch.ones_like(weight)
        classes = sorted(set(self.targets))
        spectra = []
        for label in pair:
            member = torch.from_numpy(codes == classes.index(label))
            adjoint = rows.adjoints[label] * weight
            if quantity == "gradient":
                activation = rows.activation * weight
                kept = GradientRows(activation, adjoint, owner, len(place))
                spectra.append(kept.spectra(member))
            else:
                spectra.append(KeptRows(adjoint, owner).spectra(member))
        values: NDArray[np.float64] = function_of_spectra(divergence)(*spectra).numpy()
        return values

    def comparisons(
        self, permutations: int = 199, seed: int = 0, divergence: str = "js"
    ) -> list[Comparison]:
        """Every pair of classes under relabellings of the people, within strata.

        `monitor.EpochSpectra.divergences` has them in its frame, under the names of
        the groups; here groups are classes, whether or not a grouping tells them apart.

        Args:
            permutations: Relabellings beside the observed labels.
            seed: Of the relabellings.
            divergence: Name of the divergence.

        Returns:
            One comparison per layer, quantity and pair, as
            `inference.comparison.to_divergences` takes them; groups are classes.
        """
        classes = self.people
        people = draw_people(
            classes, GROUPING, None, self.strata, permutations, seed, self.families
        )
        samples, number = Counter(self.targets), Counter(classes.values())
        null = Null(permutations, self.strata, False, seed, divergence)
        found = []
        for a, b in combinations(sorted(number), 2):
            for layer, quantity in product(self.layers, QUANTITIES):
                blank = Comparison(
                    layer=layer,
                    quantity=quantity,
                    grouping=GROUPING,
                    group_a=a,
                    group_b=b,
                    divergence=divergence,
                    values=np.full(1, np.nan),
                    n_a=samples[a],
                    n_b=samples[b],
                    subjects_a=number[a],
                    subjects_b=number[b],
                    source="probe",
                    null="none",
                    strata="none",
                    valid_for=VALID,
                    testable=True,
                    reason="",
                )
                same = {c: c for c in number}
                found.append(self._tested(blank, people, same, [(a, b)], null))
        return found

    def in_place_of(
        self,
        compared: Sequence[Comparison],
        groupings: Mapping[str, Sequence[str]],
        null: Null,
    ) -> list[Comparison]:
        """Put re-formed values where loss adjoints cannot be relabelled.

        That is at gradients and adjoints, for groupings that are the target. All other
        rows are left as they are: activations know no labels, and adjoints stay with
        the target where a grouping is another.

        Args:
            compared: What relabelling alone gives.
            groupings: Label of each sample, per grouping.
            null: How groups are compared.

        Returns:
            As many rows, in the same order.
        """
        if not null.permutations:
            return list(compared)
        classes = {name: self.class_of(labels) for name, labels in groupings.items()}
        drawn: dict[tuple[str, ...], People] = {}
        found = []
        for row in compared:
            of = classes.get(row.grouping)
            if of is None or row.quantity not in QUANTITIES:
                found.append(row)
                continue
            one_pair = row.group_a != EVERY_GROUP
            groups = (row.group_a, row.group_b) if one_pair else tuple(sorted(of))
            moved = tuple(sorted(of)) if null.everyone else groups
            if moved not in drawn:
                group_of = {c: group for group, c in of.items()}
                labels = {who: group_of[c] for who, c in self.people.items()}
                drawn[moved] = draw_people(
                    {who: label for who, label in labels.items() if label in moved},
                    row.grouping,
                    None,
                    null.strata,
                    null.permutations,
                    null.seed,
                    null.families,
                )
            pairs = list(combinations(groups, 2))
            found.append(self._tested(row, drawn[moved], of, pairs, null))
        return found

    def class_of(self, labels: Sequence[str]) -> dict[str, str] | None:
        """The class of each group, or ``None`` if the groups are not the classes.

        Args:
            labels: Label of each sample, length ``N``.
        """
        person = dict(zip(self.subjects, labels, strict=True))
        if not same_partition(person, self.people):
            return None
        return {person[who]: found for who, found in self.people.items()}

    def _tested(
        self,
        row: Comparison,
        people: People,
        class_of: Mapping[str, str],
        pairs: Sequence[tuple[str, str]],
        null: Null,
    ) -> Comparison:
        """Return a row with the mean over pairs of groups under every relabelling."""
        if reason := self._lacks(row, null):
            values = np.full(1, np.nan) if reason == DEGENERATE_ROWS else row.values[:1]
            return replace(
                row, values=values, null="none", testable=False, reason=reason
            )
        classes = sorted(set(self.targets))
        codes = people.columns(list(self.people), people.relabelled.number).numpy()
        to_class = np.array([classes.index(class_of[g]) for g in people.groups] + [-1])
        values = np.mean(
            [
                self.values(
                    row.layer,
                    row.quantity,
                    (class_of[a], class_of[b]),
                    to_class[codes],  # -1, of who takes no part, stays -1
                    null.statistic,
                    null.weighting,
                )
                for a, b in pairs
            ],
            axis=0,
        )
        names = {group for pair in pairs for group in pair}
        # A group's adjoints are its class's: exchanged groups give another value.
        refusal = people.refusal(row.grouping, sorted(names), symmetric=False)
        moved = len(people.labels)
        text = f"{people.relabelled.text} of {moved} people, adjoints re-formed"
        words = VALID + uneven_rows(self.subjects, people.labels)
        return replace(
            row,
            values=values[:1] if refusal else values,
            null="none" if refusal else text,
            strata=people.strata,
            valid_for=words + (BY_ROWS if null.weighting == "rows" else ""),
            testable=True,
            reason=refusal,
        )

    def _lacks(self, row: Comparison, null: Null) -> str:
        """Say why a row has no re-formed values, if so."""
        if row.layer not in self.layers:
            why = self.reasons.get(row.layer, "only layers whose rows pair up are")
            return row.reason if np.isnan(row.values[0]) else f"not re-formed: {why}"
        if not isinstance(find_statistic(null.statistic), OfSpectra):
            return row.reason or f"{null.statistic} is not of spectra"
        if self.layers[row.layer].degenerate(row.quantity):
            return DEGENERATE_ROWS
        return ""


def reform(
    true: Sequence[LayerRows],
    by_class: Mapping[str, Sequence[LayerRows]],
    strata: Strata | None = None,
    families: Families | None = None,
) -> Reformed:
    """Put together what the passes of all classes showed.

    Args:
        true: Rows with the loss at the true targets, all batches.
        by_class: The same with the loss at one class for everybody.
        strata: ``{name: {subject: stratum}}``, what labels move within.
        families: ``{subject: family}``; families move as blocks.

    Returns:
        The rows to choose from.

    Raises:
        InputError: If the rows of a person's own class are not those of the true
            pass: the loss then ties people together (weights by class, a mean over
            some of them), and what a permuted label does cannot be picked.
    """
    labellings = true[0].labellings
    subjects = [person for who in labellings for person in who.subjects]
    targets = [label for who in labellings for label in who.targets or ()]
    layers, reasons = {}, {}
    others = {c: {layer.layer: layer for layer in rows} for c, rows in by_class.items()}
    for layer in true:
        if not all(isinstance(rows, Rows) for _, rows in layer.calls):
            reasons[layer.layer] = "its rows of A and Δ do not pair up"
            continue
        activation, adjoint, sample = _flatten(layer)
        if len(sample) > MAX_ROWS:
            reasons[layer.layer] = f"{len(sample)} rows are more than {MAX_ROWS}"
            continue
        found = {c: _flatten(rows[layer.layer])[1] for c, rows in others.items()}
        own = torch.stack(
            [found[targets[i]][row] for row, i in enumerate(sample.tolist())]
        )
        gap = float((own - adjoint).norm())
        if not gap <= TOLERANCE * float(adjoint.norm()):
            raise InputError(
                "adjoint='reformed' needs a loss that is a plain mean or sum over "
                f"people; at layer '{layer.layer}' the rows of each person's own class "
                f"differ from the true ones by {gap:.1e}. For class weights use "
                "reduction='sum'."
            )
        layers[layer.layer] = ReformedLayer(
            compress(activation), {c: compress(x) for c, x in found.items()}, sample
        )
    return Reformed(subjects, targets, layers, strata or {}, reasons, families or {})


def _flatten(layer: LayerRows) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of A and Δ, float64 on the CPU, and whose sample each row is."""
    starts, total = {}, 0
    for who in layer.labellings:
        starts[who] = total
        total += who.size
    parts = []
    for who, rows in layer.calls:
        activation, adjoint = (x.detach().cpu().double() for x in rows.factors())
        taken = torch.ones(activation.shape[:2], dtype=torch.bool)
        if isinstance(rows, Rows) and rows.taken is not None:
            taken = rows.taken.cpu()
        number = torch.arange(starts[who], starts[who] + who.size).unsqueeze(1)
        parts.append(
            (activation[taken], adjoint[taken], number.expand(taken.shape)[taken])
        )
    a, d, sample = (torch.cat(column) for column in zip(*parts, strict=True))
    return a, d, sample
