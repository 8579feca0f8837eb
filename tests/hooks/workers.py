"""What the processes of a distributed test run; started by `torchrun`."""

import copy
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from spectral_mlops import capture
from spectral_mlops.errors import CaptureError
from tests.cases import Gain
from tests.hooks.conftest import hooks_on

LABELS = ["b", "a", "b", "c", "a", "b", "b"]
SHARES = (slice(0, 4), slice(4, 7))  # the second process never sees group c


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


if __name__ == "__main__":
    dist.init_process_group("gloo")
    {"ddp": ddp, "fsdp": fsdp}[sys.argv[1]]()
    dist.destroy_process_group()
    print("done")
