"""Held-out people read a block at a time, against all of them at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_mlops.training import held_out, inputs, make_plan
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.controls_people import surrogate_mixing
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.held_out import MixedPeople, gram_of
from spectral_mlops.training.inputs import ScaledPeople
from spectral_mlops.training.outcome import no_outcome
from tests.training.toys import toy

VOXELS = 6 * 7 * 5


@pytest.fixture
def both(monkeypatch):
    """A fold with everybody in memory, and the same read in blocks of seven."""
    settings = {"channels": [3], "kernel": 3}
    plan = make_plan(toy("volume", model={"name": "cnn3d", "settings": settings}), ".")
    whole = FoldRun(plan, 0, torch.device("cpu"))
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    monkeypatch.setattr(held_out, "BLOCK_BYTES", 7 * 8 * VOXELS + 1)
    lazy = FoldRun(plan, 0, torch.device("cpu"))
    for one in (whole, lazy):
        one.train_epoch(0)
        one.validate(0)
    lazy.model.load_state_dict(whole.model.state_dict())
    return plan, whole, lazy


@pytest.fixture
def asked(monkeypatch):
    """How many people's volumes were asked for at a time."""
    sizes = []
    get = ScaledPeople.__getitem__

    def noted(self, index):
        sizes.append(len(index))
        return get(self, index)

    monkeypatch.setattr(ScaledPeople, "__getitem__", noted)
    return sizes


def test_batches_are_made_when_they_are_asked_for(both, asked):
    plan, whole, lazy = both
    n, size = len(plan.probe.ids), plan.config.training.batch_size
    assert n % size  # the last one is smaller
    assert (len(whole.held_out), len(lazy.held_out)) == (1, -(-n // size))
    assert not asked
    batches = [*lazy.held_out]
    assert [len(x.inputs) for x in batches] == asked
    assert max(asked) == size
    (all_at_once,) = whole.held_out
    together = torch.cat([x.inputs for x in batches])
    torch.testing.assert_close(together, all_at_once.inputs, rtol=0, atol=0)
    assert [who for x in batches for who in x.subjects] == list(all_at_once.subjects)
    labels = [label for x in batches for label in x.groups["group"]]
    assert labels == list(all_at_once.groups["group"])
    assert len(lazy.held_out[1:]) == len(batches) - 1


def test_mixtures_and_gram_matrices_are_summed_over_unequal_blocks(both, asked):
    plan, whole, lazy = both
    n = len(plan.probe.ids)
    assert n % 7
    people = whole.held_out.inputs
    labels = list(plan.labels(plan.cohort.rows(plan.probe.ids))["group"])
    mixing = torch.from_numpy(surrogate_mixing(labels, np.random.default_rng(3)))
    expected = (mixing @ people.double().flatten(1)).view(people.shape).float()
    mixed = MixedPeople(lazy.held_out.inputs, mixing)
    assert len(mixed) == n
    index = torch.tensor([n - 1, 0, 5, 8])  # of three blocks
    torch.testing.assert_close(mixed[index], expected[index])
    at_once = whole.held_out.mixed(mixing).inputs
    in_parts = torch.cat([x.inputs for x in lazy.held_out.mixed(mixing)])
    torch.testing.assert_close(in_parts, at_once)
    flat = people.double().flatten(1)
    torch.testing.assert_close(gram_of(lazy.held_out.inputs), flat @ flat.mT)
    rows = [one.held_out.compressed() for one in (whole, lazy)]
    torch.testing.assert_close(*(x @ x.mT for x in rows))
    assert max(asked) == 7


def test_blocks_of_zeros_are_not_read(both, asked):
    lazy = both[2]
    n = len(lazy.held_out.inputs)
    mixed = MixedPeople(lazy.held_out.inputs, torch.eye(n, dtype=torch.float64))
    mixed[torch.tensor([0, 1, 6])]
    mixed[torch.tensor([2])]  # of the block just formed
    assert asked == [1, 7]


def test_controls_of_inputs_in_blocks_are_those_of_all_at_once(both, asked):
    plan, whole, lazy = both
    nothing = no_outcome("none")
    rows = []
    for one in (whole, lazy):
        controls = Controls(plan, [one], replace(nothing), nothing)
        surrogates = list(controls._surrogate_rows())
        rows.append([*surrogates, *controls._input_rows()])
    names = ["input-surrogate", "input-pooled", "input", "input-centred"]
    assert [row.name for row in rows[1]] == names
    for first, second in zip(*rows, strict=True):
        a, b = first.outcome, second.outcome
        np.testing.assert_allclose(a.values, b.values, rtol=1e-3, atol=2e-3)
    for first, second in zip(rows[0][2:], rows[1][2:], strict=True):
        np.testing.assert_allclose(
            first.outcome.values, second.outcome.values, rtol=1e-8, atol=1e-10
        )
    assert max(asked) <= plan.config.training.batch_size


def test_without_a_probe_nobody_is_held_out():
    plan = make_plan(toy("volume"), Path())
    plan = replace(plan, probe=None)
    fold = FoldRun(plan, 0, torch.device("cpu"))
    assert fold.held_out is None
    assert fold.probe(0) is None
    assert fold.predict_probe() is None
