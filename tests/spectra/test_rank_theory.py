"""Rank bounds of gradients (Baker et al., 2402.06751), attained, in small networks."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors
from spectral_mlops.spectra.summaries import effective_rank, numerical_rank
from tests.spectra.engine import spectra

DOUBLE = torch.float64


def values_of(a: Tensor, d: Tensor, quantity: str) -> Tensor:
    layer = LayerFactors("layer", a.unsqueeze(1), d.unsqueeze(1))
    (one,) = spectra([layer], Groups(len(a), [None]), [quantity]).values()
    return torch.from_numpy(one.values)


def rank(rows: Tensor) -> int:
    return int(values_of(rows, rows, "activation").count_nonzero())


def gradient_rank(a: Tensor, d: Tensor) -> int:
    return int(values_of(a, d, "gradient").count_nonzero())


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def of_rank(n: int, d: int, rank: int) -> Tensor:
    return normal(n, rank, seed=1) @ normal(rank, d, seed=2)


def factors(
    x: Tensor, widths: list[int], activation: nn.Module, loss: str, bias: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Rows of A and Δ of every layer of a small network, by autograd alone."""
    inputs, outputs, a = [], [], x
    for i, (d_in, d_out) in enumerate(pairwise(widths)):
        z = a @ (normal(d_in, d_out, seed=10 + i) / d_in**0.5)
        if bias:
            z = z + normal(d_out, seed=50 + i)
        z.requires_grad_() if not z.requires_grad else z.retain_grad()
        inputs.append(a)
        outputs.append(z)
        a = activation(z)
    if loss == "cross_entropy":
        target = torch.arange(len(x)) % widths[-1]
        value = nn.functional.cross_entropy(outputs[-1], target)
    else:
        value = (outputs[-1] - normal(len(x), widths[-1], seed=99)).square().sum()
    value.backward()
    return [
        (a.detach(), z.grad) for a, z in zip(inputs, outputs, strict=True)
        if z.grad is not None
    ]  # fmt: skip


@pytest.mark.parametrize("group", [3, 11, 90])
def test_t1_any_network_is_bounded_by_its_factors_and_widths(group):
    x = of_rank(128, 12, 7)
    for a, d in factors(x, [12, 9, 20, 6], nn.Tanh(), "squares"):
        a_g, d_g = a[:group], d[:group]
        found = gradient_rank(a_g, d_g)
        assert found <= min(group, rank(a_g), rank(d_g), a.shape[1], d.shape[1])
        formed = torch.linalg.matrix_rank(a_g.mT @ d_g, rtol=1e-7)
        assert found == int(formed)
    first = factors(x, [12, 9, 20, 6], nn.Tanh(), "squares")[0]
    assert gradient_rank(first[0][:group], first[1][:group]) == min(group, 7)


@pytest.mark.parametrize(
    ("n", "source", "acts", "adjoints", "gradients"),
    [
        (128, 40, [40, 32, 5, 5, 5], [5, 5, 20, 20, 20], [5] * 5),
        (128, 3, [3] * 5, [5, 5, 20, 20, 20], [3] * 5),
        (4, 40, [4] * 5, [4] * 5, [4] * 5),
    ],
)
def test_t2_a_linear_network_with_a_bottleneck(n, source, acts, adjoints, gradients):
    x = of_rank(n, 40, source)
    found = factors(x, [40, 32, 5, 32, 32, 20], nn.Identity(), "squares")
    assert [rank(a) for a, _ in found] == acts
    assert [rank(d) for _, d in found] == adjoints
    assert [gradient_rank(a, d) for a, d in found] == gradients


def test_t2_biases_add_one_to_the_rank_in_total():
    x = of_rank(60, 15, 2)
    found = factors(x, [15, 12, 14, 9], nn.Identity(), "squares", bias=True)
    assert [rank(a) for a, _ in found] == [2, 3, 3]


@pytest.mark.parametrize(("n", "classes"), [(50, 10), (50, 2), (5, 10)])
def test_t3_softmax_takes_one_from_the_rank(n, classes):
    a, d = factors(normal(n, 16), [16, 12, classes], nn.Tanh(), "cross_entropy")[-1]
    assert rank(d) == gradient_rank(a, d) == min(n, classes - 1)


def recurrent(
    n: int, steps: int, hidden: int, outputs: int, activation: nn.Module
) -> tuple[Tensor, Tensor]:
    """Rows of the recurrent matrix, many to one: h_{t-1} and Δ_t for t = 2..T."""
    w, u = normal(6, hidden, seed=1) / 6**0.5, normal(hidden, hidden, seed=2)
    u = torch.linalg.qr(u).Q
    h = torch.zeros(n, hidden, dtype=DOUBLE)
    before, sums = [], []
    for t in range(steps):
        z = normal(n, 6, seed=20 + t) @ w + h @ u
        z.requires_grad_() if not z.requires_grad else z.retain_grad()
        before.append(h.detach())
        sums.append(z)
        h = activation(z)
    (h @ normal(hidden, outputs, seed=3)).square().sum().backward()
    deltas = [z.grad for z in sums if z.grad is not None]
    return torch.cat(before), torch.cat(deltas)


@pytest.mark.parametrize(
    ("n", "steps", "hidden", "expected"), [(3, 1, 10, 0), (3, 2, 10, 3), (3, 4, 10, 9)]
)
def test_t4_a_truncated_recurrence_bounds_its_matrix(n, steps, hidden, expected):
    h, delta = recurrent(n, steps, hidden, 5, nn.Tanh())
    assert gradient_rank(h, delta) == expected


def test_t4_a_linear_recurrence_is_bounded_by_its_output():
    h, delta = recurrent(8, 4, 24, 3, nn.Identity())
    assert gradient_rank(h, delta) == (4 - 1) * 3
    h, delta = recurrent(8, 4, 24, 3, nn.Tanh())
    assert gradient_rank(h, delta) == 24


@pytest.mark.parametrize(("stride", "expected"), [(1, 16), (2, 4), (4, 1)])
def test_t5_a_convolution_is_bounded_by_its_positions(stride, expected):
    x = normal(1, 5, 6, 6)
    weight = normal(20, 5, 3, 3, seed=1).requires_grad_()
    z = nn.functional.conv2d(x, weight, stride=stride)
    z.retain_grad()
    (z - normal(*z.shape, seed=2)).square().sum().backward()
    assert z.grad is not None
    assert weight.grad is not None
    patches = nn.functional.unfold(x, 3, stride=stride).mT.flatten(0, 1)
    delta = z.grad.flatten(2).mT.flatten(0, 1)
    torch.testing.assert_close(patches.mT @ delta, weight.grad.flatten(1).mT)
    assert gradient_rank(patches, delta) == expected


def test_t6_a_leaky_slope_fills_the_rank_smoothly():
    z = of_rank(64, 64, 5)
    ranks = []
    for slope in (1.0, 0.9, 0.5, 0.1):
        rows = nn.functional.leaky_relu(z, slope)
        values = values_of(rows, rows, "activation")
        bound = (1 - slope) * torch.linalg.matrix_norm(z.clamp_max(0.0), ord=2)
        assert values[5] <= bound + 1e-9
        assert numerical_rank(values) == (5 if slope == 1 else 64)
        ranks.append(float(effective_rank(values)))
    assert ranks == sorted(ranks)
