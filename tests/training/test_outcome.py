from dataclasses import replace

import numpy as np
import pytest

from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.significance import combined_z, p_value, standardise
from spectral_mlops.training.outcome import (
    Outcome,
    mean_outcome,
    no_outcome,
    outcome_of,
    p_text,
)
from spectral_mlops.training.verdict import ControlRow, controls_table, verdict_of

P = 199


def comparison(layer, values, **changes):
    fields = {
        "layer": layer,
        "quantity": "activation",
        "grouping": "group",
        "group_a": "a",
        "group_b": "b",
        "divergence": "js",
        "values": values,
        "n_a": 13,
        "n_b": 12,
        "subjects_a": 13,
        "subjects_b": 12,
        "source": "probe",
        "null": "199 relabellings (x) of 25 people",
        "strata": "site",
        "valid_for": "held-out people",
        "testable": True,
        "reason": "",
    }
    return Comparison(**(fields | changes))


def outcome(seed=0, shift=0.0, layers=3, scale=1.0):
    random = np.random.default_rng(seed)
    values = scale * random.gamma(3, size=(layers, P + 1))
    values[:, 0] = scale * (3 + shift)
    named = [comparison(f"l{i}", row) for i, row in enumerate(values)]
    return outcome_of(named, "activation", "group"), values.T


def test_an_outcome_is_the_combined_z_of_its_layers():
    found, values = outcome(shift=2)
    np.testing.assert_allclose(found.values, combined_z(values))
    assert found.statistic == pytest.approx(standardise(values)[0].mean())
    assert found.p == p_value(combined_z(values))
    assert (found.people, found.strata) == ("13 + 12", "site")


def test_only_what_it_is_about_counts():
    _, values = outcome(shift=2)
    right = comparison("l0", values[:, 0])
    others = [
        comparison("l1", values[:, 1], quantity="adjoint"),
        comparison("l1", values[:, 1], grouping="sex"),
        comparison("l1", values[:1, 1], reason="degenerate: rank 1"),
        comparison("l1", values[:, 1], testable=False, reason="descriptive"),
    ]
    found = outcome_of([right, *others], "activation", "group")
    np.testing.assert_allclose(found.values, combined_z(values[:, :1]))
    nothing = outcome_of(others, "activation", "group")
    assert np.isnan(nothing.p)
    assert nothing.reason == "degenerate: rank 1"
    assert "degenerate: rank 1." in nothing.sentence("activation", "group")
    flat = outcome_of([comparison("l0", np.ones(P + 1))], "activation", "group")
    assert "no relabelling" in flat.reason


def test_one_beats_another_by_its_own_relabellings():
    """The share of relabellings with so large a difference, counted by a loop."""
    (one, _), (other, _) = outcome(1, shift=4), outcome(2, shift=0.5)
    beyond = one.beyond(other)
    differences = [a - b for a, b in zip(one.values, other.values, strict=True)]
    reaching = sum(d >= differences[0] for d in differences)
    assert beyond.p == pytest.approx(reaching / (P + 1))
    assert beyond.p < 0.05 < other.beyond(one).p
    strangers = one.beyond(replace(other, null="99 relabellings (y) of 20 people"))
    assert "other people" in strangers.reason
    assert one.beyond(no_outcome("nobody there")).reason == "nobody there"
    assert one.beyond(one).reason == "the trained networks show just the same"


def test_nothing_is_beaten_more_often_than_by_chance():
    """Two outcomes of the same people, as alike as networks of one training are."""
    random = np.random.default_rng(0)
    reached = 0
    for _ in range(400):
        shared, a, b = random.standard_normal((3, P + 1))
        one, other = (
            Outcome(standardise(shared + 0.5 * own), {}, 0.0, "x", "none", "")
            for own in (a, b)
        )
        reached += one.beyond(other).p <= 0.05
    assert reached / 400 == pytest.approx(0.05, abs=0.03)


def test_the_same_networks_are_measured_on_one_scale():
    """People who vary less look more different on their own scale, not on this."""
    trained, _ = outcome(1, shift=2)
    even = replace(
        trained,
        layers={k: v[0] + 0.1 * (v - v[0]) - 0.5 * v.std() * (v != v[0])
                for k, v in trained.layers.items()},
    )  # fmt: skip
    shown = even.on_scale_of(trained)
    assert shown.z == pytest.approx(trained.z)
    assert shown.p == trained.p
    assert shown.beyond(trained).scale is None
    assert trained.on_scale_of(trained).values == pytest.approx(trained.values)
    assert no_outcome("none").on_scale_of(trained).reason == "none"


