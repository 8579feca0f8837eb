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


@dataclass(frozen=True)
class Site:
    """A layer that holds parameters of its own.

    Attributes:
        name: Clean name of the layer.
        module: The layer.
        rule: Its row rule, if there is one that applies.
        parameters: Local name to clean full name, tied ones under their first; a
            rule may account for parameters of modules inside (``out_proj.weight``).
        parts: Local name to the part of the layer that it belongs to.
        why: Why there is no rule.
        wanted: Whether the layer is among those asked for.
    """

    name: str
    module: nn.Module
    rule: RowRule | None
    parameters: Mapping[str, str]
    parts: Mapping[str, str]
    why: str = ""
    wanted: bool = True

    def layer(self, part: str) -> str:
        """Return the name of a part of the layer in tables and records."""
        return ".".join(word for word in (self.name, part) if word)


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
    sites: list[Site] = []
    inside: set[str] = set()
    for name, module in model.named_modules():
        own = {k: p for k, p in module._parameters.items() if p is not None}
        if not own or name in inside:
            continue
        rule, parts, why = _rule_of(module, own.keys())
        for local in parts:
            if "." in local:
                inside.add(f"{name}.{local.rpartition('.')[0]}".lstrip("."))
                own[local] = module.get_parameter(local)
        full = {
            local: first_name.setdefault(
                id(p), clean_name(f"{name}.{local}" if name else local)
            )
            for local, p in own.items()
        }
        wanted = layers is None or clean_name(name) in layers
        if not wanted:
            rule, why = None, "not among the layers= asked for"
        sites.append(Site(clean_name(name), module, rule, full, parts, why, wanted))
    known = [site.name for site in sites]
    for asked in sorted(layers or ()):
        if asked not in known:
            raise UnknownNameError(
                f"layers= names '{asked}', which holds no parameters; choose from "
                f"{', '.join(known)}.{nearest(asked, known)}"
            )
    return sites


def _rule_of(
    module: nn.Module, own: Set[str]
) -> tuple[RowRule | None, Mapping[str, str], str]:
    """Return the rule of a layer's exact type, if its parameters are its own."""
    kind = type(module)
    bare = dict.fromkeys(own, "")
    if kind not in ROW_RULES:
        return None, bare, f"no row rule for {kind.__name__}"
    rule = ROW_RULES.get(kind)
    reparametrised = None, bare, "its parameters are not its own (reparametrised)"
    try:
        parts = rule.parameters(module)
        inside = {name for name in parts if "." in name}
        theirs = [module.get_submodule(name.rpartition(".")[0]) for name in inside]
    except AttributeError:  # the weight has been moved away
        return reparametrised
    if parts.keys() - inside != own:
        return reparametrised
    for name, holder in zip(inside, theirs, strict=True):
        if holder._parameters.get(name.rpartition(".")[2]) is None:
            return reparametrised
    return rule, parts, ""


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
        unbatched: Layers that were called without a batch axis, and how it is said.
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
        lone = next((site for site in held_by if site.name in unbatched), None)
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
            why = unbatched[lone.name] if lone else ""
            method, split = "replay", "loss"
            why = without.why if without is not None else why
        elif masked is not None:
            method, split, why = "replay", "row", hidden[masked.name]
        else:
            method, split, why = "rows", "row", ""
        layer = held[0][0].layer(held[0][1])
        table.append(CoverageRow(parameter, layer, method, split, why))
    return table
