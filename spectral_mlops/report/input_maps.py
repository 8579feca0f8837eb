"""Directions in the places of their features, kept beside the figures of a run.

A run's people are not needed to draw them again: connections carry the names of their
networks, voxels the way to mm. Plain arrays in one file; reading executes nothing.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class InputMaps:
    """Leading directions of a run, joined over folds.

    Attributes:
        vectors: Quantity to group to ``[k, *shape]``; connections as symmetric
            matrices, shape ``[k, n, n]``, voxels ``[k, x, y, z]``; NaN is no feature.
        shares: Quantity to group to shares of energy, shape ``[k]``.
        titles: Quantity to what is drawn: which layer, epoch, people.
        networks: Of connections, one name a network; may be empty.
        affine: Of volumes, from voxels to mm, shape ``[4, 4]``; None of connections.
    """

    vectors: Mapping[str, Mapping[str, Array]]
    shares: Mapping[str, Mapping[str, Array]]
    titles: Mapping[str, str]
    networks: tuple[str, ...] = ()
    affine: Array | None = None


def write_maps(maps: InputMaps, path: Path) -> Path:
    """Write maps as one compressed NPZ file of float32."""
    arrays: dict[str, Any] = {"networks": np.array(maps.networks, dtype=np.str_)}
    if maps.affine is not None:
        arrays["affine"] = maps.affine
    for quantity, groups in maps.vectors.items():
        arrays[f"{quantity}/title"] = np.array(maps.titles[quantity], dtype=np.str_)
        arrays[f"{quantity}/groups"] = np.array(list(groups), dtype=np.str_)
        for number, (group, vectors) in enumerate(groups.items()):
            arrays[f"{quantity}/{number}/vectors"] = vectors.astype(np.float32)
            arrays[f"{quantity}/{number}/shares"] = maps.shares[quantity][group]
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


def read_maps(path: Path) -> InputMaps:
    """Read what `write_maps` wrote.

    Raises:
        InputError: If the file is damaged, or is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        vectors: dict[str, dict[str, Array]] = {}
        shares: dict[str, dict[str, Array]] = {}
        titles = {}
        for key in [key for key in arrays if key.endswith("/groups")]:
            quantity = key.removesuffix("/groups")
            titles[quantity] = str(arrays[f"{quantity}/title"])
            vectors[quantity], shares[quantity] = {}, {}
            for number, group in enumerate(arrays[key].tolist()):
                vectors[quantity][group] = arrays[f"{quantity}/{number}/vectors"]
                shares[quantity][group] = arrays[f"{quantity}/{number}/shares"]
        networks = tuple(map(str, arrays["networks"].tolist()))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged, or no file of directions.") from error
    return InputMaps(vectors, shares, titles, networks, arrays.get("affine"))
