from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, train
from spectral_mlops.training.crossfit import crossfit_plans, crossfit_table


def test_everyone_is_held_out_once_and_never_trained_on_then(small):
    plan = make_plan(small(), Path())
    parts = crossfit_plans(plan, 3)
    held = [who for part in parts for who in part.probe.ids]
    assert sorted(held) == sorted(plan.cohort.people.index)
    for part in parts:
        used = {who for fold in part.folds for who in fold.train_ids}
        assert used
        assert not used & set(part.probe.ids)
        assert part.config == plan.config
    assert len({part.probe.digest for part in parts}) == 3


def test_the_parts_are_combined_by_twice_their_mean(small):
    plan = make_plan(small(training={"epochs": 1}), Path())
    parts = crossfit_plans(plan, 2)
    results = [train(part, MemoryTracker()) for part in parts]
    table, said = crossfit_table(plan, parts, results)
    assert table["held_out"].tolist() == [28, 28]
    alone = train(parts[1], MemoryTracker()).metrics
    assert table["p"][1] == alone["final/primary_p"]
    assert table["z"][1] == alone[f"final/divergence_{plan.primary_quantity}"]
    together = min(1.0, 2 * float(np.mean(table["p"])))
    assert f"p = {together:.3f}".replace("0.", ".", 1) in said
    results[0] = replace(results[0], metrics={})
    assert "No test of adjoint" in crossfit_table(plan, parts, results)[1]


def test_more_parts_than_people_of_a_group_are_refused(small):
    plan = make_plan(small(), Path())
    with pytest.raises(InputError):
        crossfit_plans(plan, 40)
