import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ddp", "fsdp", "window", "fork", "batch", "errors"])
def test_on_two_processes(what):
    """Groups split unevenly over the ranks; FSDP2 is refused with a way out."""
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "--module", "tests.hooks.workers", what,
    ]  # fmt: skip
    shown = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert shown.returncode == 0, shown.stderr[-4000:]
    assert shown.stdout.count("done") == 2
