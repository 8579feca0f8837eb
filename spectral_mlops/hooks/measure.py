"""From the rows of one layer to spectrum records."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.records import POOLED, Quantity, Spectrum
from spectral_mlops.spectra.singular import (
    ROUTES,
    Solution,
    factor_singular_values,
    gradient_singular_values,
)
from spectral_mlops.spectra.summaries import summarise


@dataclass(frozen=True)
class LayerRows:
    """All rows of one layer in one context.

    Attributes:
        layer: Name of the layer.
        batches: One entry per labelling (one, unless ``relabel`` was called).
    """

    layer: str
    batches: list[tuple[Labelling, Rows]]


@dataclass(frozen=True)
class _Part:
    """The rows of one group."""

    grouping: str
    group: str
    activation: Tensor  # [r, d_in]
    adjoint: Tensor  # [r, d_out]
    samples: int
    subjects: int


def measure(
    layers: Iterable[LayerRows],
    quantities: tuple[Quantity, ...],
    loss_scale: float,
    pooled: bool,
    step: int,
) -> list[Spectrum]:
    """Return one record per layer, group and quantity, the pooled group first.

    Args:
        layers: Their rows.
        quantities: Which spectra.
        loss_scale: ``c``.
        pooled: Whether to measure the pooled group ``all``.
        step: Written into the records.
    """
    cells = [
        (layer, part, quantity, _solve(quantity, part))
        for layer in layers
        for part in _parts(layer, pooled)
        for quantity in quantities
    ]
    values = [solution.values.cpu() for _, _, _, solution in cells]
    summaries = summarise(values)
    return [
        Spectrum(
            layer=layer.layer,
            quantity=quantity,
            grouping=part.grouping,
            group=part.group,
            values=values[i].numpy(),
            samples=part.samples,
            rows=len(part.activation),
            batch_samples=sum(labelling.size for labelling, _ in layer.batches),
            subjects=part.subjects,
            loss_scale=loss_scale,
            shape=(part.activation.shape[1], part.adjoint.shape[1]),
            route=ROUTES[int(solution.route)],
            floor=float(solution.floor),
            below_floor=int(solution.below_floor),
            status=_status(bool(solution.finite), values[i]),
            summaries=summaries[i],
            step=step,
        )
        for i, (layer, part, quantity, solution) in enumerate(cells)
    ]


def _status(finite: bool, values: Tensor) -> str:
    if not finite:
        return "non-finite"
    return "ok" if values.isfinite().all() else "not converged"


def _parts(rows: LayerRows, pooled: bool) -> Iterator[_Part]:
    if pooled:
        everyone = [(who, torch.arange(who.size)) for who, _ in rows.batches]
        yield _part(rows, POOLED, POOLED, everyone)
    for grouping in rows.batches[0][0].groupings:
        names = {g for who, _ in rows.batches for g in who.groupings[grouping]}
        for group in sorted(names):
            chosen = [
                (who, who.groupings[grouping].get(group, torch.arange(0)))
                for who, _ in rows.batches
            ]
            yield _part(rows, grouping, group, chosen)


def _part(
    rows: LayerRows, grouping: str, group: str, chosen: list[tuple[Labelling, Tensor]]
) -> _Part:
    pieces = [
        batch.choose(samples)
        for (_, batch), (_, samples) in zip(rows.batches, chosen, strict=True)
    ]
    people = {who.subjects[i] for who, samples in chosen for i in samples.tolist()}
    return _Part(
        grouping=grouping,
        group=group,
        activation=torch.cat([piece.activation.flatten(0, 1) for piece in pieces]),
        adjoint=torch.cat([piece.adjoint.flatten(0, 1) for piece in pieces]),
        samples=sum(len(samples) for _, samples in chosen),
        subjects=len(people),
    )


def _solve(quantity: Quantity, part: _Part) -> Solution:
    if quantity == "gradient":
        return gradient_singular_values(part.activation, part.adjoint)
    return factor_singular_values(
        part.activation if quantity == "activation" else part.adjoint
    )
