import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.inference.relabel import draw_relabellings
from tests.small_run import INPUTS, PEOPLE, network, people


def test_padded_steps_weigh_nothing_in_a_comparison():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)
            self.output = nn.Linear(4, 2)

        def forward(self, x):
            steps = nn.utils.rnn.pack_padded_sequence(
                x.unflatten(1, (3, 3)), lengths, True, enforce_sorted=False
            )
            return self.output(self.gru(steps)[1][0])

    x, y, _, who = people()
    lengths = torch.arange(len(x)) % 3 + 1
    torch.manual_seed(0)
    result = SpectralMonitor(Packed()).probe([(x, y, {"dx": y}, who)])
    kept = result._observed[0].layers["gru.weight_ih_l0"].kept["activation"]
    alone = kept.spectra(torch.eye(PEOPLE, dtype=torch.bool))
    steps = [x[i].view(3, 3)[:n] for i, n in enumerate(lengths.tolist())]
    expected = torch.stack([s.square().sum(1).mean() for s in steps])
    torch.testing.assert_close(alone.square().sum(1), expected.double())
    table = result.divergences(19)
    assert table[table["layer"].str.startswith("gru")]["p"].notna().all()


COLUMNS = [
    "layer",
    "quantity",
    "grouping",
    "group_a",
    "group_b",
    "divergence",
    "value",
    "null_mean",
    "null_sd",
    "excess",
    "z",
    "p",
    "p_max",
    "n_a",
    "n_b",
    "subjects_a",
    "subjects_b",
    "source",
    "null",
    "strata",
    "valid_for",
    "reason",
]


def test_beside_a_comparison_stands_what_it_could_have_shown():
    x, y, sex, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"sex": sex}, who)])
    table = result.detectable(39, seed=3).set_index(["layer", "quantity"])
    for item in result.comparisons(39, seed=3):
        row = table.loc[item.layer, item.quantity]
        if not item.has_null:
            assert np.isnan(row.smallest_detectable)
            assert row.reason
            continue
        second = np.sort(item.values[1:])[-2]  # 2 of 40 labellings are 0.05
        assert row.critical == second
        expected = second + 0.8416 * item.values[1:].std()
        assert row.smallest_detectable == pytest.approx(expected, rel=1e-4)
    assert table.smallest_detectable.notna().any()


def test_the_frame_has_the_columns_of_the_design():
    x, y, _, who = people()
    table = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)]).divergences(19)
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 3


def test_the_target_on_training_people_has_no_p():
    x, y, sex, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    with monitor.watch({"dx": y, "sex": sex}, who, targets=y):
        cross_entropy(model(x), y).backward()
    table = monitor.collect().divergences(permutations=39).set_index("grouping")
    shaped = table[~table["reason"].str.contains("degenerate")]
    target, unseen = shaped.loc["dx"], shaped.loc["sex"]
    assert target[["z", "p", "p_max"]].isna().all(axis=None)
    assert target["valid_for"].str.startswith("descriptive").all()
    assert target["excess"].notna().all()
    assert unseen[["z", "p", "p_max"]].notna().all(axis=None)
    assert (unseen["strata"] == "target").all()
    assert (unseen["valid_for"] == "training people; grouping unseen by training").all()


def test_without_targets_the_assumption_is_said():
    x, y, sex, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    with monitor.watch({"sex": sex}, who):
        cross_entropy(model(x), y).backward()
    table = monitor.collect().divergences(permutations=39)
    assert table["valid_for"].str.contains("assuming").all()
    assert (table["strata"] == "none").all()


def test_what_knows_the_loss_of_the_target_on_the_probe_has_no_p():
    x, y, sex, who = people()
    batch = (x, y, {"dx": y, "sex": sex}, who)
    result = SpectralMonitor(network()).probe([batch], cross_entropy, adjoint="loss")
    table = result.divergences(39).set_index(["grouping", "quantity"]).sort_index()
    for quantity in ("gradient", "adjoint"):
        assert table.loc[("dx", quantity), "p"].isna().all()
        assert table.loc[("sex", quantity), "p"].notna().any()
    activations = table.loc[("dx", "activation")]
    assert activations["p"].notna().all()
    assert set(activations["valid_for"]) == {
        "held-out people; activations know no labels"
    }
    margins = SpectralMonitor(network()).probe([batch]).divergences(39)
    margins = margins.set_index(["grouping", "quantity"]).loc[("dx", "activation")]
    assert margins["p"].tolist() == activations["p"].tolist()
    assert {s.loss_scale for s in result.spectra} == {1 / PEOPLE}


