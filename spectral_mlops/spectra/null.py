"""Statistics of two groups under every relabelling, from what was kept of people.

Relabellings that make the same group again are solved once: their values are equal
to the last bit, so that a tie counts as one.
"""

import numpy as np
import torch
from torch import Tensor

from spectral_mlops.spectra.kept import Kept

MAX_ROWS = 2048
"""Rows above which the Gram of all rows is too dear."""


class Relabelled:
    """One quantity at one layer under all relabellings; groups are solved once.

    Args:
        kept: The parts of ``n`` people.
        codes: Group of each person under each relabelling, shape ``[P + 1, n]``,
            -1 for people who take no part; the observed labels first.
    """

    def __init__(self, kept: Kept, codes: Tensor) -> None:
        self.kept, self.codes = kept, codes
        self._spectra: dict[int, Tensor] = {}

    def member(self, code: int) -> Tensor:
        """Whether each person is in a group, boolean ``[P + 1, n]``."""
        return self.codes == code

    def spectra(self, *groups: int) -> list[Tensor]:
        """Singular values of groups, ``[P + 1, R]`` each."""
        new = [code for code in groups if code not in self._spectra]
        sizes = {int(self.member(code)[0].sum()) for code in new}
        for some in [new] if len(sizes) == 1 else [[code] for code in new]:
            member = torch.stack([self.member(code) for code in some], 1)
            different, place = _once(member.flatten(0, 1))
            found = self.kept.spectra(different)[place].unflatten(0, (-1, len(some)))
            self._spectra |= dict(zip(some, found.unbind(1), strict=True))
        return [self._spectra[code] for code in groups]


def _once(member: Tensor) -> tuple[Tensor, Tensor]:
    """Different rows in the order they come in, and the place of each row.

    The observed groups so stay first, and their values do not depend on the others.
    """
    # By their bits: torch.unique sorts rows, which takes four times as long.
    bits = np.packbits(member.numpy(force=True), axis=1)
    numbers: dict[bytes, int] = {}
    place = [numbers.setdefault(row.tobytes(), len(numbers)) for row in bits]
    first = np.unique(place, return_index=True)[1]
    return member[torch.from_numpy(first)], torch.tensor(place)
