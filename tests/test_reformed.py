"""Adjoints of permuted labels, picked from one pass per class, against real ones."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.inference.comparison import to_divergences
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.inference.significance import p_value
from tests.reference import reference_js, reference_singular_values

SIZES = (11, 8)


def network(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(7, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, classes)
    ).double()


def people(n=19, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (n,), generator=generator)
    y[:classes] = torch.arange(classes)
    return x, y, [f"p{i:02d}" for i in range(n)]


def batches(x, y, who):
    start = 0
    for size in SIZES:
        part = slice(start, start + size)
        yield x[part], y[part], {"dx": y[part]}, who[part]
        start += size


def probed(model, x, y, who, loss=cross_entropy):
    monitor = SpectralMonitor(model)
    return monitor.probe(batches(x, y, who), loss, adjoint="reformed")


def spectra(result, quantity):
    return {
        (s.layer, s.group): s.values for s in result.spectra if s.quantity == quantity
    }


def test_picked_rows_are_those_of_a_loss_computed_anew():
    """The loss is really taken at the permuted targets, forward and backward."""
    x, y, who = people()
    model = network()
    reformed = probed(model, x, y, who).reformed
    labels = list(reformed.people.values())
    assert labels == [str(label) for label in y.tolist()]
    codes = draw_relabellings(labels, [""] * len(labels), 6, seed=3)
    pairs = [("0", "1"), ("0", "2"), ("1", "2")]
    found = {
        (layer, quantity, pair): reformed.values(layer, quantity, pair, codes)
        for layer in ("0", "3")
        for quantity in ("gradient", "adjoint")
        for pair in pairs
    }
    monitor = SpectralMonitor(model)
    for number, row in enumerate(codes):
        again = monitor.probe(
            batches(x, torch.from_numpy(row), who), cross_entropy, adjoint="loss"
        )
        table = again.divergences(permutations=0)
        for line in table[table["quantity"] != "activation"].itertuples():
            key = (line.layer, line.quantity, (line.group_a, line.group_b))
            assert found[key][number] == pytest.approx(line.value, rel=1e-7, abs=1e-10)


def test_the_ordinary_spectra_are_those_of_the_loss():
    x, y, who = people()
    model = network()
    result = probed(model, x, y, who)
    plain = SpectralMonitor(model).probe(
        batches(x, y, who), cross_entropy, adjoint="loss"
    )
    assert plain.reformed is None
    for quantity in ("gradient", "activation", "adjoint"):
        for key, values in spectra(plain, quantity).items():
            np.testing.assert_array_equal(values, spectra(result, quantity)[key])
    result.release()
    assert result.reformed is None


def test_labels_stay_in_their_strata_and_rows_weigh_by_person():
    x, y, who = people()
    rows = [*range(19), 4, 4]
    doubled = (x[rows], y[rows], {"dx": y[rows]}, [who[i] for i in rows])
    strata = {"site": {person: str(i % 2) for i, person in enumerate(who)}}
    tables = []
    for batch in ((x, y, {"dx": y}, who), doubled):
        monitor = SpectralMonitor(network(), strata=strata)
        loss = nn.CrossEntropyLoss(reduction="sum")
        result = monitor.probe([batch], loss, adjoint="reformed")
        tables.append(result.reformed.comparisons(39, seed=1))
    for plain, double in zip(*tables, strict=True):
        assert plain.strata == "site"
        np.testing.assert_allclose(plain.values, double.values, rtol=1e-6)
    rows = to_divergences(tables[0])
    assert {row.quantity for row in rows} == {"gradient", "adjoint"}
    assert all(0 < row.p <= 1 for row in rows)


def test_the_null_of_loss_gradients_is_calibrated():
    """Labels at random, a network that prefers one of them: p is uniform."""
    fair = []
    model = network(classes=2)
    with torch.no_grad():
        model[3].bias += torch.tensor([2.0, -2.0])
    for seed in range(120):
        x, y, who = people(seed=seed, classes=2)
        y = y[torch.randperm(19, generator=torch.Generator().manual_seed(seed))]
        found = probed(model, x, y, who).reformed.comparisons(19, seed=seed)
        fair.append(next(p_value(c.values) for c in found if c.quantity == "gradient"))
    assert np.mean(np.array(fair) <= 0.2) == pytest.approx(0.2, abs=0.11)
    assert np.mean(fair) == pytest.approx(0.525, abs=0.08)  # uniform on 1/20 … 1


def test_two_outputs_are_degenerate_and_said_to_be():
    x, y, who = people(classes=2)
    found = probed(network(2).float(), x.float(), y, who).reformed.comparisons(19)
    last = [c for c in found if c.layer == "3"]
    assert last
    assert all(not c.testable and "rank 1" in c.reason for c in last)
    assert all(c.testable for c in found if c.layer == "0")


def test_a_single_logit_has_classes_too():
    x, y, who = people(classes=2)
    model = nn.Sequential(network(1), nn.Flatten(0))
    result = probed(model, x, y.double(), who, binary_cross_entropy_with_logits)
    assert set(result.reformed.people.values()) == {"0.0", "1.0"}


def test_losses_and_targets_that_cannot_be_re_formed_are_refused():
    x, y, who = people()
    with pytest.raises(InputError, match="loss_function"):
        SpectralMonitor(network()).probe(batches(x, y, who), adjoint="reformed")
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]).double())
    with pytest.raises(InputError, match=r"plain mean or sum .* reduction='sum'"):
        probed(network(), x, y, who, weighted)
    summed = nn.CrossEntropyLoss(weight=weighted.weight, reduction="sum")
    assert probed(network(), x, y, who, summed).reformed.layers.keys() == {"0", "3"}
    with pytest.raises(InputError, match=r"shape \[N\]"):
        probed(network(), x, nn.functional.one_hot(y).double(), who)
    reformed = probed(network(), x, y, who).reformed
    codes = np.zeros((1, 19), dtype=np.int64)
    with pytest.raises(InputError, match="gradient or adjoint"):
        reformed.values("0", "activation", ("0", "1"), codes)
    with pytest.raises(InputError, match="there are 0, 3"):
        reformed.values("9", "adjoint", ("0", "1"), codes)


# -- in the frame of divergences ---------------------------------------------------

NAMES = {0: "mid", 1: "high", 2: "low"}  # groups are sorted in another order


def probed_by_name(x, y, who, model=None, strata=None, rows=None, **more):
    rows = list(range(len(who))) if rows is None else rows
    groups = {"dx": [NAMES[int(label)] for label in y], **more}
    monitor = SpectralMonitor(model or network(), strata=strata)
    batch = (
        x[rows],
        y[rows],
        {name: [column[i] for i in rows] for name, column in groups.items()},
        [who[i] for i in rows],
    )
    loss = nn.CrossEntropyLoss(reduction="sum")
    return monitor.probe([batch], loss, adjoint="reformed")


def frame_of(result, **settings):
    table = result.divergences(**settings)
    keys = ["grouping", "layer", "quantity", "group_a", "group_b"]
    return table.set_index(keys).sort_index()


@pytest.mark.parametrize("weighting", ["subjects", "rows"])
def test_the_frame_has_the_loss_computed_anew_under_every_relabelling(weighting):
    """Of each pair: its people's labels move, and the loss is taken at them."""
    x, y, who = people()
    rows = [*range(19), 4, 4, 9]
    result = probed_by_name(x, y, who, rows=rows)
    found = frame_of(result, permutations=6, seed=3, weighting=weighting)
    assert frame_of(result, permutations=6, seed=3, weighting=weighting,
                    null="reformed").equals(found)  # fmt: skip
    model = network()
    for a, b in (("high", "low"), ("high", "mid"), ("low", "mid")):
        classes = {name: number for number, name in NAMES.items()}
        pair = [i for i in range(19) if NAMES[int(y[i])] in (a, b)]
        labels = [NAMES[int(y[i])] for i in pair]
        expected = {}
        for codes in draw_relabellings(labels, [""] * len(pair), 6, seed=3):
            moved = y.clone()
            moved[pair] = torch.tensor([classes[(a, b)[code]] for code in codes])
            again = slow_values(model, x[rows], moved[rows], [who[i] for i in rows],
                                (classes[a], classes[b]), weighting)  # fmt: skip
            for quantity, value in again.items():
                expected.setdefault(quantity, []).append(value)
        for quantity, values in expected.items():
            row = found.loc[("dx", "0", quantity, a, b)]
            assert row["value"] == pytest.approx(values[0], rel=1e-6)
            assert row["null_mean"] == pytest.approx(np.mean(values[1:]), rel=1e-6)
            assert row["p"] == np.mean(np.array(values) >= values[0] * (1 - 1e-9))
            assert "adjoints re-formed" in row["valid_for"]
            assert ("each row" in row["valid_for"]) == (weighting == "rows")


