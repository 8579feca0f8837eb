"""Comparisons through the monitor: omnibus, refusals, invariances."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.spectra.statistics import STATISTICS
from tests.reference import reference_js, reference_singular_values

PEOPLE = 18
NUMBERS = ["value", "null_mean", "null_sd", "excess", "z", "p", "p_max"]
SITES = ["abc"[i % 3] for i in range(PEOPLE)]
NAMES = list(STATISTICS)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def inputs(n=PEOPLE):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, 7, generator=generator, dtype=torch.float64) * 0.5 + 1


def probed(labels, x=None, model=None, who=None, loss=None, **settings):
    x = inputs() if x is None else x
    who = list(range(len(x))) if who is None else who
    monitor = SpectralMonitor(model or network(), **settings)
    y = torch.arange(len(x)) % 4
    batch = (x, y, {"site": labels}, who)
    if loss is None:
        return monitor.probe([batch])
    return monitor.probe([batch], loss, adjoint="loss")


def rows_of(table):
    return table.set_index(["layer", "quantity"])


# -- omnibus -----------------------------------------------------------------------


def test_the_omnibus_is_the_mean_over_pairs_with_everyone_moved():
    result = probed(SITES)
    table = rows_of(result.omnibus(29, strata=None, seed=3)).loc[("0", "activation")]
    x = inputs().numpy()
    expected = []
    ids = sorted(map(str, range(PEOPLE)))
    labels = [SITES[int(i)] for i in ids]
    for codes in draw_relabellings(labels, [""] * PEOPLE, 29, 3):
        group = {int(i): code for i, code in zip(ids, codes, strict=True)}
        spectra = [
            reference_singular_values(x[[i for i in range(PEOPLE) if group[i] == g]])
            for g in range(3)
        ]
        pairs = [(0, 1), (0, 2), (1, 2)]
        expected.append(
            np.mean([reference_js(spectra[a], spectra[b]) for a, b in pairs])
        )
    assert table["value"] == pytest.approx(expected[0], rel=1e-6)
    assert table["null_mean"] == pytest.approx(np.mean(expected[1:]), rel=1e-6)
    assert table["p"] == np.mean(np.array(expected) >= expected[0] - 1e-12)


def test_the_omnibus_keeps_the_columns_and_leaves_pairs_and_records_alone():
    result = probed(SITES)
    pairs = result.divergences(29)
    (before,) = result.to_records()
    table = result.omnibus(29)
    assert list(table.columns) == list(pairs.columns)
    assert set(table["group_a"]) == set(table["group_b"]) == {"*"}
    assert (table["n_a"] == 6).all()
    assert len(table) == len(pairs) / 3
    assert result.to_records()[0].divergences == before.divergences
    mean = pairs.groupby(["layer", "quantity"])["value"].mean()
    np.testing.assert_allclose(
        rows_of(table)["value"].sort_index(), mean.sort_index(), rtol=1e-9
    )


def test_two_groups_have_no_omnibus():
    result = probed(["ab"[i % 2] for i in range(PEOPLE)])
    assert result.omnibus(9).empty
    assert list(result.omnibus(9).columns) == list(result.divergences(9).columns)


def test_the_omnibus_says_sizes_of_the_smallest_and_the_largest_group():
    labels = ["a"] * 4 + ["b"] * 9 + ["c"] * 5
    table = probed(labels).omnibus(19)
    assert (table[["n_a", "subjects_a"]] == 4).all(axis=None)
    assert (table[["n_b", "subjects_b"]] == 9).all(axis=None)


def test_groupings_do_not_share_what_was_relabelled():
    x, other = inputs(), ["xyz"[i // 6] for i in range(PEOPLE)]
    model = network()
    y = torch.arange(PEOPLE) % 4
    both = SpectralMonitor(model).probe(
        [(x, y, {"site": SITES, "visit": other}, list(range(PEOPLE)))]
    )
    alone = {"site": probed(SITES, model=model), "visit": None}
    alone["visit"] = SpectralMonitor(model).probe(
        [(x, y, {"visit": other}, list(range(PEOPLE)))]
    )
    for name, single in alone.items():
        for of in ("divergences", "omnibus"):
            table = getattr(both, of)(19, strata=None)
            table = table[table["grouping"] == name].reset_index(drop=True)
            expected = getattr(single, of)(19, strata=None)
            assert table[NUMBERS].equals(expected[NUMBERS])
        found = {
            (c.layer, c.quantity, c.group_a, c.group_b): c.values
            for c in both.comparisons(19, relabel="everyone")
            if c.grouping == name
        }
        for c in single.comparisons(19, relabel="everyone"):
            key = (c.layer, c.quantity, c.group_a, c.group_b)
            np.testing.assert_array_equal(found[key], c.values)


# -- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "strata", "words"),
    [
        (["a"] + ["b"] * 17, None, "fewer than two people in group 'a'"),
        (["a"] * 2 + ["b"] * 3, None, "only 10 different values"),
        (["a"] * 9 + ["b"] * 9, "labels", "tell the same people apart"),
        (["a"] * 9 + ["b"] * 9, "each", "no relabelling within the strata (family)"),
    ],
)
def test_a_refusal_keeps_the_value(labels, strata, words):
    who = list(range(len(labels)))
    columns = {"labels": labels, "each": [str(i) for i in who], None: None}[strata]
    family = dict(zip(map(str, who), columns or (), strict=strata is not None))
    chosen = {"family": family} if strata else None
    result = probed(labels, inputs(len(labels)))
    table = result.divergences(19, strata=chosen)
    plain = result.divergences(0, strata=None)
    assert table["reason"].str.contains(words, regex=False).any()
    shaped = table[~table["reason"].str.contains("degenerate|all zero")]
    assert shaped["reason"].str.contains(words, regex=False).all()
    assert shaped["value"].notna().all()
    np.testing.assert_allclose(
        shaped["value"], plain.loc[shaped.index, "value"], rtol=1e-6
    )
    assert table[["null_mean", "excess", "z", "p", "p_max"]].isna().all(axis=None)
    assert (table["null"] == "none").all()


def test_a_refused_pair_takes_no_part_in_the_others():
    labels = ["a"] + ["b"] * 8 + ["c"] * 9
    table = probed(labels).divergences(19, strata=None)
    single = table[table["group_a"] == "a"]
    assert single["p"].isna().all()
    assert single["reason"].str.contains("fewer than two people in group 'a'").any()
    other = table[(table["group_a"] == "b") & (table["quantity"] != "adjoint")]
    assert other["p"].notna().all()


def test_few_relabellings_are_said():
    table = probed(["a"] * 4 + ["b"] * 4, inputs(8)).divergences(99, strata=None)
    said = table[table["null"] != "none"]["null"]
    assert said.str.contains("(only 35 different)", regex=False).all()
    assert len(said)


@pytest.mark.parametrize(("first", "total"), [(3, 8), (4, 8)])
def test_few_relabellings_are_all_taken_once_and_p_is_exact(first, total):
    """Every choice of the first group by itertools, with a full SVD each."""
    x = inputs(total)
    labels = ["a"] * first + ["b"] * (total - first)
    table = rows_of(probed(labels, x).divergences(199, strata=None))
    values = []
    for chosen in combinations(range(total), first):
        rest = [i for i in range(total) if i not in chosen]
        some, others = (
            reference_singular_values(x.numpy()[[*m]]) for m in (chosen, rest)
        )
        values.append(reference_js(some, others))
    row = table.loc[("0", "activation")]
    assert row["value"] == pytest.approx(values[0], rel=1e-6)
    assert row["p"] == np.mean(np.array(values) >= values[0] * (1 - 1e-9))
    assert row["null_mean"] == pytest.approx(np.mean(values[1:]), rel=1e-6)
    assert row["null"].startswith(f"exact, all {len(values)} relabellings (")
    assert table[table["null"] != "none"]["null"].nunique() == 1
    again = rows_of(probed(labels, x).divergences(len(values) - 1, strata=None, seed=9))
    assert again.equals(table)
    drawn = rows_of(probed(labels, x).divergences(len(values) - 2, strata=None))
    assert drawn.loc[("0", "activation"), "null"].startswith(f"{len(values) - 2} rel")


def test_an_exact_omnibus_moves_everyone_in_every_way():
    table = probed(list("aabbbcc"), inputs(7)).omnibus(209, strata=None)
    said = table[table["p"].notna()]["null"].unique()
    assert len(said) == 1
    assert said[0].startswith("exact, all 210 relabellings (")
    assert "(only 105 different)" in said[0]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_nan_have_no_number_and_a_reason(name):
    x = inputs()
    x[:] = torch.nan
    table = probed(SITES, x).divergences(9, divergence=name)
    assert table[NUMBERS].isna().all(axis=None)
    assert (table["reason"] != "").all()


# -- statistics --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("permutations", [0, 29])
def test_every_statistic_has_numbers_or_a_reason(name, permutations):
    table = probed(SITES).divergences(permutations, divergence=name)
    assert (table["divergence"] == name).all()
    known = table["value"].notna()
    assert (known | (table["reason"] != "")).all()
    only = table["quantity"].isin(STATISTICS.get(name).quantities)
    assert known[only].any()
    assert not known[~only].any()
    assert table[~only]["reason"].str.contains("exists for the gradient").all()
    if permutations:
        assert (table["p"].notna() == known).all()
    else:
        assert table["p"].isna().all()
        assert (table["null"] == "none").all()


def test_statistics_of_gradients_are_those_of_the_group_gradients():
    model, x = network(), inputs()
    result = probed(SITES, x, model, loss=cross_entropy)
    gradients = {}
    for site in "abc":
        at = [i for i in range(PEOPLE) if SITES[i] == site]
        loss = cross_entropy(model(x[at]), (torch.arange(PEOPLE) % 4)[at])
        gradients[site] = torch.autograd.grad(loss, model[0].weight)[0].T
    table = result.divergences(9, divergence="gradient_cosine")
    table = table[(table["layer"] == "0") & (table["quantity"] == "gradient")]
    for row in table.itertuples():
        a, b = gradients[row.group_a].flatten(), gradients[row.group_b].flatten()
        cosine = float(torch.nn.functional.cosine_similarity(a, b, 0))
        assert row.value == pytest.approx(1 - cosine, rel=1e-9)


def test_statistics_of_gradients_need_factors():
    class Own(nn.Linear):
        pass

    result = probed(SITES, model=nn.Sequential(Own(7, 4)).double())
    table = result.divergences(9, divergence="gradient_cosine")
    assert table["value"].isna().all()
    assert table["reason"].str.contains("nothing is known of single people").all()
    result = probed(SITES)
    result.release()
    table = result.divergences(0, divergence="gradient_cosine")
    assert table["value"].isna().all()
    assert (table["reason"] != "").all()


# -- invariances -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_renaming_groups_changes_no_number(name):
    """Names keep their order, so that the same relabellings are drawn."""
    model = network()
    found = probed(SITES, model=model).divergences(29, divergence=name)
    names = {"a": "1 low", "b": "2 mid", "c": "3 high"}
    renamed = probed([names[s] for s in SITES], model=model)
    table = renamed.divergences(29, divergence=name)
    assert found[NUMBERS].equals(table[NUMBERS])
    assert table["group_a"].tolist() == [names[g] for g in found["group_a"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_people_changes_no_number(name):
    model, x = network(), inputs()
    order = torch.randperm(PEOPLE, generator=torch.Generator().manual_seed(2)).tolist()
    found = probed(SITES, x, model).divergences(29, None, divergence=name)
    moved = probed([SITES[i] for i in order], x[order], model, order)
    table = moved.divergences(29, None, divergence=name)
    np.testing.assert_allclose(found[NUMBERS], table[NUMBERS], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_rescaled_loss_changes_no_number(name):
    model = network()
    one, other = (
        probed(SITES, model=model, loss=loss).divergences(29, divergence=name)
        for loss in (cross_entropy, lambda z, y: 1024 * cross_entropy(z, y))
    )
    np.testing.assert_allclose(one[NUMBERS], other[NUMBERS], rtol=1e-6, atol=1e-9)
