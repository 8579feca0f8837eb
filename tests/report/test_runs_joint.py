import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from spectral_mlops.config import RunConfig, merge, validate
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.relabel import spread_over_runs
from spectral_mlops.inference.significance import combined_z, p_max_t, p_value
from spectral_mlops.report.runs import StoredRun
from spectral_mlops.report.runs_console import show_runs
from spectral_mlops.report.runs_joint import joint_tests

P = 39


def comparison(layer, values, **changes):
    fields = {
        "layer": layer, "quantity": "adjoint", "grouping": "dx", "group_a": "a",
        "group_b": "b", "divergence": "js", "values": values, "n_a": 9, "n_b": 7,
        "subjects_a": 9, "subjects_b": 7, "source": "probe", "strata": "site",
        "null": "39 relabellings (d1) of 16 people", "valid_for": "held-out people",
        "testable": True, "reason": "",
    }  # fmt: skip
    return Comparison(**fields | changes)


def stored(seed, null, pairs=(), probe="p1", **changes):
    base = RunConfig().model_dump(mode="json")
    declared = {"groupings": ["dx"], "primary_quantity": "adjoint"}
    settings = {"training": {"seed": seed}, "comparison": declared}
    config = validate(RunConfig, merge(base, merge(settings, changes)), "test")
    layers = pd.DataFrame(
        {"layer": ["l0"], "quantity": ["adjoint"], "pair": ["a – b"],
         "divergence": [0.1], "z": [1.0]}
    )  # fmt: skip
    return StoredRun(f"run-{seed}", config, {}, layers, probe, list(null), list(pairs))


def values(seed, layers=2):
    random = np.random.default_rng(seed)
    people = np.random.default_rng(99).gamma(3, size=(layers, P + 1))
    return people + 0.5 * random.gamma(3, size=(layers, P + 1))


def null(seed, **changes):
    return [comparison(f"l{i}", row, **changes) for i, row in enumerate(values(seed))]


def test_values_are_averaged_over_runs_before_z_and_p():
    extra = comparison("l0", values(7)[0], grouping="sex")
    flat = comparison("out", np.array([np.nan]), reason="rank 1")
    runs = [stored(seed, [*null(seed), extra, flat]) for seed in range(3)]
    (joint,) = joint_tests(runs)
    mean = sum(values(seed) for seed in range(3)) / 3  # [layers, P + 1]
    same = [spread_over_runs(np.stack([values(s)[i] for s in range(3)])[None])
            for i in range(2)]  # fmt: skip
    np.testing.assert_allclose(mean, same)
    z = combined_z(mean.T)
    (row,) = joint.overall.to_dict("records")
    assert row["z"] == pytest.approx(z[0])
    assert row["p"] == p_value(z)
    single = [combined_z(values(seed).T)[0] for seed in range(3)]
    assert row["lowest"] == pytest.approx(min(single))
    assert row["highest"] == pytest.approx(max(single))
    assert joint.layers["layer"].tolist() == ["l0", "l1"]
    np.testing.assert_allclose(joint.layers["divergence"], mean[:, 0])
    observed = np.stack([values(seed)[:, 0] for seed in range(3)])
    np.testing.assert_allclose(joint.layers["sd"], observed.std(0, ddof=1))
    assert joint.layers["p_max"].tolist() == p_max_t(mean.T).tolist()
    assert joint.sentence.startswith(
        f"Runs 1, 2, 3 together: p = {row['p']:.3f} for adjoint between groups of dx"
    )


def test_layers_are_tested_by_relabelling_each_pair_alone_where_that_differs():
    pairs = [null(seed + 50) for seed in range(2)]
    runs = [stored(seed, null(seed), pairs[seed]) for seed in range(2)]
    (joint,) = joint_tests(runs)
    mean = (values(50) + values(51)) / 2
    np.testing.assert_allclose(joint.layers["divergence"], mean[:, 0])
    z = combined_z(((values(0) + values(1)) / 2).T)
    assert joint.overall.loc[0, "z"] == pytest.approx(z[0])


def test_what_may_not_be_averaged_is_said():
    one = stored(0, null(0))

    def said(*others):
        (joint,) = joint_tests([one, *others])
        assert joint.overall.empty
        assert joint.layers.empty
        return joint.sentence

    assert "1, 2: they have different probes" in said(stored(1, null(1), probe="p2"))
    assert "run-1 left no null.parquet" in said(stored(1, []))
    other = null(1, null="39 relabellings (d2) of 16 people")
    text = said(stored(1, other))
    assert "adjoint between a and b was relabelled in different ways" in text
    assert "(d1)" in text
    assert "(d2)" in text
    assert "strata none" in said(stored(1, null(1, strata="none")))
    flat = [comparison("l0", np.array([np.nan]), reason="rank 1")]
    (joint,) = joint_tests([stored(0, flat), stored(1, flat)])
    assert joint.sentence == (
        "Runs 1, 2 together: no test of adjoint between groups of dx."
    )


def test_only_runs_of_one_kind_with_a_probe_are_put_together():
    one, same = stored(0, null(0)), stored(0, null(0))
    longer = stored(1, null(1), training={"seed": 1, "epochs": 7})
    assert joint_tests([one]) == []
    assert joint_tests([one, same]) == []  # a seed twice
    assert joint_tests([one, longer]) == []
    bare = [stored(seed, [], probe="") for seed in (0, 1)]
    assert joint_tests(bare) == []
    (joint,) = joint_tests([longer, one, stored(2, null(2))])
    assert joint.runs == [2, 3]


def test_the_joint_test_is_printed():
    console = Console(width=120, file=io.StringIO())
    show_runs(console, [stored(seed, null(seed)) for seed in range(2)])
    out = " ".join(console.file.getvalue().split())
    assert "Runs 1, 2 together: z of the mean over runs" in out
    assert "SD over runs" in out
    assert "The people are the evidence" in out
