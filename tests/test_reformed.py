"""Adjoints of permuted labels, picked from one pass per class, against real ones."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import to_divergences
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.inference.significance import p_value

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
