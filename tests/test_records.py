from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.records import (
    DEGENERATE,
    QUANTITIES,
    SCALES,
    CohortSummary,
    Divergence,
    EpochRecord,
    Spectrum,
    as_columns,
    check_quantities,
)
from tests.reference import reference_singular_values


def spectrum(values=(3.0, 2.0), **changes) -> Spectrum:
    plain = {
        "layer": "fc1",
        "quantity": "gradient",
        "grouping": "sex",
        "group": "f",
        "values": np.array(values, dtype=np.float64),
        "samples": 4,
        "rows": 12,
        "batch_samples": 10,
        "subjects": 3,
        "loss_scale": 0.1,
        "shape": (5, 2),
        "route": "gram",
        "floor": 1e-9,
        "below_floor": 0,
        "status": "ok",
        "summaries": {"nuclear_norm": 5.0, "stable_rank": 1.4},
    }
    return Spectrum(**(plain | changes))


def divergence(**changes) -> Divergence:
    plain = {item.name: 0.5 for item in fields(Divergence)}
    return Divergence(**(plain | {"layer": "fc1", "quantity": "gradient"} | changes))


def test_quantities_in_their_fixed_order():
    assert check_quantities(["adjoint", "gradient", "adjoint"]) == (
        "gradient", "adjoint",
    )  # fmt: skip
    assert check_quantities(iter(QUANTITIES)) == QUANTITIES


@pytest.mark.parametrize(
    "asked", [[], ["gradients"], ["gradient", "weight"], "gradient"]
)
def test_other_quantities_are_refused(asked):
    with pytest.raises(InputError, match="name at least one of gradient, activation"):
        check_quantities(asked)


class Batch:
    """A linear layer over positions, watched under a loss of one reduction."""

    def __init__(self, reduction: str) -> None:
        torch.manual_seed(3)
        self.n, self.positions, d_in, d_out = 10, 3, 5, 4
        self.group = [0, 3, 4, 8]
        self.x = torch.randn(self.n, self.positions, d_in, dtype=torch.float64)
        weight = torch.randn(d_in, d_out, dtype=torch.float64, requires_grad=True)
        z = self.x @ weight
        z.retain_grad()
        losses = z.square().sum(2).mean(1)  # one per sample
        (losses.mean() if reduction == "mean" else losses.sum()).backward()
        assert z.grad is not None
        assert weight.grad is not None
        self.delta, self.weight_gradient = z.grad, weight.grad

    def matrix(self, quantity: str) -> torch.Tensor:
        a = self.x[self.group].flatten(0, 1)
        d = self.delta[self.group].flatten(0, 1)
        return {"gradient": a.mT @ d, "activation": a, "adjoint": d}[quantity]

    def record(self, quantity: str, loss_scale: float) -> Spectrum:
        return spectrum(
            reference_singular_values(self.matrix(quantity)),
            quantity=quantity,
            samples=len(self.group),
            rows=len(self.group) * self.positions,
            batch_samples=self.n,
            loss_scale=loss_scale,
        )


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_scales_against_real_losses(quantity):
    mean, summed = Batch("mean"), Batch("sum")
    of_mean, of_sum = mean.record(quantity, 1 / 10), summed.record(quantity, 1.0)
    for batch, record in ((mean, of_mean), (summed, of_sum)):
        np.testing.assert_array_equal(record.scaled("batch"), record.values)
        np.testing.assert_allclose(
            record.scaled("batch"), reference_singular_values(batch.matrix(quantity))
        )
        # `sum`: what the summed loss would have given, whatever was trained on.
        np.testing.assert_allclose(record.scaled("sum"), of_sum.values, rtol=1e-12)
        # `mean`: the group as a batch of its own, its mean loss; rows per row.
        size = {"gradient": 4, "activation": 12**0.5, "adjoint": 12**0.5}[quantity]
        np.testing.assert_allclose(
            record.scaled("mean"), of_sum.values / size, rtol=1e-12
        )


def test_mean_scale_of_a_gradient_is_that_of_the_group_trained_alone():
    batch = Batch("sum")
    alone = batch.x[batch.group]
    weight = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    # Δ does not depend on who else is in the batch, so it is passed as it was.
    per_sample = (alone @ weight * batch.delta[batch.group]).sum((1, 2))
    per_sample.mean().backward()
    assert weight.grad is not None
    np.testing.assert_allclose(
        Batch("mean").record("gradient", 1 / 10).scaled("mean"),
        reference_singular_values(weight.grad),
        rtol=1e-12,
    )


def test_mean_scale_of_rows_is_the_root_of_their_second_moment():
    batch = Batch("mean")
    rows = batch.matrix("activation")
    moments = torch.linalg.eigvalsh(rows.mT @ rows / len(rows)).flip(0)
    np.testing.assert_allclose(
        batch.record("activation", 1 / 10).scaled("mean"), moments.sqrt(), rtol=1e-9
    )


def test_an_unknown_scale():
    with pytest.raises(InputError, match=f"scale='raw'.*{', '.join(SCALES)}"):
        spectrum().scaled("raw")


@pytest.mark.parametrize(
    ("values", "degenerate"),
    [
        ((), True),
        ((2.0,), True),
        ((0.0, 0.0), True),
        ((2.0, 0.0, 0.0), True),
        ((2.0, 2.0 * DEGENERATE * 0.9), True),
        ((2.0, 2.0 * DEGENERATE * 1.1), False),
        ((1e-200, 1e-201), False),
        ((np.nan, np.nan), True),
    ],
)
def test_degenerate(values, degenerate):
    assert spectrum(values).degenerate is degenerate


def test_nothing_can_be_changed():
    summary = CohortSummary("00", "here", 3, {"a": 3})
    epoch = EpochRecord(0, "train", (spectrum(),))
    for record, name in (
        (spectrum(), "layer"), (divergence(), "p"), (epoch, "epoch"), (summary, "n"),
    ):  # fmt: skip
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, 1)


def test_records_are_told_apart_by_identity_where_they_hold_arrays():
    assert spectrum() != spectrum()
    assert len({spectrum(), spectrum()}) == 2
    assert divergence() == divergence()


def test_an_epoch_counts_what_is_marked():
    statuses = ("ok", "non-finite", "ok", "not converged")
    epoch = EpochRecord(2, "probe", tuple(spectrum(status=x) for x in statuses))
    assert epoch.nonfinite == 2
    assert (epoch.fold, epoch.divergences) == (0, ())
    assert EpochRecord(0, "train", ()).nonfinite == 0


def test_columns_of_spectra_spread_their_summaries():
    found = as_columns(iter([spectrum(group="f"), spectrum(group="m", step=4)]))
    names = [item.name for item in fields(Spectrum) if item.name != "summaries"]
    assert list(found) == [*names, "nuclear_norm", "stable_rank"]
    assert found["group"] == ["f", "m"]
    assert found["step"] == [0, 4]
    assert found["stable_rank"] == [1.4, 1.4]


def test_columns_of_divergences_and_of_nothing():
    found = as_columns([divergence(p=0.1), divergence(p=0.2)])
    assert list(found) == [item.name for item in fields(Divergence)]
    assert found["p"] == [0.1, 0.2]
    assert as_columns([]) == {}


def test_divergences_have_the_columns_that_others_rely_on():
    names = (
        "layer quantity grouping group_a group_b divergence value null_mean null_sd "
        "excess z p p_max n_a n_b subjects_a subjects_b source null strata valid_for "
        "reason"
    )
    assert [item.name for item in fields(Divergence)] == names.split()
