"""A batch put together from its parts is the batch, for every kind of layer."""

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import capture
from spectral_mlops.hooks.influence import group_influence
from spectral_mlops.hooks.shares import Share
from tests.cases import CASES, N, build
from tests.hooks.conftest import LABELS, loss_of

WHOLE = [name for name in CASES if not build(name).mixes]
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]


def how(case):
    return {"batch_dim": case.batch_dim, "loss_scale": 0.5}


def one_of(case, i):
    """Watch a single sample, as a share of the batch."""
    inputs = [x.narrow(case.batch_dim if x.ndim > 1 else 0, i, 1) for x in case.inputs]
    with capture(
        case.model, LABELS[i : i + 1], subjects=[str(i)], **how(case)
    ) as captured:
        loss_of(case.model(*inputs), None, case.batch_dim, sample=i).backward()
    return captured


def whole(case):
    with capture(case.model, LABELS, subjects=range(N), **how(case)) as captured:
        loss_of(case.model(*case.inputs), None, case.batch_dim).backward()
    return captured


@pytest.mark.parametrize("name", WHOLE)
def test_parts_put_together_are_the_batch(name):
    case = build(name)
    expected = whole(case)
    together = one_of(case, 0)
    for i in range(1, N):
        written = one_of(case, i).share().to_bytes()
        together.take_in(Share.from_bytes(written, CPU))
    gradients, other = together.group_gradients(), expected.group_gradients()
    assert gradients.keys() == other.keys()
    for group, of in other.items():
        for parameter, gradient in of.items():
            size = max(other[g][parameter].norm() for g in other)
            found = gradients[group].get(parameter, torch.zeros_like(gradient))
            assert (found - gradient).norm() <= 1e-10 * size, (group, parameter)
    assert together.coverage() == expected.coverage()
    assert max(together.additivity_error().values(), default=0.0) < 1e-10
    spectra = {(s.layer, s.quantity, s.group): s for s in together.spectra()}
    for s in expected.spectra():
        one = spectra.pop((s.layer, s.quantity, s.group))
        for what in ("samples", "rows", "batch_samples", "subjects", "loss_scale"):
            assert getattr(one, what) == getattr(s, what), what
        top = np.max(s.values, initial=0.0)
        np.testing.assert_allclose(one.values, s.values, rtol=1e-7, atol=1e-7 * top)
    assert not spectra
    for a, b in zip(
        group_influence(together, 0.1), group_influence(expected, 0.1), strict=True
    ):
        assert (a.layer, a.group_a, a.group_b) == (b.layer, b.group_a, b.group_b)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-8, atol=1e-12)


def test_an_empty_part_and_a_group_of_one_part_only():
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3).double()
    labels = ["a", "a", "b", "b", "b"]
    with capture(model, labels, loss_scale=1.0) as expected:
        model(x).square().sum().backward()
    with capture(model, labels[:2], loss_scale=1.0) as first:
        model(x[:2]).square().sum().backward()
    with capture(model, labels[2:], loss_scale=1.0) as second:
        model(x[2:]).square().sum().backward()
    with capture(model, [], loss_scale=1.0) as empty:
        pass
    first.take_in(empty.share())
    first.take_in(second.share())
    found, whole = first.group_gradients(), expected.group_gradients()
    assert found.keys() == whole.keys() == {"a", "b"}
    for group in "ab":
        torch.testing.assert_close(found[group], whole[group])
