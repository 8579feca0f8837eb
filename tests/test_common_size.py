from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.spectra.summaries import effective_rank


def observed():
    torch.manual_seed(5)
    x, labels = torch.randn(9, 6), ["a"] * 3 + ["b"] * 6
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    monitor = SpectralMonitor(model)
    with monitor.watch(labels, [f"s{i}" for i in range(9)]):
        model(x).square().sum().backward()
    return x, monitor.collect()


def test_all_subsets_of_two_against_enumeration():
    x, result = observed()
    frame = result.at_common_size(m=2, draws=4000, seed=1)
    rows = frame[(frame.layer == "0") & (frame.quantity == "activation")]
    rows = rows.set_index(["group_a", "group_b"])

    def spectrum(people):
        return torch.linalg.svdvals(x[list(people)].double())

    of_a = [spectrum(s) for s in combinations(range(3), 2)]
    of_b = [spectrum(s) for s in combinations(range(3, 9), 2)]
    ranks = [float(effective_rank(s)) for s in of_b]
    row = rows.loc[("b", "")]
    assert row.statistic == "effective_rank"
    assert (row.m, row.low, row.high) == (
        2,
        pytest.approx(np.quantile(ranks, 0.025), abs=0.02),
        pytest.approx(np.quantile(ranks, 0.975), abs=0.02),
    )
    function = DIVERGENCES.get("js")
    values = [float(function(a, b)) for a in of_a for b in of_b]
    assert rows.loc[("a", "b")]["median"] == pytest.approx(np.median(values), abs=0.003)


def test_default_size_is_half_of_the_smallest_group():
    _, result = observed()
    assert set(result.at_common_size(draws=5).m) == {2}
    whole = result.at_common_size(m=3, draws=5)
    alone = whole[(whole.group_a == "a") & (whole.group_b == "")]
    assert np.allclose(alone.low, alone.high)  # three of three


def test_a_group_that_is_too_small_is_left_out_and_more_than_all_is_refused():
    _, result = observed()
    assert set(result.at_common_size(m=4, draws=5).group_a) == {"b"}
    with pytest.raises(InputError, match="hold 3 to 6 people"):
        result.at_common_size(m=7)


def test_subsamples_and_chance_against_enumeration():
    """Two of three against two of six; and any two against any two others."""
    x, result = observed()
    found = result.subsampled("group", 2, draws=4000, seed=1)
    assert (found.m, found.n, found.reason) == (2, 3, "")
    key = ("0", "activation", "a", "b")
    function = DIVERGENCES.get("js")
    of = {
        pair: torch.linalg.svdvals(x[list(pair)].double())
        for pair in combinations(range(9), 2)
    }
    apart = {
        (a, b): float(function(of[a], of[b])) for a in of for b in of if not {*a} & {*b}
    }
    exact = [v for (a, b), v in apart.items() if max(a) < 3 <= min(b)]
    values, chance = found.values[key], found.chance[key]
    assert len(exact) == 3 * 15
    assert np.mean(values) == pytest.approx(np.mean(exact), abs=0.002)
    assert set(np.round(values, 9)) <= set(np.round(exact, 9))
    assert np.mean(chance) == pytest.approx(np.mean([*apart.values()]), abs=0.002)
    assert set(np.round(chance, 9)) <= set(np.round([*apart.values()], 9))
    assert found.values.keys() == found.chance.keys()
    assert {k[1] for k in found.values} == {"gradient", "activation", "adjoint"}


def test_without_a_difference_chance_is_what_subsamples_show():
    """Raw divergences are far from zero; less chance they are zero on average."""
    raw, effects = [], []
    torch.manual_seed(3)
    model = nn.Linear(6, 3)
    for _ in range(60):
        monitor = SpectralMonitor(model, quantities=("activation",))
        with monitor.watch(["a"] * 8 + ["b"] * 12, [f"s{i}" for i in range(20)]):
            model(torch.randn(20, 6)).square().sum().backward()
        found = monitor.collect().subsampled("group", 4, draws=40)
        ((_, values),) = found.values.items()
        ((_, chance),) = found.chance.items()
        raw.append(values.mean())
        effects.append(values.mean() - chance.mean())
    error = np.std(effects) / np.sqrt(60)
    assert abs(np.mean(effects)) < 3 * error
    assert np.mean(raw) > 10 * error


def test_of_three_groups_each_pair_is_relabelled_alone():
    """A third group of other people changes neither subsamples nor chance."""
    torch.manual_seed(4)
    x, model = torch.randn(15, 6), nn.Linear(6, 3)
    x[10:] *= 50

    def found(n, labels):
        monitor = SpectralMonitor(model, quantities=("activation",))
        with monitor.watch(labels, [f"s{i:02}" for i in range(n)]):
            model(x[:n]).square().sum().backward()
        return monitor.collect().subsampled("group", 3, draws=30)

    two = found(10, ["a"] * 4 + ["b"] * 6)
    three = found(15, ["a"] * 4 + ["b"] * 6 + ["c"] * 5)
    key = ("", "activation", "a", "b")
    assert {k[2:] for k in three.values} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert three.values[key] == pytest.approx(two.values[key])
    assert three.chance[key] == pytest.approx(two.chance[key])
    assert (three.m, three.n) == (3, 4)


def test_subsamples_of_everybody_are_none():
    _, result = observed()
    found = result.subsampled("group", 3)
    assert (found.values, found.m, found.n) == ({}, 0, 3)
    assert found.reason == "the smallest group has 3 people: no subsamples of 3"
    assert result.subsampled("group", draws=5).m == 2
    result.release()
    with pytest.raises(CaptureError, match="released"):
        result.subsampled("group")