def test_draws_are_averaged_relabelling_by_relabelling():
    draws = [outcome(seed)[0] for seed in range(3)]
    mean = mean_outcome([no_outcome("one failed"), *draws])
    np.testing.assert_allclose(mean.values, sum(d.values for d in draws) / 3)
    assert mean.null == draws[0].null
    assert mean_outcome([no_outcome("all failed")]).reason == "all failed"


def test_the_smallest_detectable_difference_is_seen_four_times_in_five():
    random = np.random.default_rng(3)
    null = standardise(random.standard_normal(2000))
    size = Outcome(null, {}, 0.0, "x", "none", "").smallest_detectable
    observed = size + random.standard_normal(3000)
    p = [p_value(np.concatenate([[z], null])) for z in observed]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.8, abs=0.03)


def test_the_sentence_says_what_p_means_and_what_not():
    clear = outcome(shift=9)[0].sentence("activation", "group")
    assert clear == (
        "p = .005: among relabellings of these subjects within site, so large a "
        "difference in activation is this rare for this trained network: group is "
        "associated with what the network sees. It does not by itself show that "
        "dynamics differ beyond the inputs, nor that a new training run would agree."
    )
    faint, _ = outcome(shift=0)
    for strata, words in (
        ("site, families whole", "these subjects within site, families whole, so"),
        ("none, families whole", "these subjects, families whole, so"),
    ):
        assert words in replace(faint, strata=strata).sentence("adjoint", "sex")
    said = replace(faint, strata="none").sentence("adjoint", "sex")
    assert "relabellings of these subjects, so large" in said
    assert "no association of sex" in said
    assert f"80 % power is z = {faint.smallest_detectable:.2f})" in said
    assert "It does not by itself show" in said
    assert (p_text(1.0), p_text(0.0125)) == ("p = 1.000", "p = .013")


# -- the verdict -------------------------------------------------------------------


class Run:
    """As much of a plan as a verdict asks for."""

    primary_quantity, compared = "activation", "control and patient"

    class config:
        class controls:
            level = 0.05


def row(name, passes, beyond=None, reason=""):
    control = no_outcome(reason) if reason else outcome()[0]
    return ControlRow(name, control, beyond, passes, f"{name} says")


def decisive(init=True, surrogate=True, loss=True):
    beyond = outcome(shift=9)[0]
    return [
        row("init", init, beyond),
        row("input-surrogate", surrogate, beyond),
        row("loss-matched", loss),
    ]


def test_different_dynamics_needs_all_three():
    clear, faint = outcome(shift=9)[0], outcome(shift=0)[0]
    said = verdict_of(Run, clear, decisive())
    assert said.startswith(
        "Verdict: different dynamics in activation between control and patient, "
        "beyond init, input-surrogate and loss-matched (init, trained less control z ="
    )
    for changed in ("init", "surrogate", "loss"):
        said = verdict_of(Run, clear, decisive(**{changed: False}))
        assert "Verdict: explained by " in said
        assert changed in said
        assert said.count("says") == 1
        assert "not shown to be different dynamics" in said
    both = verdict_of(Run, clear, decisive(init=False, loss=False))
    assert "explained by init and loss-matched" in both
    few = decisive()[2].outcome
    assert both.endswith(
        f", 13 + 12 people: z = {few.z:.2f}, {p_text(few.p)}, where z = "
        f"{few.smallest_detectable:.2f} shows with 80 % power)."
    )
    assert "nothing to explain" in verdict_of(Run, faint, decisive())


def test_what_could_not_be_seen_decides_nothing():
    clear = outcome(shift=9)[0]
    rows = [*decisive()[:2], row("loss-matched", None, reason="3 people are left")]
    said = verdict_of(Run, clear, rows)
    assert said == (
        "Verdict: undecided without loss-matched (loss-matched: 3 people are left)."
    )
    off = verdict_of(Run, clear, decisive()[:1])
    assert off == "Verdict: undecided without input-surrogate and loss-matched."
    worse = verdict_of(Run, clear, [row("init", False, clear), *rows[1:]])
    assert "explained by init" in worse


def test_the_table_has_the_primary_outcome_first():
    clear = outcome(shift=9)[0]
    table = controls_table(clear, [*decisive(), row("nuisance age", None, None, "few")])
    assert list(table["control"])[:2] == ["trained", "init"]
    assert table.loc[0, "p"] == clear.p
    assert np.isnan(table.loc[0, "beyond_p"])
    assert table.loc[1, "beyond_z"] == clear.z
    assert table.loc[4, "says"] == "few"
