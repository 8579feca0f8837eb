"""Where a cohort's features stand: the way back from numbers over them to a brain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.triangles import Order, rebuild, size_of
from spectral_mlops.errors import InputError

SEPARATORS = ("-", "~", "|", "__", ":", ".", "_", " ")


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """What is known of the places that features belong to.

    Attributes:
        order: Of connections, row-major ``upper`` or ``lower`` triangle.
        networks: Of connections and time courses, one name a network; empty where
            nobody said.
        affine: Of volumes, from voxels to mm, shape ``[4, 4]``.
    """

    order: Order | None = None
    networks: tuple[str, ...] = ()
    affine: NDArray[np.float64] | None = None

    def matrices(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Put vectors over connections back into symmetric matrices.

        Args:
            vectors: Shape ``[*, n(n-1)/2]``; NaN stays where it is.

        Returns:
            Shape ``[*, n, n]``, the diagonal NaN: no connection stands there.

        Raises:
            InputError: If the features are no connections.
        """
        if self.order is None:
            raise InputError(
                "These features are no connections with a stated order: set order= "
                "'upper' or 'lower'."
            )
        values = np.asarray(vectors, dtype=np.float64)
        matrices = rebuild(values.reshape(-1, values.shape[-1]), self.order)
        n = matrices.shape[1]
        matrices[:, range(n), range(n)] = np.nan
        return matrices.reshape(*values.shape[:-1], n, n)


SOMEWHERE = FeatureSpace()
"""Nothing is known."""


def networks_of(names: Sequence[str], order: Order) -> tuple[str, ...]:
    """Read the names of networks off those of their connections, ``SC1-SC2``.

    Args:
        names: One name a column.
        order: Of the triangle.

    Returns:
        One name a network; none unless every column bears the two names that the
        order says, with one separator throughout.
    """
    n = size_of(len(names), "names")
    rows, columns = (
        np.triu_indices(n, 1) if order == "upper" else np.tril_indices(n, -1)
    )
    for separator in SEPARATORS:
        pairs = [name.split(separator) for name in names]
        if any(len(pair) != 2 for pair in pairs):
            continue
        for first, second in ((rows, columns), (columns, rows)):
            found = [""] * n
            for pair, i, j in zip(pairs, first, second, strict=True):
                found[i], found[j] = pair
            said = [[found[i], found[j]] for i, j in zip(first, second, strict=True)]
            if said == pairs and len(set(found)) == n and all(found):
                return tuple(found)
    return ()