def test_two_class_outputs_are_degenerate_and_left_out():
    x, y, _, who = people()
    table = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)]).divergences(39)
    table = table.set_index(["layer", "quantity"])
    for quantity in ("gradient", "adjoint"):
        assert np.isnan(table.loc[("3", quantity), "value"])
        assert "degenerate" in table.loc[("3", quantity), "reason"]
        assert np.isnan(table.loc[("3", quantity), "p_max"])
    assert table.loc[("3", "activation"), "p"] > 0


def test_relabelling_is_the_same_for_the_same_seed_and_another_for_another():
    x, y, _, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)])
    first, again = (result.divergences(39, seed=4) for _ in range(2))
    other = result.divergences(39, seed=5)
    assert first.equals(again)
    with_null = first[first["null"] != "none"]["null"]
    assert with_null.nunique() == 1
    assert not set(with_null) & set(other["null"])
    assert not first["null_mean"].equals(other["null_mean"])
    assert first["value"].equals(other["value"])


def test_strata_hold_labels_and_say_where_nothing_can_move():
    x, y, sex, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"sex": sex}, who)])
    fixed = {"scanner": dict(zip(who, sex, strict=True))}
    table = result.divergences(19, strata=fixed)
    assert table["z"].isna().all()
    assert table["reason"].str.contains("tell the same people apart|degenerate").all()
    own = {"sex": dict(zip(who, sex, strict=True))}
    assert result.divergences(19, strata=own)["p"].notna().any()
    each = {"family": {person: person for person in who}}
    table = result.divergences(19, strata=each)
    assert table["z"].isna().all()
    assert table["reason"].str.contains("no relabelling|degenerate").all()
    with pytest.raises(InputError, match=r"'scanner'.*'sub-00'"):
        result.divergences(19, strata={"scanner": {"sub-01": "a"}})
    with pytest.raises(InputError, match="strata='site'"):
        result.divergences(19, strata="site")


def test_people_with_several_rows_weigh_the_same():
    """Doubling somebody's rows changes no comparison; weights undo it exactly."""
    x, y, _, who = people()
    monitor = SpectralMonitor(network())
    plain = monitor.probe([(x, y, {"dx": y}, who)]).divergences(39)
    rows = [*range(PEOPLE), 0, 0, 5]
    double = monitor.probe(
        [(x[rows], y[rows], {"dx": y[rows]}, [who[i] for i in rows])]
    ).divergences(39)
    numbers = ["value", "null_mean", "null_sd", "p"]
    np.testing.assert_allclose(plain[numbers], double[numbers], rtol=1e-4, atol=1e-6)
    assert (double["subjects_a"] == plain["subjects_a"]).all()
    assert (double["n_a"] == plain["n_a"] + 2).all()


def test_batches_keep_their_group_sizes_under_relabelling():
    """Two batches of opposite shares: labels move within each, by a slow loop."""
    x, y, sex, who = people(n=24)
    labels = ["a"] * 9 + ["b"] * 3 + ["a"] * 4 + ["b"] * 8
    model = network()
    monitor = SpectralMonitor(model, null_batches=2, layers=["0"])
    for part in (slice(0, 12), slice(12, 24)):
        with monitor.watch({"site": labels[part]}, who[part], targets=sex[part]):
            cross_entropy(model(x[part]), y[part]).backward()
    result = monitor.collect()
    plain = result.divergences(permutations=0).set_index("quantity")
    (found,) = (
        c
        for c in result.comparisons(permutations=29, strata=None, seed=3)
        if c.quantity == "activation"
    )
    assert found.strata == "batch"
    assert found.values[0] == pytest.approx(plain.loc["activation", "value"])
    within = ["0"] * 12 + ["1"] * 12
    expected = []
    for codes in draw_relabellings(labels, within, 29, seed=3):
        values = []
        for part in (slice(0, 12), slice(12, 24)):
            groups = [x[part][codes[part] == code].double().numpy() for code in (0, 1)]
            spectra = [np.linalg.svd(g, compute_uv=False) for g in groups]
            a, b = (np.pad(s, (0, 9 - len(s))) / s.sum() for s in spectra)
            values.append(jensenshannon(a, b, base=2) ** 2)
        expected.append(np.mean(values))
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_somebody_with_two_labels_is_refused():
    x, y, _, who = people()
    mixed = [who[0], who[0], *who[2:]]
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, mixed)])
    with pytest.raises(InputError, match="'sub-00' is in group"):
        result.divergences(19)


