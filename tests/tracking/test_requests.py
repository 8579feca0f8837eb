"""How often a run talks to its store, by counting; and what must not come of it."""

import json
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlDataset

from spectral_mlops.errors import TrackingError
from spectral_mlops.tracking import MlflowTracker, load_run, open_store
from spectral_mlops.tracking import uploader as uploader_module
from spectral_mlops.tracking.delivery import UID, Delivery
from spectral_mlops.tracking.holder import WRITER
from spectral_mlops.tracking.uploader import Uploader
from tests.conformance import COHORT
from tests.tracking.factory import epoch

TALK = ("create_run", "search_runs", "log_batch", "log_inputs", "set_tag",
        "set_terminated", "delete_tag", "get_run")  # fmt: skip


@pytest.fixture
def asked(uri: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what clients ask of stores."""
    open_store(uri)
    count: Counter[str] = Counter()

    def counted(name: str) -> Any:
        real = getattr(MlflowClient, name)

        def call(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            count[name] += 1
            return real(self, *args, **kwargs)

        return call

    for name in TALK:
        monkeypatch.setattr(MlflowClient, name, counted(name))
    return count


def runs_of(uri: str) -> list[Any]:
    store = open_store(uri)
    return list(store.client.search_runs([store.experiment().experiment_id]))


def test_a_short_run_asks_little_of_its_store(
    uri: str, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader_module, "SPACING", 3600.0)
    tracker = MlflowTracker(tracking_uri=uri)
    tags = {UID: "mine", "spectral.kind": "trial", "mlflow.note.content": "said"}
    tracker.start("one", {"depth": 3}, tags, COHORT)
    for number in range(12):  # ten make a part
        tracker.log(epoch(number), {"train/loss": 0.5 / (1 + number)})
    tracker.log_metrics({"final/auc": 0.75}, step=11)
    tracker.log_tags({"optuna.state": "RUNNING"})
    tracker.log_tags({"optuna.state": "COMPLETE"})
    tracker.close()
    asked.pop("get_run", None)  # of files: one for each folder
    assert asked == {
        "create_run": 1,
        "log_batch": 2,  # parameters; all numbers and tags of the end
        "log_inputs": 1,
        "set_terminated": 1,
        "delete_tag": 1,
    }
    (run,) = runs_of(uri)
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["optuna.state"] == "COMPLETE"
    assert WRITER not in run.data.tags
    assert run.data.metrics["train/loss"] == 0.5 / 12
    assert len(load_run(tracker.run_id, uri)) == 12 * 54
    assert run.data.metrics["final/auc"] == 0.75


def test_who_writes_is_known_from_the_beginning(uri: str) -> None:
    tracker = MlflowTracker(tracking_uri=uri, folder="run")
    tracker.start("one")
    (run,) = runs_of(uri)
    writer = json.loads(run.data.tags[WRITER])
    assert writer["folder"] == str(Path("run").absolute())
    tracker.close()


def test_a_run_whose_making_was_not_confirmed_is_found_again(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = MlflowClient.create_run

    def lose_the_answer(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        raise MlflowException("connection reset")

    tracker = MlflowTracker(tracking_uri=uri, folder="run")
    monkeypatch.setattr(MlflowClient, "create_run", lose_the_answer)
    with pytest.raises(TrackingError, match="connection reset"):
        tracker.start("one", tags={UID: "mine"})
    monkeypatch.setattr(MlflowClient, "create_run", make)
    tracker.start("one", {"depth": 3}, {UID: "mine"})
    tracker.close()
    (run,) = runs_of(uri)
    assert (run.data.params, run.info.status) == ({"depth": "3"}, "FINISHED")


def test_a_cohort_that_two_runs_log_at_the_same_moment(uri: str) -> None:
    open_store(uri)
    collided = []

    def make_it_first(made: Any, args: Any, entry: dict[str, Any]) -> None:
        """Be another process, between MLflow's look and its own entry."""
        if collided:
            return
        collided.append(entry["name"])
        theirs = entry | {"dataset_uuid": "theirs"}
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
            connection.execute(
                f"INSERT INTO datasets ({', '.join(theirs)}) "
                f"VALUES ({', '.join('?' * len(theirs))})",
                list(theirs.values()),
            )
            connection.commit()

    sqlalchemy.event.listen(SqlDataset, "init", make_it_first)
    try:
        tracker = MlflowTracker(tracking_uri=uri)
        tracker.start("one", cohort=COHORT)
        tracker.close()
    finally:
        sqlalchemy.event.remove(SqlDataset, "init", make_it_first)
    (run,) = runs_of(uri)
    (cohort,) = run.inputs.dataset_inputs
    assert [cohort.dataset.name] == collided


def test_a_refused_tag_takes_no_number_with_it(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = MlflowClient.log_batch

    def refuse(self: MlflowClient, run_id: str, **given: Any) -> None:
        if any(tag.key == "bad" for tag in given.get("tags", ())):
            raise MlflowException("no such tag", error_code=1000)
        send(self, run_id, **given)

    tracker = MlflowTracker(tracking_uri=uri, folder="run")
    tracker.start("one")
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    tracker.log_metrics({"a": 1.0})
    tracker.log_tags({"bad": "x"})
    tracker.log_tags({"good": "y"})
    tracker.log_metrics({"b": 2.0})
    tracker.close()
    assert tracker.undelivered == 0  # a tag is no point
    (run,) = runs_of(uri)
    assert (run.data.metrics, run.data.tags["good"]) == ({"a": 1.0, "b": 2.0}, "y")
    refused = Path("run/spool/refused.jsonl").read_text(encoding="utf-8")
    assert json.loads(refused)["reason"].endswith("no such tag")


class Always:
    """A delivery that arrives, and says that it was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.happened = threading.Event()

    def deliver(self) -> bool:
        self.asked += 1
        self.happened.set()
        return True


def test_what_is_new_waits_for_more_and_an_end_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploader_module, "SPACING", 3600.0)
    delivery = Always()
    uploader = Uploader(cast(Delivery, delivery))
    for _ in range(3):
        uploader.wake()
    assert not delivery.happened.wait(0.2)
    uploader.flush(60.0)
    assert delivery.asked == 1
    uploader.wake()
    uploader.end()
    assert delivery.asked == 2


def test_what_is_new_is_sent_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader_module, "SPACING", 0.01)
    delivery = Always()
    uploader = Uploader(cast(Delivery, delivery))
    uploader.wake()
    assert delivery.happened.wait(60.0)
    uploader.end()
