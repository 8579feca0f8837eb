"""What a model is made of: its layers, the rules that apply, who holds what."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from spectral_mlops.errors import CaptureError, UnknownNameError
from spectral_mlops.hooks.rules import ROW_RULES, RowRule
from spectral_mlops.registry import nearest


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
        batch_dim: Its batch axis where a layer around it says so (a transformer's).
        untouched: Whether no hook may be put on it (`_fast_inside`).
    """

    name: str
    module: nn.Module
    rule: RowRule | None
    parameters: Mapping[str, str]
    parts: Mapping[str, str]
    why: str = ""
    wanted: bool = True
    batch_dim: int | None = None
    untouched: bool = False

    @cached_property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters by local name."""
        return {local: _held(self.module, local) for local in self.parameters}

    def swapped(self) -> bool:
        """Whether the layer holds other tensors for the time being."""
        for local, parameter in self.tensors.items():
            parameters, last = _holder(self.module, local)
            if parameters.get(last) is not parameter:
                return True
        return False

    def layer(self, part: str) -> str:
        """Return the name of a part of the layer in tables and records."""
        return ".".join(word for word in (self.name, part) if word)


def clean_name(name: str) -> str:
    """Drop what ``DistributedDataParallel`` and ``torch.compile`` put into names."""
    return ".".join(p for p in name.split(".") if p not in ("module", "_orig_mod"))


def clean_names(model: nn.Module) -> dict[str, str]:
    """Return the clean name of every module, by its own.

    Where two would be the same (a model may call a layer ``module`` itself), each
    keeps its own.
    """
    names = {name: clean_name(name) for name, _ in model.named_modules()}
    holders = Counter(
        names[name]
        for name, module in model.named_modules()
        if any(p is not None for p in module._parameters.values())
    )
    return {name: name if holders[c] > 1 else c for name, c in names.items()}


def _holder(module: nn.Module, local: str) -> tuple[Mapping[str, Any], str]:
    """Return where a parameter of a module, or of one inside, is held."""
    inside, _, last = local.rpartition(".")
    return (module.get_submodule(inside) if inside else module)._parameters, last


def _held(module: nn.Module, local: str) -> nn.Parameter:
    parameters, last = _holder(module, local)
    return parameters[last]


def _inner_axes(model: nn.Module) -> dict[int, int]:
    """Return the batch axis of the layers inside of transformers and their layers."""
    kinds = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    stacks = nn.TransformerEncoder | nn.TransformerDecoder
    axes: dict[int, int] = {}
    for whole in model.modules():
        if isinstance(whole, stacks):
            layers = [x for x in whole.layers if isinstance(x, kinds)]
            around = [] if whole.norm is None else [*whole.norm.modules()]
        else:
            layers, around = [whole] if isinstance(whole, kinds) else [], []
        for layer in layers:
            axis = 0 if layer.self_attn.batch_first else 1
            axes |= dict.fromkeys(map(id, (*layer.modules(), *around)), axis)
    return axes


def _fast_inside(model: nn.Module) -> set[int]:
    """Return the layers of transformers that may take PyTorch's fast path.

    In evaluation, where no gradient is wanted of them (of the call, or of a frozen
    layer in a network that learns), and no hook is on them or on a part of them.
    """
    return {
        id(inner)
        for layer in model.modules()
        if isinstance(layer, nn.TransformerEncoderLayer)
        for inner in layer.modules()
    }


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
    clean, axes = clean_names(model), _inner_axes(model)
    fast = _fast_inside(model)
    for name, module in model.named_modules():
        own = {k: p for k, p in module._parameters.items() if p is not None}
        if not own or name in inside:
            continue
        rule, parts, why = _rule_of(module, own.keys())
        for local in parts:
            if "." in local:
                inside.add(f"{name}.{local.rpartition('.')[0]}".lstrip("."))
                own[local] = _held(module, local)
        title = clean[name]
        full = {
            local: first_name.setdefault(id(p), f"{title}.{local}" if title else local)
            for local, p in own.items()
        }
        for full_name, p in zip(full.values(), own.values(), strict=True):
            _refuse_uninitialised(full_name, p)
        wanted = layers is None or title in layers
        if not wanted:
            rule, why = None, "not among the layers= asked for"
        axis, untouched = axes.get(id(module)), id(module) in fast
        sites.append(
            Site(title, module, rule, full, parts, why, wanted, axis, untouched)
        )
    known = [site.name for site in sites]
    for asked in sorted(layers or ()):
        if asked not in known:
            raise UnknownNameError(
                f"layers= names '{asked}', which holds no parameters; choose from "
                f"{', '.join(known)}.{nearest(asked, known)}"
            )
    return sites


def _refuse_uninitialised(name: str, parameter: nn.Parameter) -> None:
    """Refuse a lazy layer that has not seen its input yet.

    Raises:
        CaptureError: Naming the parameter.
    """
    if nn.parameter.is_lazy(parameter):
        raise CaptureError(
            f"Parameter '{name}' has no shape yet (a lazy layer): pass one batch "
            "through the model before it is watched."
        )


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
    found = {name: site.tensors[local] for local, name in site.parameters.items()}
    return {name: p for name, p in found.items() if p.requires_grad}


def replayed_parameters(sites: Sequence[Site]) -> dict[str, nn.Parameter]:
    """Return the trained parameters that some holder has no rule for."""
    found: dict[str, nn.Parameter] = {}
    for site in sites:
        if site.wanted and site.rule is None:
            found |= trained_parameters(site)
    return found


def ruled_parameters(sites: Sequence[Site]) -> dict[str, nn.Parameter]:
    """Return the trained parameters that have a rule."""
    found: dict[str, nn.Parameter] = {}
    for site in sites:
        if site.rule is not None:
            found |= trained_parameters(site)
    return found


def refuse_sharded(model: nn.Module) -> None:
    """Refuse models of which each process holds a shard, or each thread a copy.

    Raises:
        CaptureError: If it is one.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules():
        if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
            raise CaptureError(
                "The model is sharded over processes (FullyShardedDataParallel), and a "
                "shard's gradient has no groups: train with DistributedDataParallel to "
                "watch."
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise CaptureError(
                "The model is copied to several devices in each step (DataParallel), "
                "which are not the model: train with DistributedDataParallel to watch."
            )
    parameters = dict(model.named_parameters())
    sharding = sys.modules.get("torch.distributed.tensor")
    if sharding is None:
        return
    for name, parameter in parameters.items():
        if isinstance(parameter, sharding.DTensor):
            raise CaptureError(
                f"Parameter '{clean_name(name)}' is sharded over processes (FSDP2, "
                "DTensor), and a shard's gradient has no groups. Train with "
                "DistributedDataParallel to watch, or watch an unsharded copy of the "
                "model on a probe."
            )


class Survey:
    """A model's layers as they are; taken once where many batches are watched.

    Args:
        model: The model.
        layers: Clean names of the layers to watch; all if ``None``.

    Raises:
        UnknownNameError: If ``layers`` names something that holds no parameters.
        CaptureError: If a parameter is sharded over processes.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] | None = None) -> None:
        refuse_sharded(model)
        self.model = model
        self.sites: Sequence[Site] = find_sites(
            model, None if layers is None else frozenset(layers)
        )
        self.own = [
            (module, local, parameter)
            for module in model.modules()
            if not isinstance(
                module, torch.jit.ScriptModule
            )  # makes new ones each time
            for local, parameter in module._parameters.items()
        ]
        self._made_of = self._structure()
        self._trained = self._switches()
        self.outside: frozenset[str] | None = None
        """Parameters that are also used outside of their layers, once looked for."""
        self.without_batch: dict[str, str] = {}
        """Layers that were seen called on something else than the batch, and how."""

    def swapped(self) -> bool:
        """Whether the model holds other parameters than it did."""
        return any(m._parameters.get(k) is not p for m, k, p in self.own)

    def holds(self) -> bool:
        """Whether the model is still what it was: its parameters, and which learn."""
        same = self._structure() == self._made_of and not self.swapped()
        return same and self._switches() == self._trained

    def switched_on(self) -> dict[str, str]:
        """Parameters that were frozen and are no longer, with that as a reason."""
        reason = "requires_grad was switched on inside the context"
        return {
            self.names[id(p)]: reason
            for (_, _, p), before in zip(self.own, self._trained, strict=True)
            if p is not None and p.requires_grad and not before
        }

    def _structure(self) -> list[tuple[int, type, int]]:
        return [(id(m), type(m), len(m._parameters)) for m in self.model.modules()]

    def _switches(self) -> list[bool]:
        return [p is not None and p.requires_grad for _, _, p in self.own]

    @cached_property
    def names(self) -> dict[int, str]:
        """Name of each parameter, by its identity."""
        return {
            id(parameter): name
            for site in reversed(self.sites)
            for parameter, name in zip(
                site.tensors.values(), site.parameters.values(), strict=True
            )
        }

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that require no gradient."""
        return frozenset(
            name
            for site in self.sites
            for name, p in zip(
                site.parameters.values(), site.tensors.values(), strict=True
            )
            if not p.requires_grad
        )

    @cached_property
    def layers(self) -> list[str]:
        """Names of the layers that have rows, in model order."""
        return list(
            dict.fromkeys(
                site.layer(part)
                for site in self.sites
                if site.rule is not None
                for part in site.parts.values()
            )
        )

    @cached_property
    def holders(self) -> dict[str, set[str]]:
        """The layers that hold each parameter."""
        found: dict[str, set[str]] = {}
        for site in self.sites:
            for local, name in site.parameters.items():
                found.setdefault(name, set()).add(site.layer(site.parts[local]))
        return found

    @cached_property
    def tied(self) -> frozenset[str]:
        """Names of the parameters that several layers hold."""
        return frozenset(name for name, held in self.holders.items() if len(held) > 1)

    @cached_property
    def gradient_elsewhere(self) -> frozenset[str]:
        """Layers whose product of factors is not the gradient of their matrix.

        The matrix is also another layer's (tied), or is not trained.
        """
        matrices = {
            name
            for site in self.sites
            for local, name in site.parameters.items()
            if site.tensors[local].ndim > 1
        }
        apart = (self.tied | self.frozen) & matrices
        return frozenset().union(*(self.holders[name] for name in apart))
