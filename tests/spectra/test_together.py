"""Several batches in one reduction give what each gives alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from spectral_mlops.spectra import jobs
from spectral_mlops.spectra import together as module
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.solve import solve
from spectral_mlops.spectra.together import reduce_together
from tests.spectra.engine import normal

Batch = tuple[list[LayerFactors], Groups]


def layers(serial: int, size: int, **changes: object) -> list[LayerFactors]:
    """Wide, tall, alike twice, in blocks, with a formed gradient, of counts alone."""
    seed = 100 * serial

    def rows(*shape: int) -> torch.Tensor:
        nonlocal seed
        seed += 1
        return normal(*shape, seed=seed).to(torch.float32)

    groups = changes.get("groups", 3)
    return [
        LayerFactors((serial, "wide"), rows(size, 1, 40), rows(size, 1, 30)),
        LayerFactors((serial, "tall"), rows(size, 7, 5), rows(size, 7, 3)),
        LayerFactors((serial, "again"), rows(size, 7, 5), rows(size, 7, 3)),
        LayerFactors((serial, "blocks"), rows(2, size, 3, 4), rows(2, size, 3, 6)),
        LayerFactors(
            (serial, "formed"),
            rows(size, 2, 6),
            rows(size, 9, 4),
            normal(groups, 6, 4, seed=seed).to(torch.float32),
        ),
        LayerFactors((serial, "one"), rows(size, 1, 8), quantities=("activation",)),
    ]


def members(size: int, *shares: list[int]) -> Groups:
    return Groups(size, [None, *map(torch.tensor, shares)])


def assert_same(batches: list[Batch]) -> None:
    found = {one.key: one for one in solve(reduce_together(batches))}
    expected = [s for own, groups in batches for s in solve(reduce_layers(own, groups))]
    assert len(found) == len(expected)
    for one in expected:
        other = found[one.key]
        assert (one.status, one.route, len(one.values)) == (
            other.status, other.route, len(other.values),
        )  # fmt: skip
        scale = one.values[0] if len(one.values) else 0.0
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-9 * scale)


def even() -> list[Batch]:
    shares = ([1, 2, 3], [0, 4]), ([0, 4, 1], [2, 3]), ([2], [4, 3, 1, 0])
    return [(layers(i, 5), members(5, *s)) for i, s in enumerate(shares)]


def uneven() -> list[Batch]:
    sizes = {0: ([0, 1], [2, 3, 4]), 1: ([1], [0]), 2: ([5, 3, 4], [0, 1, 2])}
    own = {0: 5, 1: 2, 2: 6}
    return [(layers(i, own[i]), members(own[i], *s)) for i, s in sizes.items()]


def empty_groups() -> list[Batch]:
    return [
        (layers(0, 4), members(4, [], [0, 1, 2, 3])),
        (layers(1, 4), members(4, [3], [])),
        (layers(2, 0), members(0, [], [])),
    ]


def other_numbers_of_groups() -> list[Batch]:
    return [
        (layers(0, 4), members(4, [0, 2], [1, 3])),
        (layers(1, 4, groups=5), members(4, [0], [1], [2, 3], [0, 3])),
    ]


def other_layers() -> list[Batch]:
    return [
        (layers(0, 4), members(4, [0, 2], [1, 3])),
        (layers(1, 4)[:2], members(4, [0], [1])),
        (layers(2, 4), members(4, [0], [1])),
        ([], members(4, [0], [1])),
    ]


@pytest.mark.parametrize(
    "make", [even, uneven, empty_groups, other_numbers_of_groups, other_layers, list]
)
def test_as_one_by_one(make: Callable[[], list[Batch]]):
    assert_same(make())


def test_without_the_pooled_group_and_with_overlaps():
    batches = [
        (layers(0, 6, groups=2), Groups(6, [*torch.arange(6).split(3)])),
        (layers(1, 6, groups=2), Groups(6, [torch.arange(5), torch.tensor([5, 0])])),
    ]
    assert_same(batches)


def test_what_is_alike_takes_the_calls_of_one(monkeypatch):
    calls = []
    real = jobs.row_grams

    def counted(x, stack):
        calls.append(len(x))
        return real(x, stack)

    monkeypatch.setattr(jobs, "row_grams", counted)
    shares = ([1, 2, 3], [0, 4]), ([0, 4, 1], [2, 3]), ([4, 2, 0], [3, 1])
    batches = [(layers(i, 5), members(5, *s)) for i, s in enumerate(shares)]
    reduce_layers(*batches[0])
    alone = len(calls)
    reduce_together(batches)
    assert len(calls) == 2 * alone


def test_large_and_double_layers_go_alone(monkeypatch):
    seen = []
    real = module.reduce_layers

    def told(layers, groups):
        seen.append((groups.batches, [layer.name for layer in layers]))
        return real(layers, groups)

    monkeypatch.setattr(module, "reduce_layers", told)
    monkeypatch.setattr(module, "STACKED", 60)
    batches: list[Batch] = []
    for i in range(2):
        double = LayerFactors(
            (i, "double"), *(torch.ones(4, 1, 3).double() for _ in "ad")
        )
        large = LayerFactors((i, "large"), *(torch.ones(4, 4, 4) for _ in "ad"))
        small = LayerFactors((i, "small"), *(torch.ones(4, 1, 15) for _ in "ad"))
        batches.append(([small, double, large], members(4, [0], [1, 2])))
    assert_same(batches)
    assert seen == [
        ([4], [(0, "double"), (0, "large")]),
        ([4], [(1, "double"), (1, "large")]),
        ([4, 4], [(0, "small")]),
    ]


def test_what_is_not_finite_stays_in_its_batch():
    batches = even()
    batches[1][0][0].activation[2] = torch.nan
    found = {one.key: one for one in solve(reduce_together(batches))}
    bad = {key for key, one in found.items() if one.status != "ok"}
    alone = solve(reduce_layers(*batches[1]))
    assert bad == {one.key for one in alone if one.status != "ok"}
    assert {key.layer for key in bad} == {(1, "wide")}
