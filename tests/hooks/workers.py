"""What the processes of a distributed test run; started by `torchrun`."""

import copy
import os
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from spectral_mlops import SpectralMonitor, capture
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.monitor import NO_NULL, EpochSpectra
from spectral_mlops.records import Spectrum
from tests.hooks.conftest import hooks_on
from tests.networks import Gain

LABELS = ["b", "a", "b", "c", "a", "b", "b"]
WHO = ["p0", "p1", "p0", "p2", "p1", "p3", "p0"]  # p0 and p1 are on both
SHARES = (slice(0, 4), slice(4, 7))  # the second process never sees group c
COUNTS = ("samples", "rows", "batch_samples", "subjects", "status", "shape", "route")


class Network(nn.Module):
    """Layers with row rules, and one that is replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 2)
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.gain = Gain(4)
        self.output = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu_(self.conv(x)).transpose(1, 2)
        return self.output(self.gain(self.gru(hidden)[0][:, -1]))


def loss_of(outputs: Tensor, first: int) -> Tensor:
    weight = torch.arange(1.0, 15.0, dtype=outputs.dtype).reshape(7, 2).cos()
    return (outputs.square() * weight[first : first + len(outputs)]).sum()


def watch(model: nn.Module, x: Tensor, labels: list[str], first: int) -> Any:
    with capture(model, labels) as captured:
        loss_of(model(x), first).backward()
    return captured


def ddp() -> None:
    torch.manual_seed(0)
    model, x = Network().double(), torch.randn(7, 3, 6).double()
    plain = DistributedDataParallel(copy.deepcopy(model))
    whole = watch(copy.deepcopy(model), x, LABELS, 0).group_gradients()
    share = SHARES[dist.get_rank()]
    watched = DistributedDataParallel(model)
    captured = watch(watched, x[share], LABELS[share], share.start)
    loss_of(plain(x[share]), share.start).backward()

    for a, b in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert hooks_on(watched) == 0
    assert max(captured.additivity_error().values()) < 1e-10
    assert {row.method for row in captured.coverage()} == {"rows", "replay"}
    mine = captured.group_gradients()
    assert set(mine) == set(LABELS[share])
    for group, gradients in whole.items():
        for name, expected in gradients.items():
            assert not name.startswith("module.")
            total = torch.zeros_like(expected)
            if group in mine:
                total += mine[group][name]
            dist.all_reduce(total)
            torch.testing.assert_close(total, expected, atol=1e-10, rtol=1e-10)


def fsdp() -> None:
    torch.manual_seed(0)
    model = fully_shard(Network())
    with pytest.raises(CaptureError, match=r"over processes \(FSDP2.*DistributedData"):
        capture(model, ["a", "b"])
    model = FullyShardedDataParallel(Network(), device_id=torch.device("cpu"))
    with pytest.raises(CaptureError, match=r"over processes \(Fully.*DistributedData"):
        capture(model, ["a", "b"])


class Forking(nn.Module):
    """Each process has a layer that the other never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 4)])
        self.common = nn.Linear(3, 3)

    def forward(self, x: Tensor, way: int) -> Tensor:
        return self.ways[way](self.common(x))


def show(
    monitor: SpectralMonitor, x: Tensor, rank: int, who: list[str] | None = WHO
) -> None:
    share = SHARES[rank]
    labels = {"dx": LABELS[share], "odd": [i % 2 for i in range(7)][share]}
    with monitor.watch(labels, who and who[share]):
        loss_of(monitor.model(x[share]), share.start).backward()


def cell_of(s: Spectrum) -> tuple[Any, ...]:
    return s.rank, s.step, s.layer, s.quantity, s.grouping, s.group


def check_same(found: list[Spectrum], expected: list[Spectrum]) -> None:
    """The same records, up to rounding; the step is that of a longer window."""
    by_cell = {cell_of(s)[2:]: s for s in found}
    assert len(by_cell) == len(found) == len(expected)
    for s in expected:
        one = by_cell[cell_of(s)[2:]]
        for name in COUNTS:
            assert getattr(one, name) == getattr(s, name), (cell_of(s), name)
        top = np.nan_to_num(s.values[:1]).sum()
        np.testing.assert_allclose(
            one.values, s.values, rtol=1e-10, atol=1e-10 * top, err_msg=str(cell_of(s))
        )


