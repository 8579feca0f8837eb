"""Families through the monitor: what moves, what is said, and what is refused."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import InputError
from spectral_mlops.validity import draw_people, read_families
from tests.reference import all_relabellings, reference_js, reference_singular_values

WHO = [f"s{i:02d}" for i in range(16)]
TWINS = {person: f"F{i // 2}" for i, person in enumerate(WHO)}
DX = ["a"] * 8 + ["b"] * 8


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def inputs(n=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 7, generator=generator, dtype=torch.float64)


def probed(labels=None, families=TWINS, loss=None, y=None, **settings):
    labels = DX if labels is None else labels
    n = len(labels)
    monitor = SpectralMonitor(network(), families=families, **settings)
    y = torch.arange(n) % 4 if y is None else y
    batch = (inputs(n), y, {"dx": labels}, WHO[:n])
    if loss is None:
        return monitor.probe([batch])
    return monitor.probe([batch], loss, adjoint="reformed")


def cell(found, layer="0", quantity="activation"):
    (item,) = [x for x in found if (x.layer, x.quantity) == (layer, quantity)]
    return item


def test_values_are_those_of_every_choice_of_families():
    """8 families, 4 of which are in a: 70 relabellings, 35 values, one by one."""
    item = cell(probed().comparisons(permutations=99, strata=None))
    assert item.null.startswith("exact, all 70 relabellings (")
    assert "only 35 different" in item.null
    assert item.strata == "none, families whole"
    rows = inputs()
    expected = []
    for chosen in combinations(range(8), 4):
        a = torch.tensor([i // 2 in chosen for i in range(16)])
        spectra = [reference_singular_values(x.numpy()) for x in (rows[a], rows[~a])]
        expected.append(float(reference_js(*spectra)))
    assert expected[0] == pytest.approx(item.values[0])
    np.testing.assert_allclose(np.sort(item.values), np.sort(expected), rtol=1e-6)


def test_records_say_that_families_are_whole_beside_strata():
    site = {person: "xxxyxxxy"[i // 2] for i, person in enumerate(WHO)}
    y = torch.tensor([int(label == "b") for label in DX])  # the grouping
    table = probed(y=y, strata={"site": site}).divergences(99)
    tested = table[table["null"] != "none"]
    assert set(tested["strata"]) == {"site, families whole"}
    without = probed(families=None, strata={"site": site}).divergences(99)
    assert list(table.columns) == list(without.columns)
    assert not without["strata"].str.contains("families").any()


@pytest.mark.parametrize(
    "families",
    [None, {}, {p: f"only {p}" for p in WHO}, dict.fromkeys(WHO), {"nobody": "F"}],
)
def test_without_relatives_nothing_changes(families):
    found, plain = probed(families=families), probed(families=None)
    for relabel in ("pair", "everyone"):
        for one, other in zip(
            found.comparisons(19, relabel=relabel),
            plain.comparisons(19, relabel=relabel),
            strict=True,
        ):
            np.testing.assert_array_equal(one.values, other.values)
            assert (one.null, one.strata) == (other.null, other.strata)


@pytest.mark.parametrize(
    ("labels", "families", "words", "m"),
    [
        (
            ["a"] * 8 + ["b"] * 8,
            {p: f"F{i // 8}" for i, p in enumerate(WHO)},
            "no relabelling within the strata",
            0,  # a family is a whole group: none of it, or all
        ),
        (
            ["a"] * 6 + ["b"] * 10,
            {p: "F" if i < 6 else p for i, p in enumerate(WHO)},
            "no relabelling within the strata",
            0,
        ),
        (
            ["a"] * 8 + ["b"] * 8,
            {p: f"F{i // 4}" for i, p in enumerate(WHO)},
            "only 3 different values",
            4,
        ),
    ],
)
def test_families_that_cannot_move_enough_are_refused(labels, families, words, m):
    result = probed(labels, families)
    table = result.divergences(99, strata=None).set_index(["layer", "quantity"])
    row = table.loc[("0", "activation")]
    assert row["reason"].startswith(words)
    assert "families whole" in row["reason"]
    assert np.isnan(row["p"])
    assert np.isfinite(row["value"])
    adjusted = result.adjusted("dx", {}, strata={})
    assert adjusted["p"].isna().all()
    assert adjusted["reason"].str.contains(words).all()
    drawn = result.subsampled("dx", draws=10)
    assert drawn.m == m
    assert bool(drawn.values) == bool(drawn.chance) == bool(m)
    assert drawn.reason.startswith("" if m else "no whole families have")


def test_who_is_in_no_family_is_named():
    some = {person: TWINS[person] for person in WHO[:-1]}
    with pytest.raises(InputError, match=r"'families' says nothing about .*'s15'"):
        probed(families=some).divergences(19)
    assert probed(families=some).divergences(0)["value"].notna().any()


def test_whoever_has_no_family_is_alone():
    assert read_families({"a": "F", "b": "F", 3: None, "d": float("nan")}) == {
        "a": "F",
        "b": "F",
        "3": "alone 3",
        "d": "alone d",
    }
    assert read_families({"a": None, "b": None}) == {}


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_different_values_are_counted_as_a_slow_loop_does(everyone, seed):
    random = np.random.default_rng(seed)
    labels = list("aabbc" + "".join(random.choice(list("abc"), 2)))
    labels = [labels[i] for i in random.permutation(7)]
    site = ["x"] * 7 if seed % 2 else list("xyxyxyx")
    families = list("PPQQRRS")
    ids = WHO[:7]
    people = draw_people(
        dict(zip(ids, labels, strict=True)), "dx", None,
        {"site": dict(zip(ids, site, strict=True))}, 5, 0,
        dict(zip(ids, families, strict=True)),
    )  # fmt: skip
    groups = ["a", "b", "c"] if everyone else ["a", "b"]
    codes = [groups.index(x) if x in groups else -1 for x in labels]
    kept = all_relabellings(codes, site, families)
    different = {
        frozenset(
            frozenset(i for i, code in enumerate(row) if code == g)
            for g in range(len(groups))
        )
        for row in kept
    }
    assert people.distinct(groups) == len(different)
    assert people.distinct(groups, symmetric=False) == len(kept)


def test_a_pair_that_cuts_families_moves_those_that_lack_as_many():
    """Of each trio in three groups two are in the pair; twins and trios stay apart."""
    labels = list("abcabcabc") + list("aabbab")
    families = {p: f"T{i // 3}" for i, p in enumerate(WHO[:9])}
    families |= {p: f"P{i // 2}" for i, p in enumerate(WHO[9:15])}
    found = probed(labels, families).comparisons(permutations=199, strata=None)
    (item,) = [
        x for x in found
        if (x.layer, x.quantity, x.group_a, x.group_b) == ("0", "activation", "a", "b")
    ]  # fmt: skip
    # Trios: (a, b) in each of three, in two orders. Twins: aa, bb, ab in any order.
    assert item.null.startswith(f"exact, all {2**3 * 12} relabellings")


def test_omnibus_reformed_and_adjusted_keep_families_whole():
    labels = ["abcd"[i // 4] for i in range(16)]
    y = torch.tensor(["abcd".index(x) for x in labels])
    loss = nn.CrossEntropyLoss(reduction="sum")
    result = probed(labels, loss=loss, y=y)
    for table in (result.omnibus(99), result.divergences(99)):
        tested = table[table["quantity"] != "activation"]
        assert tested["strata"].str.contains("families whole").any()
    # Four pairs of families of two: 8! / 2!⁴ whole labellings, all drawn as blocks.
    codes = result.comparisons(19, relabel="everyone")
    assert all("families whole" in x.strata for x in codes if x.has_null)
    (first, *_) = result.reformed.comparisons(99)
    assert first.strata == "none, families whole"


def test_adjusted_moves_residuals_of_whole_families():
    result = probed()
    table = result.adjusted("dx", {}, strata={}, permutations=999)
    wide = result.per_subject().pivot(index="subject", columns="layer")
    row = table.iloc[0]
    values = wide[row["scalar"], row["layer"]].loc[WHO].to_numpy()

    def t_of(chosen):
        a = np.array([i // 2 in chosen for i in range(16)])
        return abs(values[a].mean() - values[~a].mean())  # monotone in |t|

    observed = t_of((0, 1, 2, 3)) - 1e-12
    reach = np.mean([t_of(x) >= observed for x in combinations(range(8), 4)])
    assert row["p"] == pytest.approx(reach, abs=0.05)


def test_training_people_and_their_collected_null_are_whole_too():
    families = {p: f"F{i // 2}" for i, p in enumerate(WHO)}
    monitor = SpectralMonitor(
        network(), families=families, permutations=99, null_batches=1
    )
    model, x = monitor.model, inputs()
    with monitor.watch({"dx": DX}, WHO, targets=list(range(2)) * 8):
        model(x).square().sum().backward()
    records = monitor.collect().to_records()
    strata = {row.strata for record in records for row in record.divergences}
    assert strata == {"target, families whole"}


def test_subsamples_are_of_whole_families():
    """Six of eight of each group: three pairs of four, and relabelled ones likewise."""
    result = probed()
    found = result.subsampled("dx", 6, draws=400)
    key = ("0", "activation", "a", "b")
    rows = inputs()

    def apart(first, second):
        chosen = (
            [2 * f + k for f in pairs for k in (0, 1)] for pairs in (first, second)
        )
        a, b = (reference_singular_values(rows[who].numpy()) for who in chosen)
        return float(reference_js(a, b))

    trios = list(combinations(range(8), 3))
    of_groups = [apart(a, b) for a in trios for b in trios if max(a) < 4 <= min(b)]
    of_any = [apart(a, b) for a in trios for b in trios if not {*a} & {*b}]
    assert len(of_groups) == 4 * 4
    assert set(np.round(found.values[key], 9)) == set(np.round(of_groups, 9))
    assert set(np.round(found.chance[key], 9)) <= set(np.round(of_any, 9))
    assert np.mean(found.chance[key]) == pytest.approx(np.mean(of_any), abs=0.003)
    assert (found.m, found.n) == (6, 8)
    frame = result.at_common_size(m=6, draws=400)
    row = frame[(frame.layer == "0") & (frame.quantity == "activation")].set_index(
        ["group_a", "group_b"]
    )
    assert row.loc[("a", "b")]["low"] >= min(of_groups) - 1e-9
    assert row.loc[("a", "b")]["median"] == pytest.approx(
        np.median(of_groups), abs=0.003
    )


def test_sizes_that_whole_families_do_not_have():
    result = probed()
    found = result.subsampled("dx", 3)
    said = "no whole families have 3 people of each group (they can have 2, 4, 6)"
    assert (found.values, found.m, found.reason) == ({}, 0, said)
    with pytest.raises(InputError, match="m=3: in no batch kept, no whole families"):
        result.at_common_size(m=3)
    fives = probed(["a"] * 6 + ["b"] * 10)  # half of six is three; two have it
    assert fives.subsampled("dx", draws=5).m == 2
    assert set(fives.at_common_size(draws=5).m) == {2}
    some = {person: TWINS[person] for person in WHO[:-1]}
    with pytest.raises(InputError, match=r"'families' says nothing about .*'s15'"):
        probed(families=some).at_common_size()
