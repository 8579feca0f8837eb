import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from spectral_mlops import capture, leading_directions
from spectral_mlops.errors import InputError
from tests.reference import as_array


def watched(model, x, groups, y=None):
    with capture(model, groups) as captured:
        out = model(x).flatten(1)
        target = torch.arange(len(x)) % out.shape[1] if y is None else y
        cross_entropy(out, target).backward()
    return captured


def dense(matrix, k):
    """Leading left singular vectors by an SVD of the formed matrix."""
    u, s, _ = np.linalg.svd(as_array(matrix))
    return u[:, :k].T, s[:k], s[:k] ** 2 / (s**2).sum()


def check(found, matrix, k):
    vectors, values, shares = dense(matrix, k)
    assert [d.index for d in found] == list(range(k))
    assert [d.value for d in found] == pytest.approx(list(values), rel=1e-6)
    assert [d.share for d in found] == pytest.approx(list(shares), rel=1e-6)
    for direction, vector in zip(found, vectors, strict=True):
        assert abs(direction.vector @ vector) == pytest.approx(1.0, abs=1e-6)
        assert direction.vector[np.abs(direction.vector).argmax()] > 0
        assert direction.status == "ok"


def of(found, quantity, group):
    return [d for d in found if (d.quantity, d.group) == (quantity, group)]


@pytest.mark.parametrize(("d_in", "d_out", "n"), [(17, 5, 9), (4, 11, 9), (6, 3, 13)])
def test_linear_against_dense(d_in, d_out, n):
    torch.manual_seed(0)
    model, x = nn.Linear(d_in, d_out).double(), torch.randn(n, d_in).double()
    groups = ["a" if i % 3 else "b" for i in range(n)]
    captured = watched(model, x, groups)
    found = leading_directions(captured, k=2, epoch=4, fold=1)
    assert {d.group for d in found} == {"all", "a", "b"}
    gradients = captured.group_gradients()
    whole = gradients["a"]["weight"] + gradients["b"]["weight"]
    gradients["all"] = {"weight": whole}
    for group in ("all", "a", "b"):
        at = [i for i in range(n) if group in ("all", groups[i])]
        check(of(found, "gradient", group), gradients[group]["weight"].T, 2)
        check(of(found, "activation", group), x[at].T, 2)
    assert {(d.epoch, d.source, d.fold, d.layer) for d in found} == {
        (4, "train", 1, "")
    }
    assert {d.samples for d in found if d.group == "b"} == {groups.count("b")}


def test_the_first_layer_unless_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    captured = watched(model, torch.randn(5, 6), list("aabba"))
    assert {d.layer for d in leading_directions(captured)} == {"0"}
    second = leading_directions(captured, "2", quantities=["gradient"])
    assert {(d.layer, d.quantity, d.shape) for d in second} == {("2", "gradient", (4,))}


def test_positions_are_rows_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    captured = watched(model.double(), torch.randn(5, 3, 6).double(), list("aabba"))
    found = leading_directions(captured, k=3)
    check(of(found, "gradient", "b"), captured.group_gradients()["b"]["0.weight"].T, 3)


def test_a_group_of_one_sample_has_one_direction():
    model, x = nn.Linear(5, 3), torch.randn(4, 5, generator=torch.manual_seed(1))
    found = leading_directions(watched(model, x, list("aaba")))
    for quantity in ("gradient", "activation"):
        (only,) = of(found, quantity, "b")
        expected = x[2].double() / x[2].double().norm()
        assert abs(only.vector @ expected.numpy()) == pytest.approx(1.0, abs=1e-6)
        assert only.share == pytest.approx(1.0)


def test_equal_singular_values_are_compared_as_a_subspace():
    """Rows of two groups of equal length, at right angles: any basis will do."""
    model, x = nn.Linear(6, 4), torch.zeros(3, 6)
    x[0, 1] = x[1, 4] = 2.0
    x[2, 0] = 1.0
    found = of(
        leading_directions(watched(model, x, list("aab")), k=2), "activation", "a"
    )
    assert [d.value for d in found] == pytest.approx([2.0, 2.0])
    span = np.stack([d.vector for d in found]).astype(float)
    projector = span.T @ span
    expected = np.zeros((6, 6))
    expected[1, 1] = expected[4, 4] = 1
    np.testing.assert_allclose(projector, expected, atol=1e-6)


def test_rows_that_are_not_finite_are_marked():
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    x[2, 1] = math.nan
    found = leading_directions(watched(model, x, list("aaba")), k=2)
    broken = [d for d in found if d.group in ("b", "all")]
    assert {d.status for d in broken} == {"non-finite"}
    assert len(of(found, "gradient", "b")) == 2
    assert all(np.isnan(d.vector).all() and math.isnan(d.value) for d in broken)
    assert {d.status for d in found if d.group == "a"} == {"ok"}


def test_a_zero_group_has_no_direction():
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    x[2] = 0.0
    found = leading_directions(watched(model, x, list("aaba")))
    assert not [d for d in found if d.group == "b"]
    assert of(found, "gradient", "a")


def test_several_groupings():
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    named = {"dx": list("aaba"), "sex": list("mfmf")}
    found = leading_directions(watched(model, x, named))
    assert {(d.grouping, d.group) for d in found} == {
        ("all", "all"), ("dx", "a"), ("dx", "b"), ("sex", "f"), ("sex", "m")
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_have_kernel_shaped_patterns(groups):
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=groups).double()
    x = torch.randn(5, 4, 7, 6).double()
    captured = watched(model, x, list("aabba"))
    found = leading_directions(captured, k=3)
    assert {d.shape for d in found} == {(4, 3, 2)}
    assert found[0].pattern.shape == (4, 3, 2)
    weight = captured.group_gradients()["b"]["weight"]  # [6, 4/groups, 3, 2]
    blocks = [part.flatten(1).T for part in weight.chunk(groups)]
    check(of(found, "gradient", "b"), torch.block_diag(*blocks), 3)
    patches = F.unfold(x[2:4], (3, 2), stride=2, padding=1)  # [2, 4·6, P]
    rows = [part.movedim(1, 2).flatten(0, 1) for part in patches.chunk(groups, dim=1)]
    check(of(found, "activation", "b"), torch.block_diag(*rows).T, 3)


def test_an_embedding_has_those_of_its_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    captured = watched(model, torch.randint(9, (5, 3)), list("aabba"))
    found = leading_directions(captured)
    assert {d.quantity for d in found} == {"gradient"}
    gradient = captured.group_gradients()["a"]["0.weight"]
    check(of(found, "gradient", "a"), gradient, 3)


def test_a_wide_layer_is_not_decomposed_at_its_width():
    """A d_in × d_in matrix of this layer would take 80 GB."""
    model, x = nn.Linear(100_000, 3), torch.randn(6, 100_000)
    found = leading_directions(watched(model, x, list("aabbab")), k=1)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("more", "word"), [({"k": 0}, "k=0"), ({"quantities": ["adjoint"]}, "adjoint")]
)
def test_what_is_refused(more, word):
    captured = watched(nn.Linear(3, 2), torch.randn(4, 3), list("aabb"))
    with pytest.raises(InputError, match=word):
        leading_directions(captured, **more)


def test_a_model_without_rows_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(3, 2))

        def forward(self, x):
            return x @ self.matrix

    captured = watched(Bare(), torch.randn(4, 3), list("aabb"))
    with pytest.raises(InputError, match="no factors"):
        leading_directions(captured)
