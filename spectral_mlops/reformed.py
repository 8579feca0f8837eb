"""Adjoints re-formed: the null of loss gradients where the grouping is the target.

The loss's adjoints know each person's label, so moving labels between people while
their adjoints stay behind is no fair relabelling. Here the loss is taken at every
class for everybody, once each; under a relabelling a person's rows are those of the
pass of their permuted class, just as if the loss had been computed anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import matrix_rank

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.measured import LayerRows
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.relabel import digest, draw_relabellings
from spectral_mlops.records import DEGENERATE, Quantity
from spectral_mlops.spectra.kept import GradientRows, KeptRows, compress
from spectral_mlops.spectra.null import MAX_ROWS
from spectral_mlops.spectra.statistics import function_of_spectra

QUANTITIES: tuple[Quantity, ...] = ("gradient", "adjoint")
"""What depends on labels; activations do not, and need nothing re-formed."""
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
    """

    subjects: list[str]
    targets: list[str]
    layers: dict[str, ReformedLayer]
    strata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

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
    ) -> NDArray[np.float64]:
        """Divergence of two classes' spectra under every relabelling.

        Each person weighs the same, whatever their number of rows.

        Args:
            layer: Name of a layer in ``layers``.
            quantity: ``gradient`` or ``adjoint``.
            pair: Two classes.
            codes: Class of each of `people` under each relabelling, as an index into
                the sorted classes, shape ``[P + 1, n]``
                (`inference.relabel.draw_relabellings`).
            divergence: Name of the divergence.

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

        Args:
            permutations: Relabellings beside the observed labels.
            seed: Of the relabellings.
            divergence: Name of the divergence.

        Returns:
            One comparison per layer, quantity and pair, as
            `inference.comparison.to_divergences` takes them; groups are classes.
        """
        labels = self.people
        within = [" × ".join(c[i] for c in self.strata.values()) for i in labels]
        codes = draw_relabellings(list(labels.values()), within, permutations, seed)
        null = (
            f"{permutations} relabellings ({digest(list(labels), codes)[:12]}) of "
            f"{len(labels)} people, adjoints re-formed"
        )
        samples, people = Counter(self.targets), Counter(labels.values())
        found = []
        for a, b in combinations(sorted(people), 2):
            for layer, rows in self.layers.items():
                for quantity in QUANTITIES:
                    values = self.values(layer, quantity, (a, b), codes, divergence)
                    shapeless = rows.degenerate(quantity)
                    found.append(
                        Comparison(
                            layer=layer,
                            quantity=quantity,
                            grouping="target",
                            group_a=a,
                            group_b=b,
                            divergence=divergence,
                            values=np.full(1, np.nan) if shapeless else values,
                            n_a=samples[a],
                            n_b=samples[b],
                            subjects_a=people[a],
                            subjects_b=people[b],
                            source="probe",
                            null="none" if shapeless else null,
                            strata=" × ".join(self.strata) or "none",
                            valid_for="held-out people; adjoints re-formed",
                            testable=not shapeless,
                            reason="degenerate: rank 1" if shapeless else "",
                        )
                    )
        return found


def reform(
    true: Sequence[LayerRows],
    by_class: Mapping[str, Sequence[LayerRows]],
    strata: Mapping[str, Mapping[str, str]] | None = None,
) -> Reformed:
    """Put together what the passes of all classes showed.

    Args:
        true: Rows with the loss at the true targets, all batches.
        by_class: The same with the loss at one class for everybody.
        strata: ``{name: {subject: stratum}}``, what labels move within.

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
    return Reformed(subjects, targets, layers, strata or {}, reasons)


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
