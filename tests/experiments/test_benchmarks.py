"""The benchmarks' own logic: no test here judges a time."""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from experiments.benchmarks import measure, run, sweeps, tracking
from experiments.benchmarks.accuracy import SPECTRA, TARGET, measure_accuracy
from experiments.benchmarks.cases import CASES, Case, mlp
from experiments.benchmarks.gpu import count_synchronisations
from experiments.benchmarks.measure import alternate, paired_ratio
from experiments.benchmarks.memory import compare_peaks
from experiments.benchmarks.null import measure_null
from experiments.benchmarks.peers import PEERS, measure_peers
from experiments.benchmarks.results import describe, fill, joined, read, write
from experiments.benchmarks.scaling import fit_exponent, fit_sweep, measure_sweep
from experiments.benchmarks.sweeps import (
    flatness,
    measure_linkage,
    measure_sweep_command,
)
from experiments.benchmarks.table import (
    Effort,
    compare_overheads,
    measure_cases,
    what_is_watched,
)
from experiments.benchmarks.variants import (
    SCHEDULED,
    Reference,
    Scheduled,
    Unwatched,
    Watched,
    identical,
)
from experiments.benchmarks.views import tables
from spectral_mlops import capture
from tests.reference import ReferenceMethod, padded

SMALL = Case("small", "Small", lambda: mlp(5, 4, 3, 2), (5,), 6, 2, 1.5)


class Counting:
    """Stands for a way of training; writes its turns down."""

    def __init__(self, name, turns, share=1.0):
        self.name, self.turns, self.share = name, turns, share

    def step(self):
        self.turns.append(self.name)

    def finish(self):
        self.turns.append(f"{self.name} ends")


# -- the reference method --------------------------------------------------------


@pytest.mark.parametrize("labels", ["aab", "abbbbbb", "abcabca", "a"], ids=str)
def test_the_reference_method_gives_the_spectra_of_a_capture(labels):
    torch.manual_seed(0)
    model = mlp(6, 5, 3, 2).double()
    x = torch.randn(len(labels), 6, dtype=torch.float64)
    y = torch.randint(2, (len(labels),))
    with (
        capture(model, list(labels)) as captured,
        ReferenceMethod(model, labels) as reference,
    ):
        nn.functional.cross_entropy(model(x), y).backward()
    expected = reference.spectra()
    found = captured.spectra(pooled=False)
    assert {(s.layer, s.quantity, s.group) for s in found} == set(expected)
    for spectrum in found:
        key = (spectrum.layer, spectrum.quantity, spectrum.group)
        values = expected[key].numpy()
        ours = padded(spectrum.values, len(values))
        assert ours == pytest.approx(values, abs=1e-6 * values[0])


def test_the_reference_method_leaves_no_hook():
    model = mlp(3, 2, 2)
    with ReferenceMethod(model, "ab"):
        pass
    assert not any(layer._forward_hooks for layer in model.modules())


# -- timing ----------------------------------------------------------------------


def test_the_ratio_is_the_median_of_paired_rounds():
    # The machine was three times slower in the second round, for both.
    ratio = paired_ratio([2.0, 6.6, 2.4], [1.0, 3.0, 1.0])
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((2.0, 2.2, 2.4))
    assert ratio.as_dict("every")["every_ratio"] == pytest.approx(2.2)


def test_variants_take_turns_and_the_order_turns():
    turns = []
    a, b = Counting("a", turns), Counting("b", turns, share=0.5)
    seconds = alternate({"a": a, "b": b}, rounds=1, window=4, chunk=2)
    warm_up = ["a", "a", "a ends", "b", "b", "b ends"]
    first, second = ["a", "a", "b"], ["b", "b ends", "a", "a", "a ends"]
    assert turns == warm_up + first + second
    assert seconds.keys() == {"a", "b"}
    assert [len(values) for values in seconds.values()] == [1, 1]


