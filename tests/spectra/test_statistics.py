"""Every statistic under relabelling, against matrices formed by masking rows."""

from collections.abc import Callable
from math import log, pi

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from spectral_mlops.errors import UnknownNameError
from spectral_mlops.records import DEGENERATE
from spectral_mlops.spectra.batched import compress
from spectral_mlops.spectra.directions import principal_angles
from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.spectra.kept import KeptColumns, KeptCounts, KeptRows
from spectral_mlops.spectra.kept_gradients import FormedGradients, GradientRows
from spectral_mlops.spectra.null import Relabelled
from spectral_mlops.spectra.statistics import (
    LEADING,
    STATISTICS,
    OfGradients,
    OfSpectra,
    find_statistic,
)
from tests.reference import reference_js

OWNER = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 8]
CODES = [
    [0, 0, 1, 1, 1, -1, 0, 0, 1],
    [1, 0, 0, 1, 0, -1, 1, 1, 0],
    [0, 1, 1, 1, 0, 2, 0, 0, 1],
    [1, 1, 1, 0, 1, 1, -1, 0, 0],
    [1, 0, 1, 1, 1, 1, 1, 0, 1],
]
SHAPES = [(20, 6), (5, 30), (30, 40), (3, 2), (8, 8)]
OF_SPECTRA = [n for n in STATISTICS if isinstance(STATISTICS.get(n), OfSpectra)]
OF_GRADIENTS = [n for n in STATISTICS if isinstance(STATISTICS.get(n), OfGradients)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(d_in: int, d_out: int, people: int = 9) -> tuple[Tensor, Tensor]:
    """Weighted rows around a mean, so that groups have something in common."""
    weight = torch.tensor([1 / OWNER.count(i) ** 0.5 for i in OWNER]).double()
    a = (normal(len(OWNER), d_in, seed=1) + 2) * weight[:, None]
    d = (normal(len(OWNER), d_out, seed=2) + 2) * weight[:, None]
    return a, d


def by_rows(a: Tensor, d: Tensor) -> GradientRows:
    return GradientRows(compress(a), compress(d), torch.tensor(OWNER), 9)


def by_people(a: Tensor, d: Tensor) -> FormedGradients:
    parts = [gradient(a, d, [i]) for i in range(9)]
    return FormedGradients(torch.stack(parts).unsqueeze(1))


def gradient(a: Tensor, d: Tensor, people: list[int]) -> Tensor:
    mask = torch.tensor([[float(i in people)] for i in OWNER], dtype=torch.float64)
    return (a * mask).T @ (d * mask)


def in_group(labels: list[int], group: int) -> list[int]:
    return [i for i, label in enumerate(labels) if label == group]


def slow_rank(values: np.ndarray) -> float:
    p = values[values > 1e-12 * values.max()]
    p = p / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def slow_norm(a: Tensor, d: Tensor, people: list[int]) -> float:
    parts = [gradient(a, d, [i]) for i in people]
    own = sum(float(x.square().sum()) for x in parts)
    whole = float(torch.stack(parts).sum(0).square().sum())
    return (whole - own) / (len(parts) * (len(parts) - 1))


def slow_dimension(a: Tensor, d: Tensor) -> int:
    ranks = [LEADING]
    for labels in CODES:
        for group in (0, 1):
            values = torch.linalg.svdvals(gradient(a, d, in_group(labels, group)))
            ranks.append(int((values > DEGENERATE * values[0]).sum()))
    return min(ranks)


def slow(name: str, a: Tensor, d: Tensor, labels: list[int]) -> float:
    """One statistic of one labelling."""
    people = [in_group(labels, group) for group in (0, 1)]
    g, h = (gradient(a, d, some) for some in people)
    if name == "unbiased_norm_ratio":
        x, y = (slow_norm(a, d, some) for some in people)
        return abs(log(x / y)) if x > 0 and y > 0 else float("nan")
    if name == "gradient_cosine":
        cosine = torch.nn.functional.cosine_similarity(g.flatten(), h.flatten(), 0)
        return 1 - float(cosine)
    if name == "principal_angle":
        return float(principal_angles(g, h, slow_dimension(a, d)).max())
    s, t = (torch.linalg.svdvals(x).numpy() for x in (g, h))
    if name == "effective_rank_difference":
        return abs(slow_rank(s) - slow_rank(t))
    if name == "js":
        return reference_js(s, t)
    return float(DIVERGENCES.get(name)(torch.from_numpy(s), torch.from_numpy(t)))


def under(name: str, kept, codes=CODES, pair=(0, 1)) -> np.ndarray:
    relabelled = Relabelled(kept, torch.tensor(codes))
    statistic = find_statistic(name)
    assert not statistic.lacks(relabelled)
    return statistic.under(relabelled, *pair).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [by_rows, by_people])