def test_three_groups_give_three_pairs():
    x, y, _, who = people()
    site = [("ab", "b", "c")[i % 3] for i in range(PEOPLE)]
    result = SpectralMonitor(network()).probe([(x, y, {"site": site}, who)])
    table = result.divergences(19)
    pairs = set(zip(table["group_a"], table["group_b"], strict=True))
    assert pairs == {("ab", "b"), ("ab", "c"), ("b", "c")}


def test_groups_that_never_meet_in_a_batch_say_so():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    for batch in (y == 0, y == 1):
        rows = batch.nonzero().flatten()
        with monitor.watch({"dx": y[rows]}, [who[i] for i in rows.tolist()]):
            cross_entropy(model(x[rows]), y[rows]).backward()
    table = monitor.collect().divergences(19)
    assert table["value"].isna().all()
    assert table["reason"].str.contains("never in one watched batch").all()


def test_a_group_missing_from_the_kept_batches_has_no_null():
    x, y, _, who = people()
    labels = ["a"] * 8 + ["a", "b"] * 9
    model = network()
    monitor = SpectralMonitor(model, null_batches=1)
    for part in (slice(0, 8), slice(8, 26)):
        with monitor.watch({"site": labels[part]}, who[part]):
            cross_entropy(model(x[part]), y[part]).backward()
    table = monitor.collect().divergences(19)
    shaped = table[~table["reason"].str.contains("degenerate")]
    assert shaped["value"].notna().all()
    assert shaped["p"].isna().all()
    assert shaped["reason"].str.contains("only one of the groups").all()


def test_non_finite_rows_are_kept_marked_and_have_no_null():
    x, y, _, who = people()
    x[0, 0] = torch.nan
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)])
    table = result.divergences(19).set_index(["layer", "quantity"])
    assert np.isnan(table.loc[("0", "activation"), "value"])
    assert "finite" in table.loc[("0", "activation"), "reason"]
    assert table["p"].isna().all()
    assert (table["null"] == "none").all()
    assert result.to_records()[0].nonfinite > 0


def test_records_carry_the_divergences_last_computed_and_free_the_factors():
    x, y, _, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)], epoch=3)
    (plain,) = result.to_records()
    assert all(np.isnan(row.z) for row in plain.divergences)
    result.divergences(permutations=39)
    (record,) = result.to_records()
    assert (record.epoch, record.source) == (3, "probe")
    assert any(row.p > 0 for row in record.divergences)
    result.release()
    (kept,) = result.to_records()
    assert [row.p for row in kept.divergences if row.p > 0]
    with pytest.raises(CaptureError, match="released"):
        result.divergences(permutations=39)
    assert len(result.divergences(permutations=0)) == len(record.divergences)


def test_a_planted_difference_is_found_and_none_is_not():
    """Labels that decide the spread of half the inputs, and labels that do not."""
    p = {}
    for planted in (False, True):
        generator = torch.Generator().manual_seed(11)
        x = torch.randn(60, INPUTS, generator=generator)
        y = torch.arange(60) % 2
        if planted:
            x[y == 1, :5] *= 0.1
        result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, list(range(60)))])
        table = result.divergences(199).set_index(["layer", "quantity"])
        p[planted] = table.loc[("0", "activation"), "p"]
    assert p[True] == 1 / 200
    assert p[False] > 0.05


def test_the_frame_of_spectra_is_tidy():
    x, y, _, who = people()
    frame = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)]).to_frame()
    assert len(frame) == 2 * 3 * 3
    assert {"epoch", "source", "layer", "values", "effective_rank", "samples"} <= {
        *frame.columns
    }


def test_samples_without_subjects_are_other_people_in_each_batch():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    monitor = SpectralMonitor(model, null_batches=2)
    for labels in ("aabbb", "ababb"):
        with monitor.watch(list(labels)):
            model(torch.randn(5, 5)).square().sum().backward()
    frame = monitor.collect().divergences(permutations=9)
    assert frame.null.str.contains("of 10 people").any()
    assert frame.p.notna().any()
