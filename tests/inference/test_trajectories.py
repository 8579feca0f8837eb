from itertools import combinations

import mne
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_mlops.errors import InputError
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.inference.significance import p_max_t, standardise
from spectral_mlops.inference.trajectories import Cluster, cluster_test, max_t_test

FAMILIES = ["epochs", "epochs_and_layers"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def smooth(rng, *shape):
    """Values whose neighbours along axis 1 are alike, as those of epochs are."""
    noise = rng.normal(size=shape)
    kept = noise + np.roll(noise, 1, axis=1) + np.roll(noise, 2, axis=1)
    return np.exp(0.5 * kept)


def loop_clusters(t, threshold):
    """``[(layer, start, stop, mass)]`` of one trajectory ``[epochs, layers]``."""
    found = []
    for layer in range(t.shape[1]):
        inside = []
        for epoch in [*range(t.shape[0]), None]:
            if epoch is not None and t[epoch, layer] > threshold:
                inside.append(epoch)
            elif inside:
                mass = sum(t[e, layer] for e in inside)
                found.append((layer, inside[0], inside[-1] + 1, mass))
                inside = []
    return found


def loop_p(observed, null):
    return (1 + sum(x >= observed - 1e-9 * abs(observed) for x in null)) / (
        1 + len(null)
    )


@settings(deadline=None, max_examples=40)
@given(
    permutations=st.integers(1, 15),
    epochs=st.integers(1, 7),
    layers=st.integers(1, 3),
    threshold=st.sampled_from([0.1, 0.6, 1.2]),
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 99),
)
def test_clusters_equal_a_loop(permutations, epochs, layers, threshold, family, seed):
    values = smooth(np.random.default_rng(seed), permutations + 1, epochs, layers)
    found = cluster_test(values, threshold, family)
    t = standardise(values)
    every = [loop_clusters(row, threshold) for row in t]
    assert len(found.clusters) == len(every[0])
    for cluster, (layer, start, stop, mass) in zip(
        found.clusters, every[0], strict=True
    ):
        same = [layer] if family == "epochs" else range(layers)
        null = [max([c[3] for c in row if c[0] in same], default=0) for row in every]
        expected = Cluster(layer, start, stop, mass, loop_p(mass, null[1:]))
        assert cluster.__dict__ == pytest.approx(expected.__dict__)
        np.testing.assert_allclose(found.max_mass[:, layer], null)


class Recorded:
    """The statistic that MNE asks for: it calls once per relabelling, observed first.

    First it writes down the values, then (``moments`` given) standardises them.
    """

    def __init__(self, moments=None):
        self.moments, self.values = moments, []

    def __call__(self, a, b):
        value = np.abs(a.mean(0) - b.mean(0))
        if self.moments is not None:
            value = (value - self.moments[0]) / self.moments[1]
        self.values.append(value)
        return value


