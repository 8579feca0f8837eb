import json
import logging
import os
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.tracking import (
    MlflowTracker,
    fetch_run,
    load_metrics,
    load_run,
    open_store,
    sync_run,
    undelivered_runs,
)
from spectral_mlops.tracking import delivery as delivery_module
from spectral_mlops.tracking import uploader as uploader_module
from spectral_mlops.tracking.load import load_records
from spectral_mlops.tracking.spool import read_events
from spectral_mlops.tracking.store import Store
from tests.conformance import COHORT, TrackerSuite, picture
from tests.tracking.factory import epoch, in_order, record, same
from tests.tracking.readers import MlflowReader


class TestMlflowTracker(TrackerSuite):
    @pytest.fixture
    def tracker(self, uri: str) -> MlflowTracker:
        return MlflowTracker(tracking_uri=uri)

    @pytest.fixture
    def reader(self, tracker: MlflowTracker, uri: str) -> MlflowReader:
        return MlflowReader(tracker, uri)


@pytest.fixture
def own_run(uri: str) -> str:
    """A run that the user made and that goes on."""
    store = open_store(uri)
    run = store.client.create_run(
        store.experiment("mine").experiment_id, run_name="user's own"
    )
    return str(run.info.run_id)


class Broken:
    """A client whose store is away while ``away`` is set."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.away = False

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise MlflowException("connection refused")
        return getattr(self.client, name)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[Broken]:
    """Clients of the stores that trackers open; attempts follow at once."""
    made: list[Broken] = []

    def opened(uri: str) -> Store:
        store = open_store(uri)
        made.append(Broken(store.client))
        return Store(store.uri, made[-1])  # type: ignore[arg-type]

    monkeypatch.setattr(delivery_module, "open_store", opened)
    monkeypatch.setattr(uploader_module, "PAUSES", (0.01,))
    return made


def away(tracker: MlflowTracker, broken: list[Broken]) -> MlflowTracker:
    """Start a tracker whose store answers until it has begun."""
    tracker.start("one")
    tracker.flush()
    broken[0].away = True
    return tracker


def test_run_is_described(uri: str) -> None:
    tracker = MlflowTracker(tracking_uri=uri, experiment="study A")
    tracker.start("fold 0", {"depth": 3}, cohort=COHORT)
    tracker.close()
    store = open_store(uri)
    run = store.client.get_run(tracker.run_id)
    assert run.info.run_name == "fold 0"
    assert run.data.tags["spectral.schema_version"] == "1"
    assert run.data.tags["mlflow.user"]
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.name == "cobre"
    assert COHORT.digest.startswith(given.dataset.digest)
    profile = json.loads(given.dataset.profile)
    assert profile == {
        "num_rows": 12,
        "groups": {"patient": 4},
        "sha256": COHORT.digest,
    }
    assert given.tags[0].value == "train"
    assert store.client.get_experiment(run.info.experiment_id).name == "study A"


def test_says_how_to_look(uri: str) -> None:
    tracker = MlflowTracker(tracking_uri=uri)
    with pytest.raises(TrackingError, match="no run yet"):
        _ = tracker.run_id
    assert "not started" in tracker.where
    tracker.start("one")
    run = open_store(uri).client.get_run(tracker.run_id)
    number = run.info.experiment_id
    assert tracker.where == (
        f"mlflow ui --backend-store-uri {uri}  then  "
        f"http://127.0.0.1:5000/#/experiments/{number}/runs/{tracker.run_id}"
    )
    tracker.close()


def test_attached_run_stays_the_users(uri: str, own_run: str) -> None:
    client = open_store(uri).client
    before = client.get_run(own_run)
    for number in (0, 1):
        with MlflowTracker(own_run, tracking_uri=uri) as tracker:
            tracker.start("another name", {"depth": 3})
            tracker.log(epoch(number))
            tracker.log_table(pd.DataFrame({"z": [number]}), f"layers-{number}")
            with pytest.raises(InputError, match="'layers-0' is written already"):
                tracker.log_table(pd.DataFrame({"z": [9]}), "layers-0")
    after = client.get_run(own_run)
    assert after.info.status == before.info.status == "RUNNING"
    assert after.info.end_time is None
    assert after.info.run_name == "user's own"
    assert after.data.tags["mlflow.runName"] == "user's own"
    files = [item.path for item in client.list_artifacts(own_run, "spectra")]
    assert len(files) == 2
    assert all(path.startswith("spectra/part-") for path in files)
    assert sorted(set(load_run(own_run, uri)["epoch"])) == [0, 1]


def test_environment_names_store_run_and_experiment(
    uri: str, own_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    with MlflowTracker() as tracker:
        tracker.log_metrics({"a": 1})
    store = open_store()
    number = store.client.get_run(tracker.run_id).info.experiment_id
    assert store.client.get_experiment(number).name == "from the environment"
    monkeypatch.setenv("MLFLOW_RUN_ID", own_run)
    assert MlflowTracker().run_id == own_run


@pytest.mark.parametrize("given", ["absent", "deleted"])
def test_unusable_run_is_refused(uri: str, own_run: str, given: str) -> None:
    client = open_store(uri).client
    if given == "deleted":
        client.delete_run(own_run)
    tracker = MlflowTracker(own_run if given == "deleted" else "0" * 32, None, uri)
    with pytest.raises(TrackingError, match=r"not found|was deleted"):
        tracker.start("one")


def test_default_deleted_and_served_experiments_are_refused(uri: str) -> None:
    store = open_store(uri)
    with pytest.raises(TrackingError, match="Default experiment is not used"):
        store.experiment("Default")
    gone = store.experiment("gone")
    store.client.delete_experiment(gone.experiment_id)
    with pytest.raises(TrackingError, match=r"'gone' of .* was deleted"):
        store.experiment("gone")
    store.client.create_experiment("served", "mlflow-artifacts:/7")
    with pytest.raises(TrackingError, match="not a server"):
        MlflowTracker(tracking_uri=uri, experiment="served").start("one")
    assert not store.client.search_runs([store.experiment("mine").experiment_id])


def test_old_folder_store_gets_one_sentence() -> None:
    Path("mlruns/0").mkdir(parents=True)
    Path("mlruns/0/meta.yaml").write_text("name: Default\n")
    for old in ("mlruns", "file:./mlruns", "./mlruns"):
        with pytest.raises(TrackingError, match="migrate-filestore"):
            MlflowTracker(tracking_uri=old).start("one")


def test_store_that_cannot_be_made_gets_one_sentence() -> None:
    uri = "sqlite:////absent/folder/mlflow.db"
    with pytest.raises(TrackingError, match="no such folder") as caught:
        MlflowTracker(tracking_uri=uri).start("one")
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_server_that_is_never_there(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(uploader_module, "PAUSES", (0.01,))
    said: list[str] = []
    tracker = MlflowTracker(
        tracking_uri="http://user:secret@127.0.0.1:9", notice=said.append
    )
    tracker.start("one", {"depth": 3}, cohort=COHORT)
    with pytest.raises(TrackingError, match="does not answer"):
        _ = tracker.run_id
    tracker.log(epoch(0), {"train/loss": 0.5})
    tracker.log_text("text", "notes.txt")
    tracker.close()
    (sentence,) = said
    assert "Training goes on" in sentence
    assert f"spectral-mlops sync {tracker.folder}" in tracker.where
    written = "".join(p.read_text() for p in tracker.folder.glob("spool/*.json*"))
    assert "secret" not in sentence + tracker.where + written
    assert tracker.undelivered > 20
    assert len(load_run(tracker.folder)) == 54
    (tracker.folder / "spool/run.json").write_text(
        (tracker.folder / "spool/run.json")
        .read_text()
        .replace("http://user:***@127.0.0.1:9", uri)
    )
    done = sync_run(tracker.folder)
    assert (done.undelivered, done.trouble, done.interrupted) == (0, "", False)
    assert done.delivered == tracker.undelivered
    store = open_store(uri)
    (run,) = store.client.search_runs([store.experiment().experiment_id])
    assert run.data.params == {"depth": "3"}
    assert run.info.status == "FINISHED"
    assert run.data.metrics["train/loss"] == 0.5
    assert len(load_run(run.info.run_id, uri)) == 54
    assert not tracker.folder.exists()


def test_conflicting_params_leave_no_running_run(uri: str, own_run: str) -> None:
    store = open_store(uri)
    store.client.log_param(own_run, "depth", "2")
    with pytest.raises(TrackingError, match="depth"):
        MlflowTracker(own_run, tracking_uri=uri).start("one", {"depth": 3})


def test_resent_points_are_stored_once(uri: str, broken: list[Broken]) -> None:
    tracker = away(MlflowTracker(tracking_uri=uri), broken)
    client = broken[0].client
    real = client.log_batch
    attempts = []

    def arrives_but_fails(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        attempts.append(args)
        raise MlflowException("connection reset")

    client.log_batch = arrives_but_fails
    broken[0].away = False
    tracker.log(epoch(0), {"train/loss": 0.5})
    assert tracker.flush() > 0
    assert tracker.flush() > 0
    client.log_batch = real
    tracker.log(epoch(1), {"train/loss": 0.25})
    assert tracker.flush() == 0
    tracker.close()
    assert len(attempts) >= 2
    points = open_store(uri).client.get_metric_history(tracker.run_id, "train/loss")
    assert [(p.step, p.value) for p in points] == [(0, 0.5), (1, 0.25)]


def test_resent_images_are_stored_once(
    uri: str, broken: list[Broken], tmp_path: Path
) -> None:
    tracker = away(MlflowTracker(tracking_uri=uri, folder="run"), broken)
    client = broken[0].client
    real = client.set_tag

    def fails_at_the_end(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("connection reset")

    client.set_tag = fails_at_the_end
    broken[0].away = False
    path = picture(tmp_path / "map.png", 300)
    tracker.log_image(path, "maps/erank", 3)
    assert tracker.flush() > 0
    assert tracker.flush() > 0
    client.set_tag = real
    tracker.close("KILLED")
    assert tracker.undelivered == 0
    again = MlflowTracker(tracking_uri=uri, folder="run")  # goes on from a checkpoint
    again.log_image(picture(path, 200), "maps/erank", 3)
    again.log_image(path, "maps/erank", 4)
    again.close()
    images = MlflowReader(again, uri).images()
    assert images.keys() == {("maps/erank", 3), ("maps/erank", 4)}
    with Image.open(BytesIO(images["maps/erank", 3])) as first:
        assert first.size == (300, 5)


def test_training_goes_on_while_the_store_is_away(
    uri: str, broken: list[Broken], tmp_path: Path
) -> None:
    tracker = away(MlflowTracker(tracking_uri=uri), broken)
    for number in range(11):
        tracker.log(epoch(number), {"train/loss": 0.5})
    (tmp_path / "last.pt").write_bytes(b"weights")
    tracker.log_file(tmp_path / "last.pt", "checkpoints")
    (tmp_path / "last.pt").unlink()
    tracker.log_text("text", "notes.txt")
    tracker.log_table(pd.DataFrame({"z": [1.0]}), "layers")
    tracker.close()
    left = tracker.undelivered
    assert f"({left} undelivered: spectral-mlops sync " in tracker.where
    events = [*read_events(tracker.folder)]
    points = sum(len(e.body["metrics"]) for e in events if e.kind == "metrics")
    assert left == points + 4 + 3 + 1  # parts, files, the status
    assert len(load_run(tracker.folder)) == 11 * 54
    broken.clear()
    assert undelivered_runs(Path()) == [tracker.folder.relative_to(Path.cwd())]
    done = sync_run(tracker.folder)
    assert (done.undelivered, done.delivered) == (0, left)
    reader = MlflowReader(tracker, uri)
    assert reader.history("train/loss") == [(n, 0.5) for n in range(11)]
    assert reader.file("checkpoints/last.pt") == b"weights"
    assert reader.file("notes.txt") == b"text"
    assert reader.status() == "FINISHED"
    assert same(in_order(reader.records())[-1], record(10))
    assert undelivered_runs(Path()) == []


def test_store_that_comes_back_gets_everything(uri: str, broken: list[Broken]) -> None:
    tracker = away(MlflowTracker(tracking_uri=uri), broken)
    tracker.log(epoch(0), {"train/loss": 0.5})
    tracker.log_text("text", "notes.txt")
    before = tracker.flush()
    broken[0].away = False
    tracker.close()
    reader = MlflowReader(tracker, uri)
    assert before > 0
    assert tracker.undelivered == 0
    assert reader.history("train/loss") == [(0, 0.5)]
    assert reader.file("notes.txt") == b"text"
    assert reader.status() == "FINISHED"
    assert not Path("runs").exists()


def test_what_is_refused_does_not_hold_up_the_rest(
    uri: str, broken: list[Broken]
) -> None:
    tracker = MlflowTracker(tracking_uri=uri)
    tracker.start("one")
    client = broken[0].client
    real = client.log_artifact

    def refuse(run_id: str, path: str, folder: str | None) -> None:
        if path.endswith("layers.json"):
            raise MlflowException("no", error_code=1000)  # INVALID_PARAMETER_VALUE
        real(run_id, path, folder)

    client.log_artifact = refuse
    tracker.log_table(pd.DataFrame({"z": [1.0]}), "layers")
    tracker.log_metrics({"a": 1.0})
    assert tracker.flush() == 1
    tracker.close("FAILED")
    reader = MlflowReader(tracker, uri)
    assert reader.history("a") == [(0, 1.0)]
    assert reader.status() == "FAILED"
    refused = (tracker.folder / "spool/refused.jsonl").read_text()
    assert json.loads(refused)["reason"].endswith("no")
    assert (tracker.folder / "spool/tables/layers.json").exists()


def test_one_refused_metric_is_set_aside_alone(uri: str, broken: list[Broken]) -> None:
    tracker = MlflowTracker(tracking_uri=uri)
    tracker.start("one")
    client = broken[0].client
    real = client.log_batch

    def refuse(run_id: str, **given: Any) -> None:
        if any(point.key == "c" for point in given.get("metrics", [])):
            raise MlflowException("no c", error_code=1000)
        real(run_id, **given)

    client.log_batch = refuse
    tracker.log_metrics(dict.fromkeys("abcde", 1.0))
    tracker.log_metrics({"f": 1.0})
    assert tracker.flush() == 1
    tracker.close()
    assert MlflowReader(tracker, uri).keys() >= set("abdef")
    refused = (tracker.folder / "spool/refused.jsonl").read_text()
    assert json.loads(refused)["metrics"] == {"c": 1.0}


def test_resumed_run_goes_on_without_a_double_or_a_gap(uri: str) -> None:
    for first, last in ((0, 13), (11, 25)):
        tracker = MlflowTracker(tracking_uri=uri, experiment="one", folder="run")
        tracker.start("one", {"epochs": 25}, cohort=COHORT)
        for number in range(first, last):
            tracker.log(epoch(number), {"train/loss": 1 / (1 + number)})
        tracker.log_table(pd.DataFrame({"z": [1.0]}), "layers")
        assert tracker.resumed == (first > 0)
        tracker.close("KILLED" if last < 25 else "FINISHED")
    store = open_store(uri)
    assert len(store.client.search_runs([store.experiment("one").experiment_id])) == 1
    reader = MlflowReader(tracker, uri)
    assert reader.history("train/loss") == [(n, 1 / (1 + n)) for n in range(25)]
    stored = in_order(reader.records())
    expected = in_order([r for number in range(25) for r in epoch(number).records])
    assert len(stored) == len(expected)
    assert all(map(same, stored, expected))
    assert all(map(same, in_order(load_records("run")), expected))
    assert reader.status() == "FINISHED"
    with pytest.raises(TrackingError, match="has finished"):
        MlflowTracker(tracking_uri=uri, folder="run").start("one")


def test_one_process_at_a_time_writes_a_run(uri: str, own_run: str) -> None:
    first = MlflowTracker(own_run, tracking_uri=uri, folder="here")
    first.log(epoch(0))
    with pytest.raises(TrackingError, match=f"another process \\({os.getpid()}\\)"):
        MlflowTracker(own_run, tracking_uri=uri, folder="here").start()
    with pytest.raises(TrackingError, match=f"another process \\({os.getpid()}\\)"):
        sync_run("here")
    with pytest.raises(TrackingError, match=f"by process {os.getpid()} from .*here"):
        MlflowTracker(own_run, tracking_uri=uri, folder="there").start()
    assert not Path("there/spool").exists()
    first.close()
    with MlflowTracker(own_run, tracking_uri=uri, folder="there") as second:
        second.log(epoch(1))


def test_threads_make_no_stray_runs_and_leave_the_fluent_api_alone(
    uri: str,
) -> None:
    trackers = [MlflowTracker(tracking_uri=uri, experiment="both") for _ in range(2)]
    open_store(uri).experiment("both")

    def train(tracker: MlflowTracker) -> None:
        with tracker:
            for number in range(3):
                tracker.log(epoch(number), {"train/loss": number})

    threads = [threading.Thread(target=train, args=(t,)) for t in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(uri)
    runs = store.client.search_runs([store.experiment("both").experiment_id])
    assert {run.info.run_id for run in runs} == {t.run_id for t in trackers}
    assert [len(load_run(t.run_id, uri)) for t in trackers] == [162, 162]
    assert mlflow.active_run() is None


def test_is_silent_and_restores_what_it_silenced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    levels = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    environment = dict(os.environ)
    with MlflowTracker(tracking_uri=f"sqlite:///{tmp_path / 'new.db'}") as tracker:
        tracker.log(epoch(0))
    assert capfd.readouterr() == ("", "")
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert dict(os.environ) == environment


def test_folder_and_store_give_the_same_back(uri: str, tmp_path: Path) -> None:
    with MlflowTracker(tracking_uri=uri, folder="run") as tracker:
        for number in range(3):
            tracker.log(epoch(number), {"train/loss": 1 / (1 + number)})
        tracker.log_text("text", "notes/first.txt")
    from_store = load_metrics(tracker.run_id, uri)
    pd.testing.assert_frame_equal(from_store, load_metrics("run"))
    losses = from_store[from_store["key"] == "train/loss"]
    assert losses["value"].tolist() == [1.0, 0.5, 1 / 3]
    assert losses["step"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(load_run(tracker.run_id, uri), load_run("run"))
    fetch_run(tracker.run_id, tmp_path, uri)
    assert (tmp_path / "notes/first.txt").read_text() == "text"
    pd.testing.assert_frame_equal(load_run(tmp_path), load_run("run"))
    with pytest.raises(InputError, match="no run's folder"):
        load_metrics(tmp_path)


def test_load_names_the_run_it_did_not_find(uri: str, own_run: str) -> None:
    with pytest.raises(InputError, match="holds no spectra"):
        load_run(own_run, uri)
    with pytest.raises(TrackingError, match="0000"):
        load_run("0" * 32, uri)