def slow_values(model, x, y, who, pair, weighting):
    """The first layer's divergences with the loss at ``y``, from formed matrices."""
    model = model.eval()
    hidden = model[0](x)
    (delta,) = torch.autograd.grad(
        cross_entropy(model[1:](hidden), y, reduction="sum"), hidden
    )
    spectra = {"gradient": [], "adjoint": []}
    for label in pair:
        own = [i for i in range(len(who)) if int(y[i]) == label]
        weight = torch.tensor(
            [1 / who.count(who[i]) if weighting == "subjects" else 1.0 for i in own]
        ).double().sqrt()[:, None]  # fmt: skip
        a, d = x[own] * weight, delta[own] * weight
        spectra["adjoint"].append(reference_singular_values(d))
        spectra["gradient"].append(reference_singular_values(a.T @ d))
    return {name: reference_js(*both) for name, both in spectra.items()}


def test_only_what_knows_the_target_is_re_formed():
    x, y, who = people()
    sex = ["mf"[i % 2] for i in range(19)]
    found = frame_of(probed_by_name(x, y, who, sex=sex), permutations=19)
    loss = nn.CrossEntropyLoss(reduction="sum")
    groups = {"dx": [NAMES[int(label)] for label in y], "sex": sex}
    plain = SpectralMonitor(network()).probe(
        [(x, y, groups, who)], loss, adjoint="loss"
    )
    plain = frame_of(plain, permutations=19)
    assert list(found.columns) == list(plain.columns)
    assert found.index.equals(plain.index)
    same = [
        key for key in found.index if key[0] == "sex" or key[2] == "activation"
    ]  # fmt: skip
    assert found.loc[same].equals(plain.loc[same])
    others = found.index.difference(same)
    assert found.loc[others, "p"].notna().all()
    assert plain.loc[others, "p"].isna().all()
    np.testing.assert_allclose(
        found.loc[others, "value"], plain.loc[others, "value"], rtol=1e-6
    )
    assert found.loc[same[:1], "null"].str.contains("watched batches").all()
    nothing = probed_by_name(x, y, who, sex=sex)
    assert nothing.divergences(null="none")["p"].isna().all()
    assert nothing.divergences(0).equals(nothing.divergences(null="none"))
    (record,) = nothing.to_records()
    assert all(row.null == "none" for row in record.divergences)


