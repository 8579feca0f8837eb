"""Steps of training against PyTorch's own schedules and losses written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops.config import TrainingConfig, validate
from spectral_mlops.errors import InputError
from spectral_mlops.models import build_model
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.fold import FoldRun, even_order
from spectral_mlops.training.optimisation import (
    Optimisation,
    check_precision,
    class_weights,
    rate_factor,
)
from tests.training.toys import toy

CPU = torch.device("cpu")
TARGETS = np.array([0, 1, 1, 1, 0, 1, 2])


def optimisation(model, **settings):
    config = TrainingConfig(learning_rate=0.1, weight_decay=0, **settings)
    return Optimisation(model, config, CPU, TARGETS, 3)


# -- rates --------------------------------------------------------------------------


def reference_rates(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (
            {"schedule": "cosine"},
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
        ),
        (
            {"schedule": "step", "step_epochs": 2, "step_factor": 0.3},
            lambda o: torch.optim.lr_scheduler.StepLR(o, 8, gamma=0.3),
        ),
        (
            {"schedule": "one-cycle"},
            lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, 1.0, total_steps=21, cycle_momentum=False
            ),
        ),
        (
            {"schedule": "one-cycle", "warmup": 0.6},
            lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, 1.0, total_steps=21, pct_start=0.6, cycle_momentum=False
            ),
        ),
    ],
)
def test_rates_are_those_of_pytorch(settings, make):
    per_epoch, epochs = (4, 5) if settings.get("schedule") != "one-cycle" else (7, 3)
    config = TrainingConfig(epochs=epochs, **settings)
    steps = per_epoch * epochs
    found = [rate_factor(config, step, per_epoch) for step in range(steps)]
    np.testing.assert_allclose(found, reference_rates(make, steps), atol=1e-12)


def test_a_warm_up_rises_then_the_schedule_begins():
    config = TrainingConfig(epochs=10, schedule="cosine", warmup=0.4)
    found = [rate_factor(config, step, 1) for step in range(10)]
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0])
    after = TrainingConfig(epochs=6, schedule="cosine")
    expected = [rate_factor(after, step, 1) for step in range(6)]
    np.testing.assert_allclose(found[4:], expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.99])
def test_one_step_in_all(schedule, warmup):
    config = TrainingConfig(epochs=1, schedule=schedule, warmup=warmup)
    assert 0 < rate_factor(config, 0, 1) <= 1


# -- the loss -----------------------------------------------------------------------


def test_balanced_classes_weigh_the_same_and_people_one_on_average():
    weights = class_weights(TrainingConfig(class_weights="balanced"), TARGETS, 3)
    totals = [weights[k] * np.sum(k == TARGETS) for k in range(3)]
    np.testing.assert_allclose(totals, 7 / 3)
    np.testing.assert_allclose(weights[TARGETS].mean(), 1)


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_that_of_the_whole_batch(weighting, accumulate):
    """Whatever the batches, and the last step is smaller."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 4), torch.from_numpy(TARGETS)
    model, whole = nn.Linear(4, 3), nn.Linear(4, 3)
    whole.load_state_dict(model.state_dict())
    how = optimisation(
        model, optimizer="sgd", class_weights=weighting, accumulate=accumulate
    )
    order = list(torch.arange(7).split(2))
    masses = how.masses([TARGETS[batch] for batch in order])
    weights = torch.from_numpy(
        class_weights(TrainingConfig(class_weights=weighting), TARGETS, 3)
    ).float()
    for number, (batch, mass) in enumerate(zip(order, masses, strict=True)):
        how.begin(0, number, len(order))
        how.backward(how.loss(model(x[batch]), y[batch], mass))
        how.end(number, len(order))
    for i in range(0, len(order), accumulate):
        together = torch.cat(order[i : i + accumulate])
        losses = cross_entropy(whole(x[together]), y[together], reduction="none")
        each = weights[y[together]]
        whole.zero_grad()
        ((each * losses).sum() / each.sum()).backward()
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(model.state_dict(), whole.state_dict())


