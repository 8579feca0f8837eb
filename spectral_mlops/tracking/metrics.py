"""The few scalars of an epoch that mean the same in every run.

Charts are drawn one per key with one line per run, so a key says what is
compared and never which run: ``<section>/<name>``, short, what differs last.
"""

import hashlib
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

SHORT: dict[Quantity, str] = {
    "gradient": "grad",
    "activation": "act",
    "adjoint": "adj",
}
CHARTED = {
    "erank": ("effective_rank", "batch"),
    "srank": ("stable_rank", "batch"),
    "lead": ("leading_share", "batch"),
    "norm": ("frobenius_norm", "mean"),
}
"""Summaries that have charts: section, summary, and the scale it is brought to
(the others are free of scale)."""
LAYER_KEYS = 120
"""At most this many per-layer keys in a section family; more freeze the page."""
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
    """Names of groups and layers that last for one run.

    Groups are named as they first appear, and keep that name. Layers are
    numbered in the order of first appearance, which is their depth; which of
    them have keys is settled by the first epoch that has divergences.
    """

    def __init__(self) -> None:
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
        return names

    def state(self) -> dict[str, Any]:
        """Return all names as plain JSON."""
        return {
            "groups": [[*key, name] for key, name in self._groups.items()],
            "layers": list(self._layers),
            "chosen": None if self._chosen is None else dict(self._chosen),
        }

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

        With more than ``LAYER_KEYS / quantities`` layers the keys go to layers
        evenly spaced in depth, the first and the last among them.
        """
        if self._chosen is None:
            self._layers = list(dict.fromkeys(seen))
            count = len(self._layers)
            room = min(count, LAYER_KEYS // max(quantities, 1))
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

    - ``erank_<q>/<group>``, ``srank_…``, ``lead_…`` and ``norm_…``: the summaries
      of `CHARTED`, averaged over layers, of each group and of ``all``;
    - ``spectral/<q>_div`` and ``spectral/<q>_div_max``: mean over layers, and
      largest, of the divergence of groups;
    - ``div_<q>/<NN>_<layer>``: the same, layer by layer;
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
        names: Keeps keys the same from epoch to epoch; new if not given.

    Returns:
        Finite values only, the summary ones first: a run's page keeps the order.
    """
    names = names or KeyNames()
    train = [record for record in records if record.source == "train"]
    metrics: dict[str, float] = {}
    per_layer: dict[str, float] = {}
    rows = list(_primary(train))
    layers = _layer_keys(records, names)
    for quantity in QUANTITIES:
        short = SHORT[quantity]
        values = _by_layer((row, row.value) for row in rows if row.quantity == quantity)
        excess = _by_layer(
            (row, row.value - row.null_mean) for row in rows if row.quantity == quantity
        )
        if values:
            metrics[f"spectral/{short}_div"] = _mean(values.values())
            metrics[f"spectral/{short}_div_max"] = max(values.values())
        if excess:
            metrics[f"excess/{quantity}"] = _mean(excess.values())
        per_layer |= _keyed(f"div_{short}", values, layers)
    probe = list(_primary(r for r in records if r.source == "probe"))
    for quantity in QUANTITIES:
        z = _by_layer((row, row.z) for row in probe if row.quantity == quantity)
        per_layer |= _keyed(f"probe_{SHORT[quantity]}", z, layers)
    if marked := sum(record.nonfinite for record in records):
        metrics["spectral/nonfinite"] = float(marked)
    return metrics | _summaries(train, names) | per_layer


def _summaries(records: list[EpochRecord], names: KeyNames) -> dict[str, float]:
    """Average each charted summary over batches and folds, then over layers."""
    spectra = [s for record in records for s in record.spectra if s.status == "ok"]
    shaped = {(s.layer, s.quantity) for s in spectra if not s.degenerate}
    usable = [s for s in spectra if (s.layer, s.quantity) in shaped]
    cells: dict[str, dict[str, list[float]]] = {}
    for section, (summary, scale) in CHARTED.items():
        for s in sorted(usable, key=_quantity_order):
            value = s.summaries.get(summary, np.nan) * s.factor_of(scale)
            if np.isfinite(value):
                group = names.group(s.grouping, s.group)
                cell = cells.setdefault(f"{section}_{SHORT[s.quantity]}/{group}", {})
                cell.setdefault(s.layer, []).append(value)
    return {key: _mean(map(_mean, cell.values())) for key, cell in cells.items()}


def _quantity_order(spectrum: Spectrum) -> int:
    return QUANTITIES.index(spectrum.quantity)


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