def test_records_detectable_and_omnibus_have_it_too():
    x, y, who = people()
    result = probed_by_name(x, y, who)
    pairs = result.divergences(19)
    (record,) = result.to_records()
    assert [row.p for row in record.divergences] == pytest.approx(pairs["p"].tolist())
    seen = result.detectable(19)
    assert seen["critical"].notna().all()
    omnibus = result.omnibus(19).set_index(["layer", "quantity"])
    assert omnibus["p"].notna().all()
    mean = pairs.groupby(["layer", "quantity"])["value"].mean()
    np.testing.assert_allclose(omnibus["value"].sort_index(), mean, rtol=1e-9)
    result.comparisons(19, relabel="everyone")
    together = {row.null for row in result.to_records()[0].divergences}
    assert len(together) == 2  # with and without anything re-formed
    assert all("of 19 people" in text for text in together)


def test_strata_hold_and_few_relabellings_are_exact():
    """Exchanged groups give another value here: 20 of 3 + 3 people are enough."""
    x, y, who = people(6, classes=2)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    found = frame_of(probed_by_name(x, y, who, network(3)), permutations=99)
    row = found.loc[("dx", "0", "gradient", "high", "mid")]
    assert row["null"].startswith("exact, all 20 relabellings (")
    assert row["p"] * 20 == pytest.approx(round(row["p"] * 20))
    assert "only 10 different" in found.loc[
        ("dx", "0", "activation", "high", "mid"), "reason"
    ]  # fmt: skip
    site = {person: str(i // 2) for i, person in enumerate(who)}
    found = frame_of(probed_by_name(x, y, who, network(3), {"site": site}))
    row = found.loc[("dx", "0", "gradient", "high", "mid")]
    assert "only 8 different values" in row["reason"]
    assert np.isnan(row["p"])
    assert np.isfinite(row["value"])


def test_what_cannot_be_re_formed_keeps_its_value_and_says_why():
    x, y, who = people()
    model = network()
    found = frame_of(probed_by_name(x, y, who, model), divergence="gradient_cosine")
    gradients = found.xs("gradient", level="quantity")
    assert gradients["p"].isna().all()
    assert gradients["value"].notna().all()
    assert (gradients["reason"] != "").all()

    class Own(nn.Linear):
        pass

    replayed = nn.Sequential(Own(7, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    found = frame_of(probed_by_name(x, y, who, replayed))
    own = found.loc[("dx", "0.weight", "gradient")]
    assert own["value"].notna().all()
    assert own["p"].isna().all()
    assert own["reason"].str.contains("pair up").all()
    assert found.loc[("dx", "2", "gradient"), "p"].notna().all()


def test_a_null_that_there_is_not_is_refused_in_one_sentence():
    x, y, who = people()
    plain = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)])
    with pytest.raises(InputError, match="'auto', 'reformed', 'none'"):
        plain.divergences(null="permuted")
    with pytest.raises(InputError, match="passed with adjoint='reformed'"):
        plain.divergences(null="reformed")
    site = ["ab"[i % 2] for i in range(19)]
    monitor = SpectralMonitor(network())
    result = monitor.probe([(x, y, {"site": site}, who)], cross_entropy,
                           adjoint="reformed")  # fmt: skip
    with pytest.raises(InputError, match="no grouping is the target"):
        result.divergences(null="reformed")
    assert result.divergences(19)["p"].notna().any()
    result.release()
    with pytest.raises(CaptureError, match="released"):
        result.divergences(null="reformed")
