"""Which parameters are watched, how, and if not, why: nothing silently missed."""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from spectral_mlops.hooks.survey import Site


class CoverageRow(NamedTuple):
    """One parameter of the model.

    Attributes:
        parameter: Its name, without ``module.`` and ``_orig_mod.``.
        layer: The layer that holds it, by the name that `capture.factors` takes: a
            recurrent or attention layer has one name per weight.
        method: ``rows`` (exact, from the layer's own rows), ``replay`` (exact, by
            one partial backward pass per group), ``frozen`` (does not require a
            gradient), ``unused`` (no adjoint reached the layer) or ``none`` (not
            watched).
        split: What assigns a gradient to a group: the ``row`` it comes from, the
            ``loss`` it comes from, or nothing.
        why: The reason for anything but ``rows``; of what a loss sent past the
            model's outputs, how much (`capture.unattributed`).
    """

    parameter: str
    layer: str
    method: str
    split: str
    why: str


def coverage_table(
    sites: Sequence[Site],
    frozen: Set[str],
    reached: Set[str] | None,
    unbatched: Mapping[str, str],
    replayed: Mapping[str, str],
    hidden: Mapping[str, str],
) -> list[CoverageRow]:
    """Say for every parameter how it is watched.

    Args:
        sites: From `find_sites`.
        frozen: Names of parameters that require no gradient.
        reached: Layers that an adjoint reached, and parameters that a replay
            reached; ``None`` before any backward.
        unbatched: Layers and parameters that are replayed although they have a
            rule, and why.
        replayed: Parameters that are replayed, and what stands in the way.
        hidden: Layers that cannot be seen into, and why.
    """
    holders: dict[str, list[tuple[Site, str]]] = {}
    for site in sites:
        for local, parameter in site.parameters.items():
            holders.setdefault(parameter, []).append((site, site.parts[local]))
    table = []
    for parameter, held in holders.items():
        held_by = [site for site, _ in held]
        places = {parameter, *(site.name for site in held_by if site.rule is not None)}
        without = next((site for site in held_by if site.rule is None), None)
        lone = [unbatched[s.name] for s in held_by if s.name in unbatched]
        lone += [unbatched[parameter]] if parameter in unbatched else []
        masked = next((site for site in held_by if site.name in hidden), None)
        if parameter in frozen:
            method, split, why = "frozen", "", "requires_grad is False"
        elif replayed.get(parameter):
            method, split, why = "none", "", replayed[parameter]
        elif without is not None and parameter not in replayed:
            method, split, why = "none", "", without.why
        elif reached is not None and not places & reached:
            method, split, why = "unused", "", "no adjoint reached the layer"
        elif parameter in replayed:
            why = lone[0] if lone else ""
            method, split = "replay", "loss"
            why = without.why if without is not None else why
        elif masked is not None:
            method, split, why = "replay", "row", hidden[masked.name]
        else:
            method, split, why = "rows", "row", ""
        layer = held[0][0].layer(held[0][1])
        table.append(CoverageRow(parameter, layer, method, split, why))
    return table
