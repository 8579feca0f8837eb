"""Memory maps that travel between processes as the name of their file.

NumPy pickles a memory map as all of its values, gigabytes for a cohort of volumes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MappedFile:
    """Where a memory-mapped array of float32 stands.

    Attributes:
        path: The file.
        offset: Of the first value, in bytes.
        shape: Of the array, in C order.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> "MappedFile | None":
        """Return where an array stands, None unless it is a contiguous map."""
        if not isinstance(array, np.memmap) or not array.flags.c_contiguous:
            return None
        root: Any = array
        while isinstance(root.base, np.memmap):
            root = root.base
        if root.filename is None or not Path(root.filename).is_file():
            return None
        skipped = _address(array) - _address(root)  # a view may start further on
        return cls(Path(root.filename), root.offset + skipped, array.shape)

    def open(self) -> NDArray[np.float32]:
        """Map the file again, read-only."""
        return np.memmap(
            self.path, dtype=np.float32, mode="r", offset=self.offset, shape=self.shape
        )


def _address(array: NDArray[np.float32]) -> int:
    """Return where an array's first value lies in memory."""
    return int(array.__array_interface__["data"][0])
