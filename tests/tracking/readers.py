"""What the trackers stored, read back without them."""

from io import StringIO
from pathlib import Path

import pandas as pd

from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking import (
    MemoryTracker,
    MlflowTracker,
    SpoolTracker,
    open_store,
)
from spectral_mlops.tracking.load import load_records
from spectral_mlops.tracking.spool import Event, read_events
from tests.conformance import Reader


class MemoryReader(Reader):
    def __init__(self, tracker: MemoryTracker) -> None:
        self.tracker = tracker

    def params(self) -> dict[str, str]:
        return self.tracker.params

    def tags(self) -> dict[str, str]:
        return self.tracker.tags

    def history(self, key: str) -> list[tuple[int, float]]:
        return [(step, value) for k, step, value in self.tracker.history if k == key]

    def keys(self) -> set[str]:
        return {key for key, _, _ in self.tracker.history}

    def records(self) -> list[EpochRecord]:
        return self.tracker.records

    def table(self, name: str) -> pd.DataFrame:
        return self.tracker.tables[name]

    def file(self, path: str) -> bytes:
        return self.tracker.files[path]

    def images(self) -> dict[tuple[str, int], bytes]:
        return self.tracker.images

    def status(self) -> str:
        return self.tracker.status


class SpoolReader(Reader):
    """Reads the events of a run's folder."""

    def __init__(self, tracker: SpoolTracker) -> None:
        self.root = tracker.folder

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.root) if event.kind == kind]

    def params(self) -> dict[str, str]:
        return dict(self.events("start")[0].body["params"])

    def tags(self) -> dict[str, str]:
        events = [*self.events("start"), *self.events("tags")]
        return {name: x for event in events for name, x in event.body["tags"].items()}

    def history(self, key: str) -> list[tuple[int, float]]:
        return [
            (event.body["step"], event.body["metrics"][key])
            for event in self.events("metrics")
            if key in event.body["metrics"]
        ]

    def keys(self) -> set[str]:
        return {key for e in self.events("metrics") for key in e.body["metrics"]}

    def records(self) -> list[EpochRecord]:
        return load_records(self.root)

    def table(self, name: str) -> pd.DataFrame:
        (event,) = [e for e in self.events("table") if e.body["name"] == f"{name}.json"]
        return pd.read_json(self.root / event.body["path"], orient="split")

    def file(self, path: str) -> bytes:
        (event,) = [
            event
            for event in self.events("file")
            if str(Path(event.body["folder"], Path(event.body["path"]).name)) == path
        ]
        return (self.root / event.body["path"]).read_bytes()

    def images(self) -> dict[tuple[str, int], bytes]:
        return {
            (event.body["key"], event.body["step"]): (
                self.root / event.body["path"]
            ).read_bytes()
            for event in self.events("image")
        }

    def status(self) -> str:
        return str(self.events("end")[-1].body["status"])


class MlflowReader(Reader):
    """Reads over a client of its own, not the tracker's."""

    def __init__(self, tracker: MlflowTracker, uri: str) -> None:
        self.tracker = tracker
        self.uri = uri
        self.client = open_store(uri).client

    @property
    def run_id(self) -> str:
        return self.tracker.run_id

    def params(self) -> dict[str, str]:
        return dict(self.client.get_run(self.run_id).data.params)

    def tags(self) -> dict[str, str]:
        return dict(self.client.get_run(self.run_id).data.tags)

    def history(self, key: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.run_id, key)
        return [(point.step, point.value) for point in points]

    def keys(self) -> set[str]:
        return set(self.client.get_run(self.run_id).data.metrics)

    def records(self) -> list[EpochRecord]:
        return load_records(self.run_id, self.uri)

    def table(self, name: str) -> pd.DataFrame:
        assert f"{name}.json" in self.tags()["mlflow.loggedArtifacts"]
        # client.load_table would ask the fluent API's store.
        text = self.file(f"{name}.json").decode()
        return pd.read_json(StringIO(text), orient="split")

    def file(self, path: str) -> bytes:
        folder = Path.cwd() / "downloaded"
        folder.mkdir(exist_ok=True)
        got = self.client.download_artifacts(self.run_id, path, str(folder))
        return Path(got).read_bytes()

    def images(self) -> dict[tuple[str, int], bytes]:
        """Read file names as the page of MLflow does."""
        assert self.tags()["mlflow.loggedImages"] == "True"
        paths = [f.path for f in self.client.list_artifacts(self.run_id, "images")]
        found, small = {}, set()
        for path in paths:
            stem, _, ending = path.removeprefix("images/").rpartition(".")
            key, step_word, step, time_word, time, _, *rest = stem.split("+")
            assert (step_word, time_word) == ("step", "timestamp")
            assert int(time) > 1.6e12
            where = key.replace("~", "/"), int(step)
            if rest == ["compressed"] and ending == "webp":
                small.add(where)
            else:
                found[where] = self.file(path)
        assert small == found.keys()
        assert len(paths) == 2 * len(found)
        return found

    def status(self) -> str:
        return str(self.client.get_run(self.run_id).info.status)
