"""A small version of experiments/presets: a planted effect is seen, none is not."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from experiments.presets.run import compare, measure

SMALLER = {"training": {"epochs": 8, "folds": 2, "learning_rate": 1e-3}}
COHORTS = 10


@pytest.mark.slow
def test_easy_cohorts_diverge_and_null_ones_do_not(tmp_path):
    rows = [
        measure(preset, seed, tmp_path, SMALLER)
        for seed in range(COHORTS)
        for preset in ("null", "easy")
    ]
    table = pd.DataFrame(rows)
    z = table.pivot_table(
        index="seed", columns="preset", values="final/divergence_activation"
    )
    assert z["easy"].median() > z["null"].median()
    assert mannwhitneyu(z["easy"], z["null"], alternative="greater").pvalue < 0.05
    assert abs(z["null"].mean()) < 0.7
    assert table[table["preset"] == "easy"]["final/probe_auc"].mean() > 0.75
    assert table[table["preset"] == "null"]["final/probe_auc"].mean() < 0.65


def test_the_comparison_is_that_of_the_columns():
    random = np.random.default_rng(0)
    rows = [
        {
            "preset": preset,
            "seed": seed,
            **{
                f"final/divergence_{quantity}": random.normal(shift)
                for quantity in ("activation", "adjoint", "gradient")
            },
        }
        for seed in range(9)
        for preset, shift in (("null", 0.0), ("easy", 3.0))
    ]
    table = pd.DataFrame(rows)
    summary = compare(table).set_index("quantity")
    null = table[table["preset"] == "null"]["final/divergence_adjoint"]
    easy = table[table["preset"] == "easy"]["final/divergence_adjoint"]
    assert summary.loc["adjoint", "null_mean"] == pytest.approx(null.mean())
    assert summary.loc["adjoint", "easy_median"] == pytest.approx(easy.median())
    expected = mannwhitneyu(easy, null, alternative="greater").pvalue
    assert summary.loc["adjoint", "p_easy_above_null"] == pytest.approx(expected)
