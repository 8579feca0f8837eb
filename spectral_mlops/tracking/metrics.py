"""The few scalars of an epoch that mean the same in every run.

Charts are drawn one per key with one line per run, so a key says what is
compared and never which run: ``<section>/<name>``, short, what differs last.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from spectral_mlops.records import (
    POOLED,
    QUANTITIES,
    Divergence,
    EpochRecord,
    Quantity,
    Spectrum,
)
from spectral_mlops.tracking.profiles import STANDARD, KeyBudget, Profile

SHORT: dict[Quantity, str] = {
    "gradient": "grad",
    "activation": "act",
    "adjoint": "adj",
}
CHARTED = {
    "erank": ("effective_rank", "batch"),
    "norm": ("frobenius_norm", "mean"),
    "srank": ("stable_rank", "batch"),
    "lead": ("leading_share", "batch"),
}
"""Summaries that have charts: section, summary, and the scale it is brought to
(the others are free of scale). Those that come first go first where keys are few."""
FOCUS = "erank"
"""What single layers have charts of, per group, in the profile ``full``."""
ALIAS_LENGTH = 20
NAME_LENGTH = 40
"""Longer names of groups are cut: titles of charts are too."""


def safe_name(text: str, taken: Iterable[str] = ()) -> str:
    """Return ``text`` with everything but ``A-Z a-z 0-9 _ . -`` made ``_``.

    Args:
        text: A label or a path as the user wrote it.
        taken: Names that stand for other texts.

    Returns:
        The name, at most 40 characters and a hash; with a short hash of the text
        behind it if it is cut, or taken, or if nothing is left of the text, so two
        texts never share a name.
    """
    whole = re.sub(r"[^A-Za-z0-9_.\-]+", "_", text)
    clean = whole[:NAME_LENGTH]
    digest = hashlib.sha256(text.encode()).hexdigest()
    hashed = (f"{clean}-{digest[:length]}" for length in range(6, 65))
    plain = [clean] if clean.strip("_.-") and clean == whole else []
    return next(name for name in chain(plain, hashed) if name not in set(taken))


class KeyNames:
    """Names of groups, layers and keys that last for one run.

    Groups are named as they first appear, and keep that name. Layers are
    numbered in the order of first appearance, which is their depth; which of
    them have keys is settled by the first epoch that has divergences.

    Args:
        profile: How many keys there may be.
        epochs: How long the run will be, if that is known.

    Attributes:
        budget: The keys that are chosen, and those that are dropped.
    """

    def __init__(self, profile: Profile = STANDARD, epochs: int | None = None) -> None:
        self.budget = KeyBudget(profile, epochs)
        self._groups: dict[tuple[str, str], str] = {}
        self._layers: list[str] = []
        self._chosen: dict[str, str] | None = None

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "KeyNames":
        """Return names that go on as those did that gave the state."""
        names = cls()
        names._groups = {(g, label): name for g, label, name in state["groups"]}
        names._layers = list(state["layers"])
        chosen = state["chosen"]
        names._chosen = None if chosen is None else dict(chosen)
        if "budget" in state:  # not in spools of before there were profiles
            names.budget = KeyBudget.of(state["budget"])
        return names

    def state(self) -> dict[str, Any]:
        """Return all names as plain JSON."""
        return {
            "groups": [[*key, name] for key, name in self._groups.items()],
            "layers": list(self._layers),
            "chosen": None if self._chosen is None else dict(self._chosen),
            "budget": self.budget.state(),
        }

    @property
    def layer_keys(self) -> dict[str, str | None]:
        """Every layer in depth order, with its ``NN_alias``; None if it has no keys."""
        return {layer: (self._chosen or {}).get(layer) for layer in self._layers}

    @property
    def group_names(self) -> dict[tuple[str, str], str]:
        """The name in keys of each ``(grouping, group)``."""
        return dict(self._groups)

    def group(self, grouping: str, group: str) -> str:
        """Return the name of a group.

        The pooled group is ``all``; groups of the grouping that was seen first
        have their own name, those of another stand behind its name.
        """
        if grouping == POOLED:
            return POOLED
        key = (grouping, group)
        if key not in self._groups:
            first = next(iter(self._groups), key)[0]
            text = group if grouping == first else f"{grouping}.{group}"
            self._groups[key] = safe_name(text, [POOLED, *self._groups.values()])
        return self._groups[key]

    def layers(self, seen: Iterable[str], quantities: int) -> dict[str, str]:
        """Return the key ``NN_alias`` of each layer that has one.

        A layer needs two keys per quantity, of training and of the probe. Where there
        is no room for all, they go to layers evenly spaced in depth, the first and the
        last among them.
        """
        if self._chosen is None:
            self._layers = list(dict.fromkeys(seen))
            count = len(self._layers)
            room = min(count, self.budget.left("layers") // (2 * max(quantities, 1)))
            width = max(2, len(str(count - 1)))
            places = np.round(np.linspace(0, count - 1, room)).astype(int)
            self._chosen = {
                self._layers[place]: f"{place:0{width}d}_{_alias(self._layers[place])}"
                for place in places
            }
        return self._chosen


def record_metrics(
    records: list[EpochRecord], names: KeyNames | None = None
) -> dict[str, float]:
    """Derive an epoch's metrics from its records.

    From watched training batches (``source="train"``):

    - ``erank_<q>/<group>``, ``norm_…``, ``srank_…`` and ``lead_…``: the summaries
      of `CHARTED`, averaged over layers, of each group and of ``all``;
    - ``spectral/<q>_div`` and ``spectral/<q>_div_max``: mean over layers, and
      largest, of the divergence of groups;
    - ``div_<q>/<NN>_<layer>``: the same, layer by layer;
    - ``erank_<q>.<NN>/<group>``: of a few layers, in the profile ``full``;
    - ``excess/<quantity>``: mean over layers of value minus mean of its null.

    From the probe (``source="probe"``): ``probe_<q>/<NN>_<layer>``, the
    standardised divergence (z) layer by layer. ``<q>`` is ``grad``, ``act`` or
    ``adj``. ``spectral/nonfinite`` counts marked spectra, if there are any.

    Each layer is first averaged over networks, watched batches and pairs of groups,
    then layers are averaged, each with the same weight. Divergences are those of
    the first divergence and the first grouping in the records: two of either are
    never mixed. Only spectra with status ``ok`` count, and layers that cannot
    have more than one singular value (degenerate) are left out.

    Args:
        records: All of one epoch; several folds and sources may stand together.
        names: Keeps keys the same from epoch to epoch, and within the profile's
            number; new if not given.

    Returns:
        Finite values only, the summary ones first: a run's page keeps the order.
    """
    names = names or KeyNames()
    fit = names.budget.fit
    train = [record for record in records if record.source == "train"]
    rows = list(_primary(train))
    metrics = fit("summary", _headline(rows, sum(r.nonfinite for r in records)))
    cells = _summaries(train, names)
    means = {key: _mean(map(_mean, cell.values())) for key, cell in cells.items()}
    metrics |= fit("groups", means)
    layers = _layer_keys(records, names)
    probe = list(_primary(r for r in records if r.source == "probe"))
    for quantity in QUANTITIES:
        values = _by_layer((row, row.value) for row in rows if row.quantity == quantity)
        metrics |= fit("layers", _keyed(f"div_{SHORT[quantity]}", values, layers))
    for quantity in QUANTITIES:
        z = _by_layer((row, row.z) for row in probe if row.quantity == quantity)
        metrics |= fit("layers", _keyed(f"probe_{SHORT[quantity]}", z, layers))
    return metrics | fit("focus", _focus(cells, layers, names.budget))


def _headline(rows: list[Divergence], nonfinite: int) -> dict[str, float]:
    """Means over layers, what matters most first."""
    found: dict[str, dict[str, float]] = {"div": {}, "excess": {}, "max": {}}
    for quantity in QUANTITIES:
        own = [row for row in rows if row.quantity == quantity]
        values = _by_layer((row, row.value) for row in own)
        excess = _by_layer((row, row.value - row.null_mean) for row in own)
        if values:
            name = f"spectral/{SHORT[quantity]}_div"
            found["div"][name] = _mean(values.values())
            found["max"][f"{name}_max"] = max(values.values())
        if excess:
            found["excess"][f"excess/{quantity}"] = _mean(excess.values())
    marked = {"spectral/nonfinite": float(nonfinite)} if nonfinite else {}
    return found["div"] | found["excess"] | marked | found["max"]


def _summaries(
    records: list[EpochRecord], names: KeyNames
) -> dict[str, dict[str, list[float]]]:
    """Collect each charted summary of batches and folds, by key and layer."""
    spectra = [s for record in records for s in record.spectra if s.status == "ok"]
    shaped: set[tuple[str, Quantity]] = set()
    for s in spectra:
        if (s.layer, s.quantity) not in shaped and not s.degenerate:
            shaped.add((s.layer, s.quantity))
    known: dict[tuple[Quantity, str, str], dict[str, list[Spectrum]]] = {}
    for s in spectra:
        if (s.layer, s.quantity) in shaped:
            layers = known.setdefault((s.quantity, s.grouping, s.group), {})
            layers.setdefault(s.layer, []).append(s)
    found = {
        f"{SHORT[cell[0]]}/{names.group(*cell[1:])}": known[cell]
        for cell in sorted(known, key=_quantity_order)
    }
    cells: dict[str, dict[str, list[float]]] = {}
    for section, (summary, scale) in CHARTED.items():
        for name, layers in found.items():
            cell = {
                layer: values
                for layer, some in layers.items()
                if (values := _finite(some, summary, scale))
            }
            if cell:
                cells[f"{section}_{name}"] = cell
    return cells


def _finite(spectra: list[Spectrum], summary: str, scale: str) -> list[float]:
    values = [s.summaries.get(summary, math.nan) for s in spectra]
    if scale != "batch":
        factors = [s.factor_of(scale) for s in spectra]
        values = [x * factor for x, factor in zip(values, factors, strict=True)]
    return [x for x in values if math.isfinite(x)]


def _focus(
    cells: dict[str, dict[str, list[float]]],
    layers: dict[str, str],
    budget: KeyBudget,
) -> dict[str, float]:
    """Effective ranks of as many layers as there is room for, evenly spaced."""
    own = [key for key in cells if key.startswith(f"{FOCUS}_")]
    room = budget.profile.focus // max(len(own), 1)
    places = np.linspace(0, len(layers) - 1, min(room, len(layers))).round().astype(int)
    chosen = [list(layers.items())[place] for place in places]
    found = {}
    for layer, name in chosen:
        for key in own:
            if layer in cells[key]:
                section, _, group = key.partition("/")
                number = name.partition("_")[0]
                found[f"{section}.{number}/{group}"] = _mean(cells[key][layer])
    return found


def _quantity_order(cell: tuple[Quantity, str, str]) -> int:
    return QUANTITIES.index(cell[0])


def _primary(records: Iterable[EpochRecord]) -> Iterator[Divergence]:
    """Yield the rows of the first divergence and grouping in the records."""
    first: tuple[str, str] | None = None
    for record in records:
        for row in record.divergences:
            first = first or (row.divergence, row.grouping)
            if (row.divergence, row.grouping) == first:
                yield row


def _layer_keys(records: list[EpochRecord], names: KeyNames) -> dict[str, str]:
    rows = [row for record in records for row in record.divergences]
    if not rows:
        return {}
    seen = [s.layer for record in records for s in record.spectra]
    quantities = len({row.quantity for row in rows})
    return names.layers([*seen, *(row.layer for row in rows)], quantities)


def _by_layer(pairs: Iterable[tuple[Divergence, float]]) -> dict[str, float]:
    """Average finite values layer by layer; layers without one are left out."""
    values: dict[str, list[float]] = {}
    for row, value in pairs:
        if np.isfinite(value):
            values.setdefault(row.layer, []).append(value)
    return {layer: _mean(some) for layer, some in values.items()}


def _keyed(
    section: str, values: dict[str, float], layers: dict[str, str]
) -> dict[str, float]:
    return {
        f"{section}/{key}": values[layer]
        for layer, key in layers.items()
        if layer in values
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _alias(layer: str) -> str:
    """Return the end of a layer's path, at most 20 characters, whole parts first."""
    parts = layer.split(".")
    while len(parts) > 1 and len(".".join(parts)) > ALIAS_LENGTH:
        del parts[0]
    clean = re.sub(r"[^A-Za-z0-9_.\-]+", "_", ".".join(parts))
    return clean[-ALIAS_LENGTH:].lstrip("_.") or "model"
