import numpy as np
import pytest
import scipy.stats

from spectral_mlops.errors import InputError
from spectral_mlops.inference.crossfit import combine_folds


@pytest.mark.parametrize(
    ("p", "expected"),
    [([0.02, 0.04, 0.03], 0.06), ([0.01, 0.99], 1.0), ([0.2], 0.4), ([1, 1, 1], 1.0)],
)
def test_twice_the_mean_at_most_one(p, expected):
    found = combine_folds(p)
    assert found.p == pytest.approx(expected)
    assert (found.folds, found.reason) == (len(p), "")


def test_a_fold_without_p_makes_the_whole_unknown():
    found = combine_folds([0.01, np.nan, 0.02])
    assert np.isnan(found.p)
    assert (found.folds, found.reason) == (3, "no p in fold 1")
    assert combine_folds([np.nan, 0.5, np.nan]).reason == "no p in folds 0, 2"


@pytest.mark.parametrize("p", [[], [0.5, 1.1], [-0.1, np.nan], [[0.1], [0.2]]])
def test_what_is_refused(p):
    with pytest.raises(InputError, match="one p between 0 and 1 for each fold"):
        combine_folds(p)


def worst_folds(rng, runs, alpha):
    """Two uniform p whose mean is ``alpha / 2`` whenever the first is below alpha.

    Rüschendorf's dependence: no smaller factor than 2 would do.
    """
    first = rng.uniform(size=runs)
    return np.stack([first, np.where(first < alpha, alpha - first, first)], axis=1)


def test_the_worst_dependence_reaches_the_level_and_no_more():
    rng, alpha, runs = np.random.default_rng(2), 0.2, 4000
    folds = worst_folds(rng, runs, alpha)
    for fold in folds.T:
        assert scipy.stats.kstest(fold, "uniform").pvalue > 1e-3
    combined = np.array([combine_folds(p).p for p in folds])
    wrong = int((combined <= alpha + 1e-12).sum())
    assert scipy.stats.binomtest(wrong, runs, alpha).pvalue > 1e-3
    # The mean itself is no p: it is below alpha / 2 twice as often as it may be.
    assert (combined / 2 <= alpha / 2 + 1e-12).mean() > 1.8 * alpha / 2