@pytest.mark.parametrize("name", [n for n in STATISTICS if n != "wasserstein_log"])
def test_gradients_against_a_plain_loop(name, kind, shape):
    a, d = rows(*shape)
    expected = [slow(name, a, d, labels) for labels in CODES]
    np.testing.assert_allclose(under(name, kind(a, d)), expected, rtol=1e-5, atol=1e-7)
    assert len({round(x, 9) for x in expected}) == len(CODES)


def test_logarithms_of_spectra_against_a_plain_loop():
    """Of what rounding makes of zero there is no logarithm: full rank only."""
    a, d = rows(20, 3)
    expected = [slow("wasserstein_log", a, d, labels) for labels in CODES]
    np.testing.assert_allclose(under("wasserstein_log", by_rows(a, d)), expected)


@pytest.mark.parametrize("name", [n for n in OF_SPECTRA if n != "wasserstein_log"])
@pytest.mark.parametrize("d", [3, 30])
def test_factors_against_a_plain_loop(name, d):
    a = rows(d, d)[0]
    kept = KeptRows(compress(a), torch.tensor(OWNER))
    function = find_statistic(name).function
    for found, labels in zip(under(name, kept), CODES, strict=True):
        spectra = []
        for group in (0, 1):
            people = in_group(labels, group)
            mask = torch.tensor([[float(i in people)] for i in OWNER])
            spectra.append(torch.linalg.svdvals(a * mask))
        assert found == pytest.approx(float(function(*spectra)), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("d", [5, 30])
@pytest.mark.parametrize("summed", [False, True])
def test_subspaces_of_rows_against_scipy(d, summed):
    """Two-dimensional: in one of the labellings a group has two rows."""
    a = rows(d, d)[0]
    grams = torch.stack([gradient(a, a, [i]) for i in range(9)]).unsqueeze(1)
    by_row = KeptRows(compress(a), torch.tensor(OWNER))
    found = under("principal_angle", KeptColumns(grams) if summed else by_row)
    for angle, labels in zip(found, CODES, strict=True):
        spaces = []
        for group in (0, 1):
            chosen = [i for i, who in enumerate(OWNER) if labels[who] == group]
            spaces.append(scipy.linalg.svd(a[chosen].numpy().T)[0][:, :2])
        assert angle == pytest.approx(scipy.linalg.subspace_angles(*spaces)[0])
    assert len({round(x, 6) for x in found}) == len(CODES)


def test_a_subspace_that_is_everything_is_at_no_angle():
    a = rows(3, 3)[0]
    kept = KeptRows(compress(a), torch.tensor(OWNER))
    angles = under("principal_angle", kept, CODES[:3])
    np.testing.assert_allclose(angles, 0, atol=1e-7)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_renaming_the_groups_changes_nothing(name):
    a, d = rows(20, 6)
    swapped = [[{0: 1, 1: 0}.get(c, c) for c in labels] for labels in CODES]
    found, back = under(name, by_rows(a, d)), under(name, by_rows(a, d), swapped)
    np.testing.assert_allclose(found, back, rtol=1e-9, atol=1e-12)
    other = [[{0: 4, 1: 3, 2: 0}.get(c, c) for c in labels] for labels in CODES]
    again = under(name, by_rows(a, d), other, (4, 3))
    np.testing.assert_allclose(found, again, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_the_order_of_rows_changes_nothing(name):
    a, d = rows(20, 6)
    order = torch.randperm(len(OWNER), generator=torch.Generator().manual_seed(1))
    owner = torch.tensor(OWNER)[order]
    moved = GradientRows(compress(a[order]), compress(d[order]), owner, 9)
    np.testing.assert_allclose(
        under(name, moved), under(name, by_rows(a, d)), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("scale", [1e-12, 37.0, 1e9])
@pytest.mark.parametrize("name", list(STATISTICS))
def test_a_rescaled_loss_changes_nothing(name, scale):
    """Both groups' gradients are rescaled: their ratio is that of before, too."""
    a, d = rows(20, 6)
    for kind in (by_rows, by_people):
        found = under(name, kind(a, d * scale))
        np.testing.assert_allclose(found, under(name, kind(a, d)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_a_relabelling_without_one_group_is_nan_alone(name):
    codes = [CODES[0], [1, 1, 1, 1, 1, 1, -1, 1, 1]]
    for kind in (by_rows, by_people):
        found = under(name, kind(*rows(20, 6)), codes)
        assert np.isnan(found).tolist() == [False, True]
        assert np.isnan(under(name, kind(*rows(20, 6)), codes, (0, 7))).all()


@pytest.mark.parametrize("name", list(STATISTICS))
def test_one_person_per_group(name):
    codes = [[0, 1, -1, -1, -1, -1, -1, -1, -1]]
    a, d = rows(20, 6)
    (found,) = under(name, by_rows(a, d), codes)
    if name == "unbiased_norm_ratio":
        assert np.isnan(found)
    elif name == "principal_angle":  # one of them has rank 1
        u, v = (gradient(a, d, [i]) for i in (0, 1))
        assert found == pytest.approx(float(principal_angles(u, v, 1)))
    elif name != "wasserstein_log":
        assert found == pytest.approx(slow(name, a, d, codes[0]), rel=1e-5)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_groups_of_silent_people_have_no_number(name):
    a, d = rows(20, 6)
    d[torch.tensor([i in (1, 7) for i in OWNER])] = 0.0  # all of a group, once
    assert in_group(CODES[4], 0) == [1, 7]
    for kind in (by_rows, by_people):
        found = under(name, kind(a, d))
        assert np.isnan(found[4])
        assert name == "unbiased_norm_ratio" or np.isfinite(found[:4]).all()


def test_equal_groups_are_at_distance_zero():
    a, d = rows(20, 6)
    owner, n = torch.tensor([*OWNER, *(i + 9 for i in OWNER)]), 18
    twice = GradientRows(compress(a.repeat(2, 1)), compress(d.repeat(2, 1)), owner, n)
    codes = [[0] * 9 + [1] * 9]
    for name in STATISTICS:
        assert under(name, twice, codes)[0] == pytest.approx(0.0, abs=2e-7), name


def test_opposite_and_orthogonal_gradients_by_hand():
    e = torch.eye(4, dtype=torch.float64)
    a = torch.stack([e[0], e[0], e[1], e[0]])
    d = torch.stack([e[0], 2 * e[0], e[0], -e[0]])
    kept = GradientRows(compress(a), compress(d), torch.arange(4), 4)
    codes = [[0, 1, -1, -1], [0, -1, 1, -1], [0, -1, -1, 1]]
    np.testing.assert_allclose(under("gradient_cosine", kept, codes), [0, 1, 2])
    angles = under("principal_angle", kept, codes)
    np.testing.assert_allclose(angles, [0, pi / 2, 0], atol=1e-7)


def test_the_unbiased_norm_is_unbiased_and_the_plain_one_is_not():
    """Means over draws of people whose mean gradient is known."""
    people, draws = 400, 3000
    a = torch.ones(people, 1, dtype=torch.float64)
    d = 0.3 + normal(people, 1, seed=5)
    kept = GradientRows(a, d, torch.arange(people), people)
    generator = torch.Generator().manual_seed(2)
    shuffled = torch.rand(draws, people, generator=generator).argsort(1)
    member = shuffled < 5
    from spectral_mlops.spectra.statistics import unbiased_squared_norm

    mean = float(d.mean()) ** 2
    pairs = (float(d.sum()) ** 2 - float(d.square().sum())) / (people * (people - 1))
    found = unbiased_squared_norm(kept.inner, member)
    error = float(found.std()) / draws**0.5
    assert float(found.mean()) == pytest.approx(pairs, abs=4 * error)
    plain = (member.double() @ d)[:, 0].square() / 25
    assert float(plain.mean()) > mean + 10 * error
    assert unbiased_squared_norm(kept.inner, shuffled < 1).isnan().all()


def test_blocks_have_no_one_subspace():
    a, d = rows(6, 4)
    parts = by_people(a, d).parts.expand(-1, 2, -1, -1)
    relabelled = Relabelled(FormedGradients(parts), torch.tensor(CODES))
    assert "2 independent blocks" in find_statistic("principal_angle").lacks(relabelled)
    assert not find_statistic("gradient_cosine").lacks(relabelled)
    counts = Relabelled(KeptCounts(torch.ones(9, 4)), torch.tensor(CODES))
    assert "one-hot" in find_statistic("principal_angle").lacks(counts)


def test_the_table():
    assert set(DIVERGENCES) < set(STATISTICS)
    assert set(OF_GRADIENTS) == {"unbiased_norm_ratio", "gradient_cosine"}
    assert set(STATISTICS) == {*OF_SPECTRA, *OF_GRADIENTS, "principal_angle"}
    assert all(STATISTICS.get(n).quantities == ("gradient",) for n in OF_GRADIENTS)
    with pytest.raises(UnknownNameError, match=r"'cosine'.*gradient_cosine"):
        find_statistic("cosine")


def test_a_divergence_of_ones_own_is_found(monkeypatch):
    def largest(a: Tensor, b: Tensor) -> Tensor:
        return (a[..., 0] - b[..., 0]).abs()

    own: dict[str, Callable[[Tensor, Tensor], Tensor]] = dict(DIVERGENCES._entries)
    monkeypatch.setattr(DIVERGENCES, "_entries", own)
    DIVERGENCES.register("largest")(largest)
    a, d = rows(20, 6)
    found = under("largest", by_rows(a, d))
    tops = [
        [float(torch.linalg.svdvals(gradient(a, d, in_group(c, g)))[0]) for g in (0, 1)]
        for c in CODES
    ]
    np.testing.assert_allclose(found, [abs(x - y) for x, y in tops])
