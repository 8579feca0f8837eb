"""What can happen to a run on its way: nothing may be lost, nothing double."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking import (
    MlflowTracker,
    SpoolTracker,
    load_run,
    open_store,
    sync_run,
)
from spectral_mlops.tracking.load import load_records
from spectral_mlops.tracking.profiles import STANDARD
from spectral_mlops.tracking.spool import Spool, read_events
from tests.conftest import ROOT
from tests.tracking.factory import Epoch, divergence, epoch, in_order, same, spectrum


def start(folder: Path, uri: str, epochs: int, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [folder, uri, epochs, folder.with_suffix(".checkpoint"), limit]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tracking.worker", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def check_complete(folder: Path, uri: str, epochs: int) -> None:
    """One run, every point once, every record once, on both sides."""
    store = open_store(uri)
    (run,) = store.client.search_runs([store.experiment().experiment_id])
    number = run.info.run_id
    history = store.client.get_metric_history(number, "train/loss")
    points = [(point.step, point.value) for point in history]
    every = -(-epochs // STANDARD.points)
    steps = sorted({0, *range((epochs - 1) % every, epochs, every)})
    assert points == [(n, 1 / (1 + n)) for n in steps]
    spectral = store.client.get_metric_history(number, "spectral/grad_div")
    assert [point.step for point in spectral] == steps
    expected = in_order([r for n in range(epochs) for r in epoch(n).records])
    for stored in (load_records(number, uri), load_records(folder)):
        assert len(stored) == len(expected)
        assert all(map(same, in_order(stored), expected))
    assert run.info.status == "FINISHED"
    assert [item.path for item in store.client.list_artifacts(number)].count(
        "notes.txt"
    ) == 1


@pytest.mark.slow
def test_killed_twenty_times_then_resumed(uri: str, tmp_path: Path) -> None:
    rng = random.Random(20)
    folder, epochs = tmp_path / "run", 400
    for _ in range(20):
        with start(folder, uri, epochs) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.5))
            process.kill()
    with start(folder, uri, epochs) as process:
        assert process.stdout is not None
        first, last = process.stdout.read().splitlines()
    assert 0 < int(first.split()[1]) < epochs
    assert last == "undelivered 0"
    check_complete(folder, uri, epochs)


@pytest.mark.slow
def test_disk_that_is_full_for_a_while(uri: str, tmp_path: Path) -> None:
    with start(tmp_path / "run", "spool", 40, limit=20_000) as process:
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    assert said == ["from 0", "held True", "undelivered 0"]
    assert sync_run(tmp_path / "run", uri).undelivered == 0
    check_complete(tmp_path / "run", uri, 40)


def test_disk_that_stays_full(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = MlflowTracker(tracking_uri=uri, folder="run", notice=said.append)
    tracker.log(epoch(0), {"train/loss": 0.5})

    def full(self: Spool, events: object) -> int:
        if self.root == Path("run").absolute():
            raise OSError(28, "No space left on device")
        return append(self, events)  # type: ignore[arg-type]

    append = Spool.append
    monkeypatch.setattr(Spool, "append", full)
    for number in (1, 2):
        tracker.log(epoch(number), {"train/loss": 0.5 / number})
    assert not tracker.durable
    assert len(said) == 1
    assert "No space left on device" in said[0]
    tracker.close()
    assert tracker.undelivered == 0
    client = open_store(uri).client
    points = client.get_metric_history(tracker.run_id, "train/loss")
    assert [(p.step, p.value) for p in points] == [(0, 0.5), (1, 0.5), (2, 0.25)]
    assert len(load_run(tracker.run_id, uri)) == 3 * 54
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_interrupted_run_is_delivered_as_far_as_it_came(uri: str) -> None:
    tracker = SpoolTracker("run")
    tracker.start("one", {"depth": 3})
    for number in range(12):
        tracker.log(epoch(number), {"train/loss": 0.5})
    assert tracker.durable
    tracker.spool.close()  # as the end of the process does
    with Path("run/spool/events.jsonl").open("ab") as stream:
        stream.write(b'{"seq": 99, "time"')
    done = sync_run("run", uri)
    assert (done.undelivered, done.interrupted) == (0, True)
    store = open_store(uri)
    (run,) = store.client.search_runs([store.experiment().experiment_id])
    assert run.info.status == "KILLED"
    assert len(load_run(run.info.run_id, uri)) == 12 * 54
    with MlflowTracker(tracking_uri=uri, folder="run") as resumed:
        resumed.start("one", {"depth": 3})
        assert resumed.run_id == run.info.run_id
        assert resumed.flush() == 0
        assert store.client.get_run(resumed.run_id).info.status == "RUNNING"
        resumed.log(epoch(12), {"train/loss": 0.25})
    history = store.client.get_metric_history(resumed.run_id, "train/loss")
    assert [point.step for point in history] == [*range(13)]
    assert len(load_run(resumed.run_id, uri)) == 13 * 54
    again = sync_run("run", uri)
    assert (again.delivered, again.undelivered, again.interrupted) == (0, 0, False)


HOSTILE = [
    "a/b",
    "../up",
    "..",
    "größe",
    "x" * 300,
    "x" * 299 + "y",
    "a b",
    "a_b",
    "a[0]",
    "a(0)",
    " ",
    "患者",
]


def test_hostile_names_of_groups_and_layers_stay_apart(uri: str) -> None:
    spectra = [
        spectrum(layer, group=group, step=0) for layer in HOSTILE for group in HOSTILE
    ]
    rows = [divergence(layer, value=0.1 + n) for n, layer in enumerate(HOSTILE)]
    shown = EpochRecord(0, "train", tuple(spectra), tuple(rows))
    with MlflowTracker(tracking_uri=uri) as tracker:
        tracker.log(Epoch([shown]))
    data = open_store(uri).client.get_run(tracker.run_id).data
    layers = [key for key in data.metrics if key.startswith("div_grad/")]
    groups = [key for key in data.metrics if key.startswith("erank_grad/")]
    assert len(layers) == len(groups) == len(HOSTILE)
    (stored,) = load_records(tracker.run_id, uri)
    assert [s.group for s in stored.spectra] == [s.group for s in spectra]


def test_ten_thousand_layers_have_few_keys_and_all_records(uri: str) -> None:
    rows = tuple(divergence(f"block.{n}.linear") for n in range(10_000))
    with MlflowTracker(tracking_uri=uri) as tracker:
        tracker.log(Epoch([EpochRecord(0, "train", (), rows)]))
    data = open_store(uri).client.get_run(tracker.run_id).data
    # of 70 keys for layers, half are the probe's
    assert len([k for k in data.metrics if k.startswith("div_")]) == 35
    assert len(load_run(tracker.run_id, uri, kind="divergences")) == 10_000


@pytest.mark.parametrize(
    "line",
    ['{"seq": 2, "time": 1, "kind": "python", "code": "1"}', "[]", "gASVCQAAAAAAAA=="],
)
def test_a_line_that_is_no_event_is_refused(uri: str, line: str) -> None:
    with SpoolTracker("run") as tracker:
        tracker.log_metrics({"a": 1.0})
    with (tracker.folder / "spool/events.jsonl").open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(InputError, match="no event can be read"):
        sync_run("run", uri)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "link"])
def test_a_strangers_folder_gets_nothing_but_its_own(uri: str, path: str) -> None:
    with SpoolTracker("run") as tracker:
        tracker.log_metrics({"a": 1.0})
    (tracker.folder / "link").symlink_to("/etc/passwd")
    events = tracker.folder / "spool/events.jsonl"
    first = events.read_text().splitlines()[0]
    planted = {"seq": 2, "time": 1, "kind": "file", "path": path, "folder": ""}
    events.write_text(f"{first}\n{json.dumps(planted)}\n")
    assert sync_run("run", uri).undelivered == 1
    refused = (tracker.folder / "spool/refused.jsonl").read_text()
    assert "outside of the run" in refused
    store = open_store(uri)
    (run,) = store.client.search_runs([store.experiment().experiment_id])
    assert store.client.list_artifacts(run.info.run_id) == []
    assert [e.kind for e in read_events(tracker.folder)][-1] == "end"