def test_a_long_gradient_is_clipped():
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    how = optimisation(model, optimizer="sgd", clip_norm=0.02)
    how.begin(0, 0, 1)
    how.backward(100 * how.loss(model(torch.randn(5, 4)), torch.arange(5) % 3, 5))
    how.end(0, 1)
    after = (model.weight, model.bias)
    moved = sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True))
    torch.testing.assert_close(moved.sqrt(), torch.tensor(0.1 * 0.02))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"momentum": 0.9}, "momentum=0.9 is of optimizer='sgd'"),
        ({"schedule": "linear"}, "schedule"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"warmup": 1.0}, "warmup"),
        ({"patience": 0}, "patience"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        validate(TrainingConfig, settings, "run.toml")


def test_float16_is_refused_before_anything_is_written(tmp_path):
    plan = make_plan(toy(training={"amp": "float16"}, model={"name": "lstm"}), Path())
    with MemoryTracker() as tracker, pytest.raises(InputError, match="--device cuda"):
        run(plan, tracker, tmp_path / "run", name="x")
    assert not (tmp_path / "run").exists()
    check_precision(plan.config.training, "cuda:0")


# -- in a fold ----------------------------------------------------------------------

LSTM = {"name": "lstm", "settings": {"width": 4, "dropout": 0.0}}


def fold_of(model=LSTM, modality="timecourses", **training):
    plan = make_plan(toy(modality, model=model, training=training), Path())
    return FoldRun(plan, 0, CPU)


@pytest.mark.parametrize(
    "training",
    [{"class_weights": "balanced"}, {"accumulate": 2, "class_weights": "balanced"}],
)
def test_the_monitor_is_told_the_scale_of_the_loss(training):
    """One over it, added up over batches, is the weight of all people."""
    settings = {"epochs": 1, "batch_size": 9, "learning_rate": 1e-30, **training}
    plan = make_plan(toy(model=LSTM, training=settings), Path())
    rare = (np.arange(len(plan.cohort.people)) % 5 == 0).astype(np.int64)
    fold = FoldRun(plan, 0, CPU, targets=rare)
    seen, loss = fold.train_epoch(0)
    count = np.bincount(fold.learned)
    weights = len(fold.learned) / (2 * count)
    losses = cross_entropy(fold.model(fold.inputs), fold.targets, reduction="none")
    each = torch.from_numpy(weights[fold.learned]).float()
    expected = ((each * losses).sum() / each.sum()).item()
    assert len(set(weights)) == seen.batches == 2
    assert loss == pytest.approx(expected, rel=1e-5)
    total = 0.0
    for batch in range(seen.batches):
        record = next(
            s
            for s in seen.spectra
            if s.layer == "output"
            and s.quantity == "gradient"
            and s.step == batch
            and s.group == "all"
        )
        total += 1 / record.loss_scale
    mass = float(each.sum())
    parts = 2 if training.get("accumulate") else 1
    assert total == pytest.approx(mass * parts, rel=1e-5)


def test_reduced_precision_is_close_and_its_gap_allowed():
    exact, coarse = fold_of(epochs=1), fold_of(epochs=1, amp="bfloat16")
    losses = [one.train_epoch(0)[1] for one in (exact, coarse)]
    assert losses[0] == pytest.approx(losses[1], abs=0.03)
    assert losses[0] != losses[1]
    assert max(coarse.monitor.additivity.values()) < 1e-2
    assert coarse.model.output.weight.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_float16_with_a_scaled_loss():
    plan = make_plan(toy(model=LSTM, training={"amp": "float16"}), Path())
    fold = FoldRun(plan, 0, torch.device("cuda"))
    losses = [fold.train_epoch(epoch)[1] for epoch in range(2)]
    exact = fold_of(epochs=2)
    expected = [exact.train_epoch(epoch)[1] for epoch in range(2)]
    assert losses == pytest.approx(expected, abs=0.05)
    assert max(fold.monitor.additivity.values()) < 1e-2


def test_a_last_batch_of_one_joins_the_one_before_under_batch_statistics():
    model = {"name": "mlp", "settings": {"hidden": [4], "norm": "batch"}}
    fold = fold_of(model, "fnc", epochs=1)
    people = len(fold.train_rows)
    sizes = {  # of any remainder the batches hold everyone once
        size: [len(b) for b in split_with(fold, size)] for size in range(2, people)
    }
    assert all(sum(found) == people and min(found) > 1 for found in sizes.values())
    assert any(people % size == 1 for size in sizes)
    split_with(fold, people - 1)
    assert np.isfinite(fold.train_epoch(0)[1])
    assert max(fold.monitor.additivity.values()) < 1e-5


def split_with(fold, size):
    config = fold.plan.config.training.model_copy(update={"batch_size": size})
    whole = fold.plan.config.model_copy(update={"training": config})
    object.__setattr__(fold.plan, "config", whole)
    return fold._batches(torch.arange(len(fold.train_rows)))


# -- early stopping -----------------------------------------------------------------


def test_a_network_stops_by_itself_and_the_run_with_the_last(tmp_path):
    settings = {"epochs": 40, "learning_rate": 0.05, "patience": 2}
    plan = make_plan(toy(training=settings, model=LSTM), Path())
    expected = []
    for number in range(2):
        fold = FoldRun(plan, number, CPU)
        best, at, epoch = np.inf, -1, -1
        while epoch - at < 2:
            epoch += 1
            fold.train_epoch(epoch)
            loss = fold._predict(fold.validation_rows, fold.validation_inputs).loss
            if loss < best:
                best, at = loss, epoch
        expected.append((at, epoch))
    with MemoryTracker() as tracker:
        result = run(plan, tracker, tmp_path / "run", name="x", figures=False).result
    ran = max(epoch for _, epoch in expected) + 1
    assert result.best_epochs == [at for at, _ in expected]
    assert result.metrics["final/epochs"] == ran < 40
    assert {record.epoch for record in result.last_epoch} == {ran - 1}
    assert np.isfinite(result.metrics["final/divergence_gradient"])


def test_default_settings_leave_the_training_as_it_was():
    fold = fold_of(epochs=2, batch_size=10)
    model = build_model(fold.plan.config.model, fold.scaler.inputs, 2)
    model.load_state_dict(fold.initial_weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
    for epoch in range(2):
        fold.train_epoch(epoch)
        fold._seed(epoch)
        labels = fold.plan.labels(fold.train_rows)["group"]
        for batch in even_order(labels).split(10):
            optimizer.zero_grad()
            cross_entropy(model(fold.inputs[batch]), fold.targets[batch]).backward()
            optimizer.step()
    for name, weight in fold.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