def test_seconds_are_per_step_whatever_the_share(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    variants = {"a": Counting("a", []), "b": Counting("b", [], share=0.25)}
    seconds = alternate(variants, rounds=2, window=8, chunk=4)
    assert seconds == {"a": [2 / 8, 2 / 8], "b": [2 / 2, 2 / 2]}


def test_no_round_begins_after_the_budget():
    class Slow(Counting):
        def step(self):
            time.sleep(0.01)

    seconds = alternate({"a": Slow("a", [])}, rounds=9, window=1, chunk=1, budget=0.0)
    assert len(seconds["a"]) == 1


@pytest.mark.parametrize("kind", [Watched, Scheduled, Reference])
def test_all_ways_of_training_arrive_at_the_same_weights(kind):
    plain, other = Unwatched(SMALL), kind(SMALL)
    alternate({"plain": plain, "other": other}, rounds=1, window=3, chunk=3)
    if kind.share == 1:
        assert identical(plain, other)
    plain.step()
    assert not identical(plain, other)


@pytest.mark.parametrize("kind", [Unwatched, Watched])
def test_a_lower_precision_is_that_of_the_forward_pass(kind):
    training = kind(SMALL, "cpu", torch.bfloat16)
    seen = []
    layer = training.model[0]
    layer.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    training.step()
    assert seen == [torch.bfloat16]
    assert layer.weight.grad.dtype == torch.float32


def test_the_default_schedule_is_eight_evenly_spaced_steps_of_two_hundred():
    assert sorted(SCHEDULED) == [0, 25, 50, 75, 100, 125, 150, 175]


# -- what is compared ------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_it_says(name):
    case = CASES[name]
    sizes = Counter(case.labels())
    assert len(sizes) == case.groups
    assert sum(sizes.values()) == case.batch
    inputs, targets = case.data()[0]
    assert inputs.shape == (case.batch, *case.inputs)
    with torch.no_grad():
        assert case.model().eval()(inputs[:2]).shape == (2, case.classes)
    assert int(targets.max()) < case.classes
    assert case.scheduled_goal == pytest.approx(1 + 0.04 * (case.goal - 1) + 0.02)


def test_a_model_is_the_same_each_time_and_random_state_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = SMALL.model().state_dict(), SMALL.model().state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(before, torch.get_rng_state())


def test_overheads_are_compared_not_ratios():
    assert compare_overheads(21.0, 2.0)["times_ours"] == pytest.approx(20)
    assert compare_overheads(21.0, 2.0)["times_ours_met"]
    assert not compare_overheads(20.0, 2.0)["times_ours_met"]
    assert compare_overheads(20.0, 0.99) == {
        "times_ours": None,
        "times_ours_goal": 20,
        "times_ours_met": True,
    }


def test_memory_is_compared_without_the_group_gradients():
    plain = {"imports": 100.0, "peak": 200.0, "tensors": 30.0}
    watched = {"imports": 100.0, "peak": 230.0, "tensors": 45.0}
    row = compare_peaks(plain, watched, gradients=20.0)
    assert row["memory_ratio"] == pytest.approx(1.05)
    assert row["memory_ratio_without_imports"] == pytest.approx(1.1)
    assert row["memory_met"]


def test_what_is_watched_counts_parameters_and_spectra():
    found = what_is_watched(SMALL)
    assert found["parameters"] == {"rows": 6}
    assert found["spectra"] == {"gradient": 6, "activation": 6, "adjoint": 6}


def test_a_trace_is_searched_for_what_waits():
    names = ["aten::mm", "cudaStreamSynchronize", "cudaStreamSynchronize"]
    assert count_synchronisations(names) == {"cudaStreamSynchronize": 2}


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.5])
def test_a_fit_recovers_an_exponent_under_a_constant_at_small_sizes(exponent):
    sizes = 2.0 ** np.arange(3, 10)
    values = 3 * sizes**exponent
    values[:2] += 1000  # what small sizes pay anyway
    assert fit_exponent(sizes, values) == pytest.approx(exponent)


