"""Frozen records that leave the device: plain numbers and NumPy arrays.

Everything after the monitor (trackers, reports, comparisons) speaks only these.
A record never changes; raw values are kept at the scale backpropagation made
them (``batch``), together with all that is needed to change the scale later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

Quantity = Literal["gradient", "activation", "adjoint"]
QUANTITIES: tuple[Quantity, ...] = ("gradient", "activation", "adjoint")
SCALES = ("batch", "sum", "mean")
POOLED = "all"
"""Name of the pooled group, and of the grouping it stands in."""

DEGENERATE = 1e-3
"""Relative to the leading value: below it a second value may be the rounding of
float32 probabilities close to 1, and counts as none."""


def check_quantities(quantities: Iterable[str]) -> tuple[Quantity, ...]:
    """Return the quantities in their fixed order.

    Raises:
        InputError: If one is unknown, or if there is none.
    """
    asked = (quantities,) if isinstance(quantities, str) else tuple(quantities)
    unknown = [name for name in asked if name not in QUANTITIES]
    if unknown or not asked or isinstance(quantities, str):
        raise InputError(
            f"quantities={quantities!r}: name at least one of {', '.join(QUANTITIES)}, "
            "and nothing else, in a list."
        )
    return tuple(name for name in QUANTITIES if name in asked)


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Singular values of one quantity, at one layer, for one group of one batch.

    Attributes:
        layer: Name of the layer in the model (``named_modules`` path).
        quantity: ``gradient`` (of ``A_gᵀ Δ_g``), ``activation`` (``A_g``) or
            ``adjoint`` (``Δ_g``).
        grouping: Name of the labelling of the samples, ``all`` for the pooled one.
        group: Label within the grouping.
        values: Shape ``[R]``, descending, at scale ``batch``; values under
            ``floor`` are stored as zero. Holds NaN where ``status`` is not ``ok``.
        samples: Number of samples of the group in the batch, ``n_g``.
        rows: Number of factor rows, ``n_g · S``.
        batch_samples: Number of samples in the batch, ``N``.
        subjects: Number of different people among the samples.
        loss_scale: The factor ``c`` in ``L = c · Σ ℓ_i``.
        shape: ``(d_in, d_out)`` of the layer.
        route: How the values were found: ``gram``, ``qr``, ``direct``; ``counted``
            where rows are one-hot; ``randomised`` where only the leading ones were.
        floor: Values below this bound cannot be told from zero by that route.
        below_floor: How many values were stored as zero for that reason.
        status: ``ok``, ``non-finite``, ``not converged``, ``out of memory`` or
            ``failed``.
        summaries: Name to value, from ``values`` at scale ``batch``.
        step: Step within the epoch.
        bound: Largest error of a value; for ``randomised`` what all the values left
            out weigh together, ``√(‖X‖² − Σσ²)``.
        rank: Process that watched the batch; 0 where batches of all are summed.
    """

    layer: str
    quantity: Quantity
    grouping: str
    group: str
    values: NDArray[np.float64]
    samples: int
    rows: int
    batch_samples: int
    subjects: int
    loss_scale: float
    shape: tuple[int, int]
    route: str
    floor: float
    below_floor: int
    status: str
    summaries: Mapping[str, float]
    step: int = 0
    bound: float = 0.0
    rank: int = 0

    @property
    def degenerate(self) -> bool:
        """Whether the spectrum has at most one value to speak of.

        Such a spectrum has no shape to compare: a two-class output's adjoint has
        rank 1, and what stands beside its leading value is rounding
        (`DEGENERATE`).
        """
        top = self.values[:1].sum()
        return not (self.values[1:] > DEGENERATE * top).any()

    def factor_of(self, scale: str) -> float:
        """Return what ``values`` is multiplied by to reach ``scale``.

        ``batch`` is as backpropagation made it. ``sum`` divides out the loss
        scale ``c``, which gradients and adjoints carry and activations do not.
        ``mean`` divides the gradient by ``c · n_g`` and the factors' rows by
        ``√(n_g · S)`` (the adjoint by ``c`` too).

        Raises:
            InputError: If the scale is not one of the three.
        """
        if scale not in SCALES:
            raise InputError(f"scale='{scale}': choose one of {', '.join(SCALES)}.")
        if scale == "batch":
            return 1.0
        loss = 1.0 if self.quantity == "activation" else 1.0 / self.loss_scale
        if scale == "sum":
            return loss
        size = self.samples if self.quantity == "gradient" else self.rows**0.5
        return loss / size

    def scaled(self, scale: str) -> NDArray[np.float64]:
        """Return the singular values at a scale, shape ``[R]`` (`factor_of`)."""
        return self.values * self.factor_of(scale)


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far two groups' spectra are apart, with the null it is judged by.

    ``value`` is at no scale: every divergence but ``nuclear_log_ratio`` compares
    normalised spectra. Numbers that were not or cannot be computed are NaN and
    ``reason`` says why. ``p`` holds for one layer and quantity alone, ``p_max``
    is adjusted over the eligible layers of the same quantity by max-T.
    ``null`` is the number and kind of relabellings, ``strata`` what the labels
    moved within (and whether relatives moved together, "families whole"),
    ``valid_for`` what a p-value here may mean.
    """

    layer: str
    quantity: Quantity
    grouping: str
    group_a: str
    group_b: str
    divergence: str
    value: float
    null_mean: float
    null_sd: float
    excess: float
    z: float
    p: float
    p_max: float
    n_a: int
    n_b: int
    subjects_a: int
    subjects_b: int
    source: str
    null: str
    strata: str
    valid_for: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class EpochRecord:
    """What one model showed in one epoch, from one source.

    Attributes:
        epoch: Epoch, counted from 0 (``-1``: the untrained network).
        source: ``train`` (watched batches) or ``probe`` (held-out people).
        spectra: One record per watched batch, layer, quantity and group.
        divergences: One row per pair of groups, layer and quantity.
        fold: Cross-validation fold, counted from 0.
        seed: Which of the fold's networks, counted from 0; they differ in their first
            weights and in the order of batches.
        nonfinite: How many spectra are marked as not ``ok``.
    """

    epoch: int
    source: str
    spectra: tuple[Spectrum, ...]
    divergences: tuple[Divergence, ...] = ()
    fold: int = 0
    seed: int = 0
    nonfinite: int = field(init=False)

    def __post_init__(self) -> None:
        marked = sum(spectrum.status != "ok" for spectrum in self.spectra)
        object.__setattr__(self, "nonfinite", marked)


ALL_LAYERS = "all layers"
"""In the place of a layer's name where every parameter is meant; no layer's name has
a space."""


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One leading singular direction of a layer's input space, for one group.

    Of the gradient these are the left singular vectors of ``G_g`` (``[d_in, d_out]``),
    of the activation the right ones of the rows of ``A_g``. A vector has no sign of its
    own: the largest absolute loading is made positive. Vectors of (nearly) equal
    ``value`` are any basis of their space.

    Attributes:
        epoch: Counted from 0.
        source: ``train`` (the last watched batch of the epoch) or ``probe`` (held-out
            people, margin adjoints).
        fold: Cross-validation fold, counted from 0.
        layer: Name of the layer.
        quantity: ``gradient`` or ``activation``.
        grouping: Name of the labelling, ``all`` for the pooled group.
        group: Label within the grouping.
        index: 0 for the direction of the largest singular value.
        value: Singular value at scale ``batch``.
        share: Share of its square in the sum of all squares.
        vector: Unit length, shape ``[d_in]``, float32; NaN where ``status`` is not
            ``ok``.
        shape: Of the input space: ``(d_in,)``, of a convolution ``(C_in, *kernel)``.
        samples: Number of samples of the group.
        status: ``ok``, ``non-finite`` or ``not converged``.
        seed: Which of the fold's networks, counted from 0.
    """

    epoch: int
    source: str
    fold: int
    layer: str
    quantity: Quantity
    grouping: str
    group: str
    index: int
    value: float
    share: float
    vector: NDArray[np.float32]
    shape: tuple[int, ...]
    samples: int
    status: str = "ok"
    seed: int = 0

    @property
    def pattern(self) -> NDArray[np.float32]:
        """The vector in the shape of the input space; of a convolution a kernel."""
        return self.vector.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Influence:
    """What a step on one group's part of the gradient does to another group's loss.

    ``value`` is ``−lr ⟨G_a, G_b⟩``, at scale ``batch``: the first-order change of group
    b's part of the loss by a plain gradient step on group a's part. Negative is help.
    For Adam and its like it is the plain-SGD form, not the step that was taken.

    Attributes:
        epoch: Counted from 0.
        source: ``train``: the mean over the watched batches of the epoch.
        fold: Cross-validation fold, counted from 0.
        layer: Name of the layer, weights and biases together; `ALL_LAYERS` for their
            sum.
        grouping: Name of the labelling.
        group_a: Whose step it is.
        group_b: Whose loss it changes.
        value: In units of the loss; summed over ``group_a`` the effect of the whole
            step.
        cosine: Of the two gradients, NaN where one is zero.
        learning_rate: Mean over the watched batches.
        batches: How many watched batches had both groups.
        seed: Which of the fold's networks, counted from 0.
    """

    epoch: int
    source: str
    fold: int
    layer: str
    grouping: str
    group_a: str
    group_b: str
    value: float
    cosine: float
    learning_rate: float
    batches: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CohortSummary:
    """Which people a run was trained on, without their data.

    Attributes:
        digest: SHA-256 over ids, attributes and features.
        source: Where the cohort came from, in words or as a path.
        n: Number of people.
        groups: Number of people per group.
    """

    digest: str
    source: str
    n: int
    groups: Mapping[str, int]


def as_columns(records: Iterable[Any]) -> dict[str, list[Any]]:
    """Turn records of one class into columns, one per field, in field order.

    ``summaries`` is spread into one column per summary.
    """
    rows = []
    for record in records:
        row = {item.name: getattr(record, item.name) for item in fields(record)}
        row |= cast("dict[str, float]", row.pop("summaries", {}))
        rows.append(row)
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
