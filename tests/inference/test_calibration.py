"""Small versions of experiments/calibration: rates under the null, seeds fixed."""

import numpy as np
import pytest
import scipy.stats
import torch

from experiments.calibration import run
from experiments.calibration.cells import CELLS, Cohort, drawn_once, several_passes
from experiments.calibration.trained import p_of_one_network
from spectral_mlops import SpectralMonitor
from spectral_mlops.inference.significance import p_value

ALPHA = 0.05
PERMUTATIONS = 19  # ALPHA · (P + 1) is 1.


def rates(name, data_sets, quantity):
    """Wrong rejections by method."""
    rows = run.measure_cell(name, CELLS[name], data_sets, PERMUTATIONS, [quantity])
    return {row["method"]: row["wrong"] for row in rows}


def may_be_right(wrong, data_sets):
    return scipy.stats.binomtest(int(wrong), data_sets, ALPHA).pvalue > 1e-3


@pytest.mark.parametrize("quantity", run.QUANTITIES)
@pytest.mark.parametrize("name", ["small-group", "heavy-tails", "unequal-rows"])
def test_people_relabelled_within_strata_are_wrong_as_often_as_promised(name, quantity):
    assert may_be_right(rates(name, 100, quantity)[run.PACKAGE], 100)


@pytest.mark.parametrize(
    ("name", "other", "quantity"),
    [
        ("many-rows", "rows relabelled, not people", "adjoint"),
        ("confounded", "no strata of the target", "activation"),
        ("passes", "labels drawn anew per batch", "adjoint"),
        ("families", "relatives as strangers", "adjoint"),
    ],
)
def test_what_looks_alike_is_wrong_more_often(name, other, quantity):
    found = rates(name, 120, quantity)
    assert may_be_right(found[run.PACKAGE], 120)
    assert found[other] > 12
    assert not may_be_right(found[other], 120)


class Imposed(torch.nn.Module):
    """A layer whose adjoints are those of a cohort, under the loss ``Σ z∘Δ``."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 5, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x)


def watched(cohort: Cohort, seed: int) -> np.ndarray:
    """The adjoint's divergence as the monitor forms it over several batches."""
    model = Imposed()
    passes = len(cohort.passes)
    monitor = SpectralMonitor(model, quantities=["adjoint"], null_batches=passes)
    subjects = [f"s{i:02d}" for i in range(len(cohort.labels))]
    for seen in cohort.passes:
        with monitor.watch(cohort.labels, subjects=subjects):
            (model(seen.activation) * seen.adjoint).sum().backward()
    (found,) = monitor.collect().comparisons(PERMUTATIONS, seed=seed)
    return found.values


def test_the_monitor_draws_labels_once_for_all_batches():
    # Drawn anew per batch and averaged, the rate would be about four times as high.
    wrong = 0
    for seed in range(100):
        cohort = run.draw_cohort("passes", CELLS["passes"], seed)
        values = watched(cohort, seed)
        if seed < 3:
            expected = drawn_once(cohort, "adjoint", PERMUTATIONS, seed)
            np.testing.assert_allclose(values, expected, rtol=1e-6)
        wrong += p_value(values) <= ALPHA
    assert may_be_right(wrong, 100)


def test_trained_networks_show_groups_that_are_not_there_as_rarely():
    found = [p_of_one_network(seed, PERMUTATIONS) for seed in range(8)]
    valid = [key for key in found[0] if key[:2] != ("train", "class")]
    assert len(valid) == 9
    for key in valid:
        wrong = sum(p[key] <= ALPHA for p in found)
        # At most 3 of 8 by chance; few because networks take time.
        assert scipy.stats.binomtest(wrong, 8, ALPHA, "greater").pvalue > 1e-3


# -- the experiment's own logic --------------------------------------------------


def test_a_cell_draws_the_same_people_for_the_same_seed_only():
    one, same, other = (
        several_passes(np.random.default_rng(s)).passes[0].activation for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_has_both_groups_of_people(name):
    for seed in range(20):
        cohort = run.draw_cohort(name, CELLS[name], seed)
        assert set(cohort.labels) == {"a", "b"}
        assert len(cohort.labels) == len(cohort.strata) == 40
        assert set(cohort.passes[0].owner.tolist()) == set(range(40))


def counted(method, wrong, data_sets=1000):
    return {
        "title": "t",
        "method": method,
        "quantity": "gradient",
        "wrong": wrong,
        "data_sets": data_sets,
        "rate": wrong / data_sets,
    }


def test_rates_are_judged_by_holm_over_the_packages_rows():
    rows = [counted(run.PACKAGE, 50), counted("other", 300), counted(run.PACKAGE, 73)]
    good, other, high = run.judge(rows)
    assert good["as_promised"]
    assert "as_promised" not in other
    plain = scipy.stats.binomtest(73, 1000, 0.05).pvalue
    assert high["p_holm"] == pytest.approx(2 * plain)
    assert plain < 0.01 < 2 * plain or not high["as_promised"]
    assert not run.judge([counted(run.PACKAGE, 90)])[0]["as_promised"]
    low, top = good["accepted"]
    inside = scipy.stats.binom.cdf(top * 1000, 1000, 0.05) - scipy.stats.binom.cdf(
        low * 1000 - 1, 1000, 0.05
    )
    assert 0.99 <= inside < 0.995


def test_quick_runs_write_their_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        [
            *("run", "--data-sets", "2", "--trained", "1", "--joint", "1"),
            *("--retrained", "1", "--out", str(tmp_path)),
        ],
    )
    before = (run.HERE / "README.md").read_text()
    run.main()
    written = [*(f"{name}.json" for name in run.PARTS), "rates.png"]
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(written)
    shown = capsys.readouterr().out
    for cell in CELLS.values():
        assert cell.title in shown
    assert (run.HERE / "README.md").read_text() == before
