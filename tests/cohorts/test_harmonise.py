import numpy as np
import pytest
from scipy import stats

from spectral_mlops.cohorts.harmonise import ComBat
from spectral_mlops.errors import InputError


def shifted(seed=0, features=30):
    rng = np.random.default_rng(seed)
    sites = rng.permutation(np.repeat(["a", "b", "c"], [25, 15, 40]))
    x = rng.normal(2.0, 1.5, size=(80, features))
    for name, (shift, scale) in {"b": (3.0, 2.0), "c": (-1.0, 0.5)}.items():
        here = sites == name
        own = shift + rng.normal(0, 0.3, features)
        x[here] = (x[here] - 2) * scale + 2 + own
    return x, sites


def by_hand(x, sites):
    """Feature by feature and site by site, fixed point of the two conditional means."""
    names = sorted(set(sites))
    mean = sum((sites == s).mean() * x[sites == s].mean(0) for s in names)
    residual = np.concatenate([x[sites == s] - x[sites == s].mean(0) for s in names])
    sd = np.sqrt((residual**2).sum(0) / len(x))
    out = np.empty_like(x)
    for s in names:
        z = (x[sites == s] - mean) / sd
        n, g, d = len(z), z.mean(0), z.var(0, ddof=1)
        prior_mean, prior_var = g.mean(), g.var(ddof=1)
        a = (2 * d.var(ddof=1) + d.mean() ** 2) / d.var(ddof=1)
        b = (d.mean() * d.var(ddof=1) + d.mean() ** 3) / d.var(ddof=1)
        gamma, delta = np.empty_like(g), np.empty_like(d)
        for j in range(x.shape[1]):
            old_g, old_d = g[j], d[j]
            for _ in range(500):
                old_g = (prior_var * n * g[j] + old_d * prior_mean) / (
                    prior_var * n + old_d
                )
                old_d = (b + 0.5 * ((z[:, j] - old_g) ** 2).sum()) / (n / 2 + a - 1)
            gamma[j], delta[j] = old_g, old_d
        out[sites == s] = (z - gamma) / np.sqrt(delta) * sd + mean
    return out


def test_equals_the_formulas_one_by_one():
    x, sites = shifted()
    found = ComBat.fit(x, sites).transform(x, sites)
    np.testing.assert_allclose(found, by_hand(x, sites), rtol=1e-4, atol=1e-4)


def test_sites_end_alike_and_people_keep_their_order():
    x, sites = shifted(1)
    found = ComBat.fit(x, sites).transform(x, sites)
    before = stats.f_oneway(*(x[sites == s][:, 0] for s in "abc")).pvalue
    after = stats.f_oneway(*(found[sites == s][:, 0] for s in "abc")).pvalue
    assert before < 1e-6 < 0.5 < after
    spreads = [found[sites == s].std(axis=0).mean() for s in "abc"]
    assert max(spreads) / min(spreads) < 1.15
    for s in "abc":
        rank = stats.spearmanr(x[sites == s][:, 3], found[sites == s][:, 3])
        assert rank.statistic == pytest.approx(1.0)


def test_people_held_out_change_nothing():
    x, sites = shifted(2)
    fitted = ComBat.fit(x[:60], sites[:60])
    one = fitted.transform(x[70:71], sites[70:71])
    np.testing.assert_array_equal(one, fitted.transform(x[60:], sites[60:])[10:11])


def test_volumes_keep_their_shape_and_constants_their_value():
    x, sites = shifted(3)
    x[:, 4] = 0.25
    volumes = x.reshape(80, 5, 3, 2).astype(np.float32)
    found = ComBat.fit(volumes, sites).transform(volumes, sites)
    assert (found.shape, found.dtype) == (volumes.shape, np.float32)
    np.testing.assert_allclose(found.reshape(80, -1)[:, 4], 0.25, rtol=1e-6)
    single = ComBat.fit(x[:, :1], sites).transform(x[:, :1], sites)
    assert np.isfinite(single).all()


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (["a"] * 6, "all 6 training people of a fold are of site=a"),
        (["a", "a", "b", "b", "b", "c"], "site=c has 1 person in the training"),
    ],
)
def test_too_few_sites_or_people(sites, words):
    with pytest.raises(InputError, match=words):
        ComBat.fit(np.random.default_rng(0).normal(size=(6, 2)), sites)


def test_a_new_site_is_refused():
    x, sites = shifted()
    fitted = ComBat.fit(x, sites)
    with pytest.raises(InputError, match=r"nobody of site=d is in training"):
        fitted.transform(x[:1], ["d"])
