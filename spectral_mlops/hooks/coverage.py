"""Which parameters are watched, how, and if not, why: nothing silently missed."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from spectral_mlops.errors import UnknownNameError
from spectral_mlops.hooks.rows import ROW_RULES, RowRule
from spectral_mlops.registry import nearest


class CoverageRow(NamedTuple):
    """One parameter of the model.

    Attributes:
        parameter: Its name, without ``module.`` and ``_orig_mod.``.
        layer: The layer that holds it.
        method: ``rows`` (exact, from the layer's own rows), ``replay`` (exact, by
            one partial backward pass per group), ``frozen`` (does not require a
            gradient), ``unused`` (no adjoint reached the layer) or ``none`` (not
            watched).
        split: What assigns a gradient to a group: the ``row`` it comes from, the
            ``loss`` it comes from, or nothing.
        why: The reason for ``frozen``, ``unused`` and ``none``.
    """

    parameter: str
    layer: str
    method: str
    split: str
    why: str


@dataclass(frozen=True)
class Site:
    """A layer that holds parameters of its own.

    Attributes:
        name: Clean name of the layer.
        module: The layer.
        rule: Its row rule, if there is one that applies.
        parameters: Local name to clean full name, tied ones under their first.
        why: Why there is no rule.
        wanted: Whether the layer is among those asked for.
    """

    name: str
    module: nn.Module
    rule: RowRule | None
    parameters: Mapping[str, str]
    why: str = ""
    wanted: bool = True


def clean_name(name: str) -> str:
    """Drop what ``DistributedDataParallel`` and ``torch.compile`` put into names."""
    return ".".join(p for p in name.split(".") if p not in ("module", "_orig_mod"))


def find_sites(model: nn.Module, layers: Set[str] | None) -> list[Site]:
    """List the layers that hold parameters, each with the rule that applies.

    A rule applies by exact type, if every parameter of the layer stands in
    ``_parameters`` itself (the old weight-norm keeps the type and moves the
    weight), to the layers asked for.

    Args:
        model: The model.
        layers: Clean names of the layers to watch; all if ``None``.

    Raises:
        UnknownNameError: If ``layers`` names something that holds no parameters.
    """
    first_name: dict[int, str] = {}
    sites = []
    for name, module in model.named_modules():
        own = {k: p for k, p in module._parameters.items() if p is not None}
        if not own:
            continue
        full = {
            local: first_name.setdefault(
                id(p), clean_name(f"{name}.{local}" if name else local)
            )
            for local, p in own.items()
        }
        rule, why = _rule_of(module, own.keys())
        wanted = layers is None or clean_name(name) in layers
        if not wanted:
            rule, why = None, "not among the layers= asked for"
        sites.append(Site(clean_name(name), module, rule, full, why, wanted))
    known = [site.name for site in sites]
    for asked in sorted(layers or ()):
        if asked not in known:
            raise UnknownNameError(
                f"layers= names '{asked}', which holds no parameters; choose from "
                f"{', '.join(known)}.{nearest(asked, known)}"
            )
    return sites


def _rule_of(module: nn.Module, own: Set[str]) -> tuple[RowRule | None, str]:
    """Return the rule of a layer's exact type, if its parameters are its own."""
    kind = type(module)
    if kind not in ROW_RULES:
        return None, f"no row rule for {kind.__name__}"
    rule = ROW_RULES.get(kind)
    if rule.parameters(module) != own:
        return None, "its parameters are not its own (reparametrised)"
    return rule, ""


def trained_parameters(site: Site) -> dict[str, nn.Parameter]:
    """Return the parameters of one layer that require a gradient, by full name."""
    found = {
        name: site.module.get_parameter(local)
        for local, name in site.parameters.items()
    }
    return {name: p for name, p in found.items() if p.requires_grad}


def replayed_parameters(sites: list[Site]) -> dict[str, nn.Parameter]:
    """Return the trained parameters that some holder has no rule for."""
    found: dict[str, nn.Parameter] = {}
    for site in sites:
        if site.wanted and site.rule is None:
            found |= trained_parameters(site)
    return found


def coverage_table(
    sites: list[Site],
    frozen: Set[str],
    reached: Set[str] | None,
    unbatched: Set[str],
    replayed: Mapping[str, str],
) -> list[CoverageRow]:
    """Say for every parameter how it is watched.

    Args:
        sites: From `find_sites`.
        frozen: Names of parameters that require no gradient.
        reached: Layers that an adjoint reached, and parameters that a replay
            reached; ``None`` before any backward.
        unbatched: Layers that were called without a batch axis.
        replayed: Parameters that are replayed, and what stands in the way.
    """
    holders: dict[str, list[Site]] = {}
    for site in sites:
        for parameter in site.parameters.values():
            holders.setdefault(parameter, []).append(site)
    table = []
    for parameter, held_by in holders.items():
        places = {parameter, *(site.name for site in held_by if site.rule is not None)}
        without = next((site for site in held_by if site.rule is None), None)
        lone = next((site for site in held_by if site.name in unbatched), None)
        if parameter in frozen:
            method, split, why = "frozen", "", "requires_grad is False"
        elif replayed.get(parameter):
            method, split, why = "none", "", replayed[parameter]
        elif without is not None and parameter not in replayed:
            method, split, why = "none", "", without.why
        elif reached is not None and not places & reached:
            method, split, why = "unused", "", "no adjoint reached the layer"
        elif parameter in replayed:
            why = f"'{lone.name}' called without batch axis" if lone else ""
            method, split = "replay", "loss"
            why = without.why if without is not None else why
        else:
            method, split, why = "rows", "row", ""
        table.append(CoverageRow(parameter, held_by[0].name, method, split, why))
    return table
