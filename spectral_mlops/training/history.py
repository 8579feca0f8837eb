"""What a run keeps along the way for its end: curves, spectra, maps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_mlops.records import Divergence, EpochRecord, Spectrum
from spectral_mlops.tracking.measures import MEASURES

Array = NDArray[np.float64]
Cell = tuple[str, str, str, str]  # layer, quantity, grouping, group
Network = tuple[int, int]  # fold, seed

BEST = {"val/loss": min} | {
    f"val/{name}": min if name in one.lower else max
    for one in MEASURES.values()
    for name in one.overall
}
"""Curves with a best value, and which it is."""
_CURVES = ("curves", "ranks", "divergences", "probe")
AREAS = (*(f"val/{one.headline}" for one in MEASURES.values()), "divergence/")
"""Curves, or beginnings of their names, with a mean over epochs."""


class History:
    """Curves of metrics, and mean spectra of the last epoch and the best one."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}
        self.ranks: dict[int, dict[Cell, float]] = {}
        self.divergences: dict[int, dict[tuple[str, str], float]] = {}
        self.probe: dict[int, dict[tuple[str, str], float]] = {}
        self._last: dict[Network, dict[Cell, _Mean]] = {}
        self._best: dict[Network, dict[Cell, _Mean]] = {}
        self._at: dict[Network, int] = {}

    def add(
        self,
        epoch: int,
        records: Iterable[EpochRecord],
        metrics: Mapping[str, float],
        best_epochs: Mapping[Network, int],
        primary: str,
    ) -> None:
        """Take in one epoch.

        Args:
            epoch: Counted from 0.
            records: Of all networks and sources.
            metrics: Of the epoch.
            best_epochs: Per fold and seed, the epoch of the lowest validation loss so
                far.
            primary: The grouping whose divergences are kept.
        """
        for key, value in metrics.items():
            if np.isfinite(value):
                self.curves.setdefault(key, []).append(float(value))
        records = list(records)
        trained = [record for record in records if record.source == "train"]
        self._last = {(r.fold, r.seed): _means(r.spectra) for r in trained}
        for network, means in self._last.items():
            if best_epochs[network] == epoch:
                self._best[network], self._at[network] = means, epoch
        self.ranks[epoch] = _ranks(trained)
        self.divergences[epoch] = _by_layer(trained, primary, "value")
        probed = [record for record in records if record.source == "probe"]
        if probed:
            self.probe[epoch] = _by_layer(probed, primary, "z")

    def metrics(self) -> dict[str, float]:
        """Return ``best/…`` and ``auc/…`` of the headline curves.

        ``auc/`` is the mean over the epochs that a curve has: the area under it, on
        an axis from 0 to 1.
        """
        best = {
            f"best/{_flat(key)}": float(which(self.curves[key]))
            for key, which in BEST.items()
            if key in self.curves
        }
        areas = {
            f"auc/{_flat(key)}": float(np.mean(curve))
            for key, curve in self.curves.items()
            if key.startswith(AREAS)
        }
        return best | areas

    def arrays(self) -> dict[str, Any]:
        """Return the mean spectra as dense arrays with the names of their axes.

        ``last`` and ``best`` have the shape ``[layer, group, quantity, k]``, scale
        ``batch``, NaN where there is nothing: the mean by rank position over the
        watched batches of an epoch and over networks, for drawing, not for summaries.
        ``best`` takes of each network the epoch of its lowest validation loss,
        ``best_epochs``, in the order of ``networks`` (fold and seed). ``n`` is the mean
        number of samples in a batch, ``[layer, group, quantity]``.
        """
        cells = list(dict.fromkeys(c for means in self._last.values() for c in means))
        layers, quantities = (list(dict.fromkeys(c[i] for c in cells)) for i in (0, 1))
        groups = list(dict.fromkeys(c[2:] for c in cells))
        axes = (layers, groups, quantities)
        networks = sorted(self._at)
        return {
            "last": _dense(self._last.values(), axes, _Mean.values),
            "best": _dense(self._best.values(), axes, _Mean.values),
            "n": _dense(self._last.values(), axes, _Mean.size).sum(axis=-1),
            "best_epochs": np.array([self._at[network] for network in networks]),
            "networks": np.array(networks, dtype=np.int64).reshape(-1, 2),
            "layers": np.array(layers, dtype=np.str_),
            "groupings": np.array([grouping for grouping, _ in groups], dtype=np.str_),
            "groups": np.array([group for _, group in groups], dtype=np.str_),
            "quantities": np.array(quantities, dtype=np.str_),
        }

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, in plain values and tensors."""
        means = {
            name: {
                network: {cell: mean.state() for cell, mean in cells.items()}
                for network, cells in found.items()
            }
            for name, found in (("last", self._last), ("best", self._best))
        }
        curves = {name: getattr(self, name) for name in _CURVES}
        return curves | means | {"at": self._at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name in _CURVES:
            setattr(self, name, state[name])
        self._last, self._best = (
            {
                network: {cell: _Mean.of(*found) for cell, found in cells.items()}
                for network, cells in state[name].items()
            }
            for name in ("last", "best")
        )
        self._at = state["at"]

    def write(self, path: Path) -> Path:
        """Write `arrays` as ``.npz``; it reads with ``allow_pickle=False``."""
        np.savez_compressed(path, **self.arrays())
        return path


class _Mean:
    """Mean spectrum by rank position, and mean number of samples."""

    def __init__(self) -> None:
        self.total: Array = np.zeros(0)
        self.samples, self.count = 0.0, 0

    def add(self, spectrum: Spectrum) -> None:
        if len(spectrum.values) > len(self.total):
            total = np.zeros(len(spectrum.values))
            total[: len(self.total)] = self.total
            self.total = total
        self.total[: len(spectrum.values)] += spectrum.values
        self.samples += spectrum.samples
        self.count += 1

    @classmethod
    def of(cls, total: torch.Tensor, samples: float, count: int) -> "_Mean":
        mean = cls()
        mean.total, mean.samples, mean.count = total.numpy(), samples, count
        return mean

    def state(self) -> tuple[torch.Tensor, float, int]:
        return torch.from_numpy(self.total), self.samples, self.count

    def values(self) -> Array:
        """Shape ``[k]``."""
        return self.total / self.count

    def size(self) -> Array:
        """Shape ``[1]``."""
        return np.array([self.samples / self.count])


def _means(spectra: Iterable[Spectrum]) -> dict[Cell, _Mean]:
    found: dict[Cell, _Mean] = {}
    for s in spectra:
        if s.status == "ok":
            cell = (s.layer, s.quantity, s.grouping, s.group)
            found.setdefault(cell, _Mean()).add(s)
    return found


def _ranks(records: Iterable[EpochRecord]) -> dict[Cell, float]:
    """Mean effective rank over batches and folds; NaN of degenerate layers."""
    found: dict[Cell, list[float]] = {}
    spectra = [s for record in records for s in record.spectra if s.status == "ok"]
    shaped = {(s.layer, s.quantity) for s in spectra if not s.degenerate}
    for s in spectra:
        rank = s.summaries.get("effective_rank", np.nan)
        if (s.layer, s.quantity) not in shaped:
            found[s.layer, s.quantity, s.grouping, s.group] = [np.nan]
        elif np.isfinite(rank):
            cell = (s.layer, s.quantity, s.grouping, s.group)
            found.setdefault(cell, []).append(rank)
    return {cell: float(np.mean(some)) for cell, some in found.items()}


def _by_layer(
    records: Iterable[EpochRecord], primary: str, what: str
) -> dict[tuple[str, str], float]:
    """Mean over folds and pairs of groups, by layer and quantity; NaN if none."""
    found: dict[tuple[str, str], list[float]] = {}
    rows: Iterable[Divergence] = (row for r in records for row in r.divergences)
    for row in rows:
        if row.grouping == primary:
            values = found.setdefault((row.layer, row.quantity), [])
            values += [getattr(row, what)] if np.isfinite(getattr(row, what)) else []
    return {key: float(np.mean(some or [np.nan])) for key, some in found.items()}


def _dense(
    means: Iterable[Mapping[Cell, _Mean]],
    axes: tuple[Sequence[str], Sequence[tuple[str, ...]], Sequence[str]],
    values_of: Callable[[_Mean], Array],
) -> Array:
    """Fill ``[layer, group, quantity, k]``, averaged over folds of equal weight."""
    layers, groups, quantities = axes
    folds = [{cell: values_of(mean) for cell, mean in fold.items()} for fold in means]
    longest: dict[Cell, int] = {}
    for cell, values in (item for fold in folds for item in fold.items()):
        longest[cell] = max(longest.get(cell, 0), len(values))
    k = max(longest.values(), default=0)
    each = np.full((len(folds), *map(len, axes), k), np.nan)
    for number, fold in enumerate(folds):
        for cell, values in fold.items():
            layer, quantity, *group = cell
            place = layers.index(layer), groups.index(tuple(group))
            row = each[number, *place, quantities.index(quantity)]
            row[: longest[cell]] = 0.0  # fewer people in a batch, fewer values
            row[: len(values)] = values
    return _mean_known(each)


def _mean_known(each: Array) -> Array:
    """Mean over the first axis of what is not NaN; NaN where there is nothing."""
    known = np.isfinite(each)
    count = known.sum(axis=0)
    total = np.where(known, each, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _flat(key: str) -> str:
    """Return a key as one word: what stands before the last slash is the section."""
    return key.replace("/", "_")
