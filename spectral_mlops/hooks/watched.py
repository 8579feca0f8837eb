"""One forward call of one layer, while its adjoints are on their way."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.nested import tensors_in
from spectral_mlops.hooks.rows import Contributions
from spectral_mlops.hooks.rules import Inner, RandomState
from spectral_mlops.hooks.survey import Site


@dataclass(eq=False)
class Watched:
    """One forward call of one layer; its adjoints arrive with the backward pass."""

    site: Site
    labelling: Labelling
    given: dict[str, Any]
    versions: tuple[int, ...]
    random: RandomState | None
    precision: torch.dtype | None
    training: bool
    state: Any
    recomputed: bool
    """Whether the call was made inside of a backward pass (by a checkpoint)."""
    inside: Inner | None = None
    """What the rule wants from inside of the call."""
    rows: dict[str, Contributions] = field(default_factory=dict)
    waiting: dict[int, Tensor] = field(default_factory=dict)
    """Adjoints of some of several outputs, until all have arrived."""
    outputs: int = 1
    adjoints: list[tuple[Tensor, int]] = field(default_factory=list)
    """What the backward pass brought, each with its version then."""
    edges: Counter[int] = field(default_factory=Counter)
    """How often the call's own part of the graph uses each leaf."""
    nodes: tuple[Any, ...] = ()
    """Where the call's outputs stand in the graph."""

    def unchanged(self) -> bool:
        """Whether inputs and adjoints kept by reference are still what they were."""
        kept = tensors_in(self.given)
        same = self.versions == tuple(x._version for x in kept)
        return same and all(x._version == version for x, version in self.adjoints)