def check_ranks_agree(result: EpochSpectra) -> None:
    """Bit for bit the same on all processes."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (result.batches, result.spectra))
    for batches, spectra in told:
        assert batches == result.batches
        for one, s in zip(spectra, result.spectra, strict=True):
            for item in fields(s):
                np.testing.assert_equal(getattr(one, item.name), getattr(s, item.name))


def window() -> None:
    torch.manual_seed(0)
    model, x = Network().double(), torch.randn(7, 3, 6).double()
    settings: dict[str, Any] = {
        "aggregate": "window",
        "groups": {"dx": ["a", "b", "c", "never seen"], "odd": [0, 1]},
        "reduction": "sum",
    }
    alone = SpectralMonitor(copy.deepcopy(model), **settings, distributed="off")
    monitor = SpectralMonitor(DistributedDataParallel(model), **settings)
    steps = {"plain": WHO, "strangers": None, "not finite": WHO}
    for what, who in steps.items():
        data = x.clone()
        if what == "not finite":
            data[5] = torch.nan  # on the second process, in group b
        for scale in (1.0, 0.5):
            show(monitor, scale * data, dist.get_rank(), who)
            for rank in range(2):
                show(alone, scale * data, rank, who)
        result, expected = monitor.collect(), alone.collect()
        assert result.batches == expected.batches == 4
        check_same(result.spectra, expected.spectra)
        check_ranks_agree(result)
        last = [s for s in result.spectra if s.layer == "output" and s.group == "b"]
        assert {s.subjects for s in last} == ({8} if who is None else {2})
        assert {s.samples for s in last} == {8}
        marked = {s.group for s in result.spectra if s.status == "non-finite"}
        assert marked == ({"all", "b", "1"} if what == "not finite" else set())
    assert not monitor.collect().spectra


def fork() -> None:
    """Layers that one process only reaches keep nobody waiting."""
    torch.manual_seed(0)
    model, x = Forking().double(), torch.randn(7, 3).double()
    rank, settings = dist.get_rank(), {"aggregate": "window", "groups": ["a", "b", "c"]}
    monitor = SpectralMonitor(model, **settings)
    alone = SpectralMonitor(copy.deepcopy(model), **settings, distributed="off")
    for one, ways in ((monitor, [rank]), (alone, [0, 1])):
        for way in ways:
            with one.watch(LABELS[SHARES[way]], WHO[SHARES[way]]):
                one.model(x[SHARES[way]], way).square().sum().backward()
    result = monitor.collect()
    assert {s.layer for s in result.spectra} == {"ways.0", "ways.1", "common"}
    check_same(result.spectra, alone.collect().spectra)
    check_ranks_agree(result)
    other = SpectralMonitor(nn.Linear(3, 2 + rank), **settings)
    with other.watch(["a", "b"]):
        other.model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(InputError, match="watch the same model on all"):
        other.collect()


def batch() -> None:
    torch.manual_seed(0)
    model, x = Network().double(), torch.randn(7, 3, 6).double()
    rank = dist.get_rank()

    def watches(epoch: int, step: int) -> bool:
        return step < 2 - rank  # steps 0 and 1 of the first process, 0 of the second

    alone = SpectralMonitor(copy.deepcopy(model), reduction="sum", distributed="off")
    monitor = SpectralMonitor(
        DistributedDataParallel(model),
        reduction="sum",
        schedule=watches,
        permutations=19,
    )
    for scale in (1.0, 0.5):
        show(monitor, scale * x, rank)
    for scale, one in ((1.0, 0), (0.5, 0), (1.0, 1)):
        show(alone, scale * x, one)
    result, expected = monitor.collect(), alone.collect()
    assert result.batches == expected.batches == 3
    check_ranks_agree(result)
    assert len({cell_of(s) for s in result.spectra}) == len(expected.spectra)
    for batch, (one, step) in enumerate(((0, 0), (0, 1), (1, 0))):
        check_same(
            [s for s in result.spectra if (s.rank, s.step) == (one, step)],
            [s for s in expected.spectra if s.step == batch],
        )
    table = result.divergences(permutations=19)
    plain = expected.divergences(permutations=0)
    keys = ["layer", "quantity", "grouping", "group_a", "group_b"]
    both = table.merge(plain, on=keys, suffixes=("", "_alone"), validate="1:1")
    assert len(both) == len(table) == len(plain)
    np.testing.assert_allclose(both["value"], both["value_alone"], rtol=1e-8)
    known = table[table["value"].notna()]
    assert len(known)
    assert set(known["reason"]) == {NO_NULL}
    assert table["p"].isna().all()
    assert table["p_max"].isna().all()
    own = SpectralMonitor(model, reduction="sum", distributed="off")
    show(own, x, rank)
    found = own.collect()
    assert found.batches == 1
    assert {s.samples for s in found.spectra if s.grouping == "all"} == {4 - rank}
    assert NO_NULL not in set(found.divergences(permutations=19)["reason"])


def errors() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(InputError, match="on 2 ranks needs groups="):
        SpectralMonitor(model, aggregate="window")
    with pytest.raises(InputError, match="on 2 ranks needs groups="):
        EARLY.start(["a"])
    SpectralMonitor(model, aggregate="window", distributed="off")
    SpectralMonitor(model)


if __name__ == "__main__":
    EARLY = SpectralMonitor(nn.Linear(3, 2), aggregate="window")
    dist.init_process_group("gloo")
    {
        "ddp": ddp,
        "fsdp": fsdp,
        "window": window,
        "fork": fork,
        "batch": batch,
        "errors": errors,
    }[sys.argv[1]]()
    dist.destroy_process_group()
    print("done", flush=True)
    # A mesh keeps its group, whose threads may not outlive the interpreter.
    os._exit(0)
