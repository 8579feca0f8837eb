"""How many rows on a layer's batch axis belong to one sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TypeVar

from spectral_mlops.errors import CaptureError, InputError, UnknownNameError
from spectral_mlops.hooks.rows import Contributions
from spectral_mlops.hooks.survey import Site
from spectral_mlops.hooks.watched import Watched
from spectral_mlops.registry import nearest

Kind = TypeVar("Kind", bound=Contributions)


@dataclass(frozen=True)
class Folding:
    """Consecutive rows that are one sample's.

    Attributes:
        batch_dim: Batch axis of the model's inputs.
        by_layer: Their number ``k``, where a layer's leading axis is ``k·N``.
        everywhere: Whether one ``k`` was given for all of them; those with ``N`` rows
            are then taken as they are.
    """

    batch_dim: int
    by_layer: Mapping[str, int] = field(default_factory=dict)
    everywhere: bool = True

    @property
    def most(self) -> int:
        """Rows of a sample that a call of the model itself may hold."""
        return max(self.by_layer.values(), default=1)

    def checked(self, call: Watched, rows: Kind) -> Kind:
        """Return one call's rows, one per sample.

        Raises:
            CaptureError: If they do not fit the labels, or changed since.
        """
        name, size = call.site.name, call.labelling.size
        if not call.unchanged():
            raise CaptureError(
                f"The input of layer '{name}' was changed in place after the batch, or "
                "the gradient given to it; read results before overwriting it."
            )
        k = self.by_layer.get(name, 1)
        if len(rows) == k * size and k > 1:
            return rows.fold(k)
        if len(rows) == size and (k == 1 or self.everywhere):
            return rows
        raise CaptureError(
            f"Layer '{name}' has {len(rows)} rows on its batch axis and there are "
            f"{size} samples"
            + (f" times rows_per_sample={k}" if k > 1 else "")
            + ": if k consecutive rows belong to each sample, pass "
            f"rows_per_sample={{'{name}': k}}; if its batch axis is another than the "
            f"model's (batch_dim={self.batch_dim}), bring the batch to that axis "
            "before the layer."
        )


def read_folding(
    rows_per_sample: int | Mapping[str, int] | None,
    sites: Sequence[Site],
    batch_dim: int,
) -> Folding:
    """Read a user's ``rows_per_sample``.

    Raises:
        InputError: If a number is below 1.
        UnknownNameError: If a layer holds no parameters.
    """
    if rows_per_sample is None:
        return Folding(batch_dim)
    names = [site.name for site in sites]
    everywhere = not isinstance(rows_per_sample, Mapping)
    if not isinstance(rows_per_sample, Mapping):
        rows_per_sample = dict.fromkeys(names, index(rows_per_sample))
    for name, k in rows_per_sample.items():
        if name not in names:
            raise UnknownNameError(
                f"rows_per_sample names '{name}', which holds no parameters; "
                f"choose from {', '.join(names)}.{nearest(name, names)}"
            )
        if k < 1:
            raise InputError(f"rows_per_sample={k} of '{name}': at least 1.")
    return Folding(batch_dim, dict(rows_per_sample), everywhere)