def test_a_fit_leaves_out_costs_below_zero():
    assert fit_exponent([1, 2, 4, 8], [1.0, 2.0, -0.1, 8.0]) == pytest.approx(1.0)
    assert np.isnan(fit_exponent([1, 2, 4, 8], [1.0, -1.0, -1.0, 8.0]))


def test_a_sweep_measures_each_size_up_to_the_largest_wanted():
    rows = list(measure_sweep("depth", rounds=1, window=1, most=4))
    assert [row["size"] for row in rows] == [2, 4]
    fit = fit_sweep("depth", rows)
    assert (fit["from_size"], fit["to_size"]) == (2, 4)


def test_every_hard_spectrum_is_within_the_target():
    ours = [row for row in measure_accuracy(1) if "record_route" in row]
    assert len(ours) == len(SPECTRA)
    assert all(row["error"] <= TARGET for row in ours)
    assert {row["status"] for row in ours} == {"ok"}


def test_a_peer_that_is_missing_or_fails_says_so(monkeypatch):
    def missing(case):
        raise ModuleNotFoundError("backpack")

    def failing(case):
        raise TypeError("no such layer")

    monkeypatch.setitem(PEERS, "BackPACK", missing)
    monkeypatch.setitem(PEERS, "Opacus", failing)
    monkeypatch.delitem(PEERS, "Delve")
    (row,) = measure_peers([SMALL], rounds=1, window=1, budget=0)
    assert row["BackPACK"] == "not installed"
    assert row["Opacus"] == "fails: TypeError"
    assert row["torch.func"] > 0
    assert row["ours"] > 0


# -- results ---------------------------------------------------------------------


def test_results_say_where_they_come_from_and_hold_no_nan(tmp_path):
    write(tmp_path, "cases", describe([1, 2], "run me"), rows=[{"ratio": np.nan}])
    stored = json.loads((tmp_path / "cases.json").read_text())
    about = stored["about"]
    assert about.keys() == {
        *("date", "command", "machine", "versions", "seed", "threads"),
    }
    assert about["machine"].keys() >= {"cpu", "cores", "memory_gib", "gpu"}
    assert about["versions"]["torch"] == torch.__version__
    assert (about["threads"], about["command"]) == ([1, 2], "run me")
    assert stored["rows"] == [{"ratio": None}]
    assert read(tmp_path, "scaling") is None


def test_tables_go_to_their_places_in_a_text():
    text = "a\n<!-- t -->\nold\n<!-- end t -->\nb\n"
    filled = fill(text, {"t": "new"})
    assert filled == "a\n<!-- t -->\nnew\n<!-- end t -->\nb\n"
    assert fill(filled, {"t": "new"}) == filled
    with pytest.raises(ValueError, match="no place for a table 'u'"):
        fill(text, {"u": "new"})


def test_the_table_has_every_goal_and_whether_it_was_met():
    effort = Effort(rounds=1, shorten=20)
    rows = list(measure_cases([SMALL], [1, 2], effort))
    assert [row["threads"] for row in rows] == [1, 2]
    for row in rows:
        assert row["same_weights"]
        assert row["every_met"] == (row["every_ratio"] <= 1.5)
        assert row["scheduled_goal"] == SMALL.scheduled_goal
        assert "times_ours" not in row


