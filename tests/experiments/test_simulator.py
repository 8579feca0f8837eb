"""A small version of experiments/simulator, and its measures on known data."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter
from scipy.stats import ttest_ind

from experiments.simulator import measures, run


def test_differences_are_those_of_the_t_test():
    random = np.random.default_rng(0)
    values, patients = random.normal(size=(31, 4)), np.arange(31) % 3 == 0
    t = ttest_ind(values[patients], values[~patients]).statistic
    n = patients.sum(), (~patients).sum()
    expected = t * np.sqrt(1 / n[0] + 1 / n[1])
    np.testing.assert_allclose(measures.cohens_d(values, patients), expected)


def test_participation_ratio_of_known_directions():
    """Three equal directions count as three, however many features there are."""
    random = np.random.default_rng(1)
    scores = np.linalg.qr(random.normal(size=(40, 3)) - 0.0)[0]
    scores = np.linalg.qr(scores - scores.mean(0))[0]
    axes = np.linalg.qr(random.normal(size=(90, 3)))[0]
    assert measures.participation_ratio(scores @ axes.T) == pytest.approx(3)


def test_the_leading_eigenvalue_of_equal_correlations():
    assert measures.leading(np.full(10, 0.3)) == pytest.approx(1 + 4 * 0.3)


def test_signals_of_known_autocorrelation():
    noise = np.random.default_rng(2).normal(size=(40_000, 3))
    course = lfilter([1.0], [1.0, -0.36], noise, axis=0)
    dead = np.hstack([course, np.zeros((40_000, 1))])
    found = measures.signals([dead], 2.0)
    assert found["autocorrelation at lag 1"] == pytest.approx(0.36, abs=0.02)
    hertz = (np.arange(100_000) + 0.5) / 100_000 * 0.25
    power = 1 / np.abs(1 - 0.36 * np.exp(-2j * np.pi * hertz * 2.0)) ** 2
    slow = power[(hertz > 0.01) & (hertz <= 0.1)].sum() / power.sum()
    assert found["power 0.01 to 0.1 Hz"] == pytest.approx(slow, abs=0.02)


def test_smoothness_is_the_filter_s():
    random = np.random.default_rng(3)
    sd = 2.0
    fields = [
        gaussian_filter(random.normal(size=(24, 26, 22)), sd, mode="wrap")
        for _ in range(12)
    ]
    maps = np.float32(np.stack(fields) / np.std(fields) * 0.01 + 1.0)
    mask = np.ones(maps.shape[1:], dtype=bool)
    found = measures.fwhm(maps, mask, np.arange(12) % 2 == 0, 3.0)
    assert found == pytest.approx(3.0 * sd * np.sqrt(8 * np.log(2)), rel=0.08)


def test_the_share_between_labels():
    labels = np.repeat(["a", "b"], 50)
    noise = np.random.default_rng(4).normal(size=(100, 500))
    values = noise + np.where(labels == "a", -0.5, 0.5)[:, None]
    assert measures.share(values, labels) == pytest.approx(0.2, abs=0.03)


def test_a_small_run_fills_its_tables(tmp_path):
    (tmp_path / "README.md").write_text((run.HERE / "README.md").read_text())
    small = ["--seeds", "1", "--maps", "1", "--people", "24", "--voxel-mm", "12"]
    run.main([*small, "--out", str(tmp_path)])
    (found,) = json.loads((tmp_path / "results/measured.json").read_text())["rows"]
    assert {"null", "realistic", "easy", "confounded"} <= set(found["connectivity"])
    assert found["signals"]["realistic"]["autocorrelation at lag 1"] == pytest.approx(
        0.36, abs=0.06
    )
    text = (tmp_path / "README.md").read_text()
    assert "| participation ratio |" in text
    assert "COBRE (quoted)" in text
