"""Groups under relabelling, each solved once."""

import torch

from spectral_mlops.spectra.kept import KeptRows
from spectral_mlops.spectra.null import Relabelled


class Counting(KeptRows):
    """Counts what is solved."""

    asked: list[int]

    def spectra(self, member):
        self.__dict__.setdefault("asked", []).append(len(member))
        return super().spectra(member)


def kept() -> Counting:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return Counting(x, torch.arange(6))


CODES = torch.tensor(
    [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]]
)


def test_groups_that_come_again_are_solved_once_and_equal_to_the_last_bit():
    part = kept()
    a, b = Relabelled(part, CODES).spectra(0, 1)
    assert part.asked == [4]  # two groups, and two of another labelling
    assert torch.equal(a[0], b[1])
    assert torch.equal(b[0], a[1])
    assert torch.equal(a[3], a[0])
    expected = part.spectra(CODES == 0)
    torch.testing.assert_close(a, expected)
    torch.testing.assert_close(b, part.spectra(CODES == 1))


def test_groups_of_other_sizes_are_solved_apart_and_kept():
    codes = torch.tensor([[0, 0, 1, 1, 1, 2], [2, 0, 1, 0, 1, 1], [1, 1, 1, 0, 2, 0]])
    part = kept()
    relabelled = Relabelled(part, codes)
    found = relabelled.spectra(0, 1, 2)
    assert part.asked == [3, 3, 3]
    again = relabelled.spectra(2, 0)
    assert part.asked == [3, 3, 3]
    assert again[0] is found[2]
    for code, values in enumerate(found):
        torch.testing.assert_close(values, part.spectra(codes == code))


def test_the_observed_value_does_not_depend_on_the_relabellings():
    other = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 1]])
    first = [x[0] for x in Relabelled(kept(), CODES).spectra(0, 1)]
    second = [x[0] for x in Relabelled(kept(), other).spectra(0, 1)]
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_group_nobody_is_in():
    found = Relabelled(kept(), CODES).spectra(0, 7)
    assert found[1].shape == (4, 0)
