"""A small version of experiments/volumes: the same stages, all people, in parts."""

import numpy as np

from experiments.volumes.run import MB, measure
from spectral_mlops.training import inputs


def test_every_stage_is_measured_and_volumes_stay_on_disk(tmp_path, monkeypatch):
    people = 12
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    found = measure(tmp_path, people, (40, 48, 40), batch=2)
    assert found["lazy"]
    assert found["all_maps"] == round(people * 40 * 48 * 40 * 4 / MB)
    assert np.isfinite(found["loss"])
    for stage in ("write", "cache", "scale", "train", "validate"):
        assert found[stage]["own"] > 0
        assert found[stage]["s"] >= 0
    assert "probe" not in found  # twelve people are too few for one
    (cached,) = (tmp_path / "cache").glob("*.npy")
    assert cached.stat().st_size > people * 40 * 48 * 40 * 4