def with_mne(groups, threshold, statistic, adjacency):
    return mne.stats.permutation_cluster_test(
        groups,
        threshold=threshold,
        n_permutations=200,
        tail=1,
        stat_fun=statistic,
        adjacency=adjacency,
        out_type="indices",
        buffer_size=None,
        seed=3,
        verbose="error",
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_clusters_are_those_of_mne_under_the_same_relabellings(rng, layers):
    epochs = 15
    groups = [smooth(rng, n, epochs, layers).reshape(n, -1) for n in (9, 12)]
    groups[0][:, 4 * layers : 8 * layers : layers] += 2.0  # layer 0, epochs 4 to 7
    place = np.arange(epochs * layers).reshape(epochs, layers)
    before, after = place[:-1].ravel(), place[1:].ravel()
    size = (epochs * layers, epochs * layers)
    half = scipy.sparse.coo_array((np.ones(len(before)), (before, after)), shape=size)
    adjacency = (half + half.T).tocoo()

    recorded = Recorded()
    with_mne(groups, 1e-9, recorded, adjacency)
    values = np.stack(recorded.values)  # [P + 1, epochs × layers]
    assert values.shape == (200, epochs * layers)
    standardised = Recorded((values.mean(0), values.std(0)))
    _, clusters, p, null = with_mne(groups, 0.3, standardised, adjacency)
    expected = sorted(
        (index[0][0] % layers, index[0][0] // layers, index[0][-1] // layers + 1, q)
        for index, q in zip((np.sort(c) for c in clusters), p, strict=True)
    )

    found = cluster_test(values.reshape(200, epochs, layers), threshold=0.3)
    assert [(c.layer, c.start, c.stop, c.p) for c in found.clusters] == [
        pytest.approx(x) for x in expected
    ]
    assert min(c.p for c in found.clusters) < 0.05 < max(c.p for c in found.clusters)
    np.testing.assert_allclose(found.max_mass[:, 0], null)


def test_every_relabelling_enumerated(rng):
    data = smooth(rng, 7, 6)
    splits = [(0, 1, 2), *(s for s in combinations(range(7), 3) if s != (0, 1, 2))]
    values = np.array(
        [np.abs(data[list(s)].mean(0) - np.delete(data, s, 0).mean(0)) for s in splits]
    )[:, :, None]
    t = standardise(values)
    heaviest = [max([c[3] for c in loop_clusters(x, 0.8)], default=0) for x in t]
    found = cluster_test(values, 0.8)
    for cluster in found.clusters:
        reach = sum(x >= cluster.mass * (1 - 1e-9) for x in heaviest)
        assert cluster.p == pytest.approx(reach / 35)
    exact = max_t_test(values)
    for epoch in range(6):
        reach = sum(row.max() >= t[0, epoch, 0] for row in t)
        assert exact.p[epoch, 0] == pytest.approx(reach / 35)


def test_max_t_of_all_is_that_of_one_long_family(rng):
    values = smooth(rng, 60, 5, 3)
    flat = p_max_t(values.reshape(60, 15)).reshape(5, 3)
    np.testing.assert_array_equal(max_t_test(values).p, flat)
    alone = max_t_test(values, "epochs")
    for layer in range(3):
        np.testing.assert_array_equal(alone.p[:, layer], p_max_t(values[:, :, layer]))
    assert (alone.p <= flat).all()
    np.testing.assert_allclose(alone.t, standardise(values)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_epoch_without_a_value_is_never_significant_and_parts_clusters(rng, family):
    values = smooth(rng, 100, 6, 2)
    values[0, 1:5, 0] = 50.0
    whole = cluster_test(values, family=family).clusters[0]
    assert (whole.layer, whole.start, whole.stop, whole.p) == (0, 1, 5, 0.01)
    values[0, 3, 0] = np.nan
    values[:, 5, 1] = 2.0
    for found in (cluster_test(values, family=family), max_t_test(values, family)):
        said = {(3, 0): "no observed value", (5, 1): "no relabelling changes"}
        for epoch in range(6):
            for layer in range(2):
                reason = str(found.reason[epoch, layer])
                assert said.get((epoch, layer), "") in reason
                assert bool(reason) == ((epoch, layer) in said)
    p = max_t_test(values, family).p
    assert np.argwhere(np.isnan(p)).tolist() == [[3, 0], [5, 1]]
    parts = cluster_test(values, family=family).clusters
    assert [(c.start, c.stop) for c in parts if c.layer == 0] == [(1, 3), (4, 5)]
    # What it is under relabelling does not count either.
    values[1:, 3, 0] = 1e6
    again = cluster_test(values, family=family).clusters
    assert [c.__dict__ for c in again] == [c.__dict__ for c in parts]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_relabelling_without_a_value_counts_as_reaching(rng, family):
    values = smooth(rng, 100, 6, 2)
    values[0, :, :] = 50.0
    values[1:20, 2, 0] = np.nan
    other = 0.01 if family == "epochs" else 0.20
    first, second = cluster_test(values, family=family).clusters
    assert (first.p, second.p) == pytest.approx((0.20, other))
    p = max_t_test(values, family).p
    np.testing.assert_allclose(p, np.tile([0.20, other], (6, 1)))


def test_nothing_above_the_threshold_is_no_cluster(rng):
    values = smooth(rng, 30, 4, 2)
    assert cluster_test(values, threshold=100.0).clusters == ()
    values[0] = np.nan
    found = cluster_test(values)
    assert found.clusters == ()
    assert (found.max_mass == 0).all()
    assert np.isnan(max_t_test(values).p).all()


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf])
def test_thresholds_that_are_refused(rng, threshold):
    with pytest.raises(InputError, match="SD above zero"):
        cluster_test(smooth(rng, 3, 2, 1), threshold)


def test_shapes_and_families_that_are_refused(rng):
    with pytest.raises(InputError, match=r"\[3, 2\].*'epochs', 'epochs_and_layers'"):
        max_t_test(smooth(rng, 3, 2))
    with pytest.raises(InputError, match="family='layers'"):
        cluster_test(smooth(rng, 3, 2, 1), family="layers")


def test_a_long_weak_difference_is_found_by_its_cluster(rng):
    labels = draw_relabellings(["a"] * 15 + ["b"] * 15, ["x"] * 30, 199, seed=2)
    weight = np.where(labels == 0, 1.0, -1.0) / 15  # [P + 1, n]
    hits = {"cluster": 0, "max_t": 0}
    for _ in range(25):
        subject = rng.normal(size=(30, 1)) * 0.3
        data = subject + rng.normal(size=(30, 20))
        data[:15, 5:17] += 0.55
        values = np.abs(weight @ data)[:, :, None]
        hits["cluster"] += any(c.p <= 0.05 for c in cluster_test(values, 1.0).clusters)
        hits["max_t"] += (max_t_test(values).p <= 0.05).any()
    assert hits["cluster"] > hits["max_t"]
    assert hits["cluster"] >= 15