@pytest.mark.slow
def test_quick_runs_from_end_to_end(tmp_path, capsys):
    run.main(["--quick", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    for name in ("cases", "coverage", "reference", "scaling", "accuracy", "null"):
        assert f"## {name}" in shown
    written = {path.name for path in tmp_path.iterdir()}
    assert {"cases.json", "scaling.json", "accuracy.json"} <= written
    assert {"scaling-width.png", "scaling-width.svg", "accuracy.svg"} <= written


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(tmp_path):
    chosen = ["--parts", "memory", "--only", "mlp-narrow-2", "--out", str(tmp_path)]
    run.main(chosen)
    (row,) = read(tmp_path, "memory")["rows"]
    assert 0 < row["tensors_unwatched_mib"] < row["tensors_watched_mib"]
    assert 0 < row["memory_imports_mib"] < row["memory_unwatched_mib"]
    assert row["memory_watched_mib"] > row["group_gradients_mib"]


def test_rows_of_other_cases_stand_where_machine_and_versions_are_the_same():
    about = describe([1], "first")
    stored = {"about": about, "rows": [{"case": "a", "threads": 1, "x": 1}]}
    later = describe([2], "second")
    fresh = [{"case": "a", "threads": 2, "x": 3}]
    whole, rows = joined(stored, later, fresh)
    assert rows == [*stored["rows"], *fresh]
    assert whole["command"] == "first && second"
    assert whole["threads"] == [1, 2]
    again = [{"case": "a", "threads": 1, "x": 9}]
    assert joined(stored, later, again) == (later, again)
    assert joined(stored, later | {"versions": {}}, fresh)[1] == fresh
    assert joined(None, later, fresh) == (later, fresh)


# -- the null --------------------------------------------------------------------


def test_the_null_is_timed_on_what_can_be_tested():
    threads = torch.get_num_threads()
    try:
        rows = list(measure_null(1, rounds=2, permutations=3))
    finally:
        torch.set_num_threads(threads)
    assert [row["quantities"] for row in rows] == [
        "gradient",
        "gradient, activation, adjoint",
    ]
    assert [row["tested"] for row in rows] == [3, 3 + 4 + 3]  # the output has rank 1
    for row in rows:
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert row["seconds_met"] == (row["seconds"] < row["seconds_goal"])


# -- studies ---------------------------------------------------------------------


def test_linkage_is_that_of_a_real_study(monkeypatch):
    """Every trial asks, logs, and tells, and nothing is left behind."""
    told = []
    tell = optuna.Study.tell

    def watching(study, trial, values=None, **how):
        if "state" in how:  # not one of Optuna alone
            told.append((trial.number, how["state"].name, values))
        return tell(study, trial, values, **how)

    monkeypatch.setattr(optuna.Study, "tell", watching)
    (row,) = measure_linkage(3)
    assert [number for number, *_ in told] == [0, 1, 2, 3]
    assert [about for _, *about in told] == [["COMPLETE", [0.8]]] * 4
    assert row["trials"] == 3
    assert row["linked_ms"] > row["alone_ms"] > 0
    assert not any(Path().iterdir())


def test_growth_is_that_of_the_last_tenth():
    row = flatness([100.0] * 10 + [130.0] * 80 + [160.0] * 10)
    assert (row["ms_first"], row["ms"], row["ms_last"]) == (100, 130, 160)
    assert row["growth"] == pytest.approx(1.6)
    assert not row["growth_met"]
    assert not row["ms_met"]  # of the last trials
    assert flatness([100.0] * 20)["ms_met"]


def test_a_sweep_is_the_command_itself(monkeypatch):
    calls = []
    monkeypatch.setattr(
        sweeps.subprocess, "run", lambda words, **how: calls.append((words, how))
    )
    (row,) = measure_sweep_command(40, ("--workers", "2"))
    (words, how), *_ = calls
    assert words[1:] == [
        *("-m", "spectral_mlops.cli", "sweep", "--trials", "40", "--workers", "2")
    ]
    assert how["check"]
    assert row["seconds_met"]
    assert row["command"] == "spectral-mlops sweep --trials 40 --workers 2"


# -- tracking --------------------------------------------------------------------


def test_tracking_is_measured_beside_the_same_job_without(small, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(tracking, "EPOCHS", 4)
    try:
        (row,) = tracking.measure_tracking(1, rounds=2, settings=small())
    finally:
        torch.set_num_threads(threads)
    assert 0 < row["share_low"] <= row["share"] <= row["share_high"] < 1
    assert row["share_met"] == (row["share"] < row["share_goal"])
    assert row["bare_low"] <= row["bare_ratio"] <= row["bare_high"]
    write(tmp_path, "tracking", describe([1], "here"), [row])
    assert "| main job | 1 |" in tables(tmp_path)["tracking"]
