"""What is wrong with whom in the preset ``dirty``: defects that real studies have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.errors import InputError

FEWEST = 8
"""People needed, so that every defect has a person of its own."""
SHORTER = 0.8
"""Share of time points that people scanned for a shorter time have."""


@dataclass(frozen=True)
class Defects:
    """Who has which defect; nobody where a field is empty.

    Attributes:
        nan: Person whose ``network`` is NaN in time courses and connectivity.
        dead: Person whose ``network`` never changes; its connections are NaN.
        missing: Person listed in ``participants.tsv`` without any file.
        twice: Person with two different rows in ``participants.tsv``.
        big_endian: Person whose map is stored as big-endian floats.
        flipped: People whose maps are stored with the first axis to the left.
        short: People with fewer time points.
        network: Position of the network that ``nan`` and ``dead`` lack.
    """

    nan: str = ""
    dead: str = ""
    missing: str = ""
    twice: str = ""
    big_endian: str = ""
    flipped: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    network: int = 0

    def length(self, who: str, timepoints: int) -> int:
        """Return how many of ``timepoints`` a person has."""
        return int(SHORTER * timepoints) if who in self.short else timepoints

    def told(self, networks: Sequence[str]) -> dict[str, Any]:
        """Return plain values for a file, the network by name."""
        network = networks[self.network]
        return {
            "network_is_nan": {"person": self.nan, "network": network},
            "network_is_constant": {"person": self.dead, "network": network},
            "listed_without_files": [self.missing],
            "two_different_rows": [self.twice],
            "map_is_big_endian": [self.big_endian],
            "map_is_stored_to_the_left": list(self.flipped),
            "fewer_time_points": list(self.short),
        }


CLEAN = Defects()


def draw_defects(people: pd.DataFrame, networks: int, seed: Sequence[int]) -> Defects:
    """Choose who has which defect.

    Args:
        people: Index of ids.
        networks: Number of networks.
        seed: Entropy of the random stream.

    Returns:
        The first five of different people; one person in four is flipped, and one in
        five short.

    Raises:
        InputError: If there are too few people for that.
    """
    if len(people) < FEWEST:
        raise InputError(
            f"people={len(people)}: the preset 'dirty' needs {FEWEST} people or more, "
            "so that every defect has a person of its own."
        )
    rng = np.random.default_rng(list(seed))
    who = [str(people.index[i]) for i in rng.permutation(len(people))]
    whole = who[3:]  # people whose files are whole, but for these two
    nan, dead, missing, twice, big_endian = who[:5]
    return Defects(
        nan,
        dead,
        missing,
        twice,
        big_endian,
        flipped=tuple(sorted(rng.permutation(whole)[: max(1, len(who) // 4)].tolist())),
        short=tuple(sorted(rng.permutation(whole)[: max(1, len(who) // 5)].tolist())),
        network=int(rng.integers(networks)),
    )
