"""From the spool to MLflow: in order, again after a failure, never twice.

A resend leaves no second copy: metrics carry the time they were logged at, which the
store knows them by; files overwrite themselves; a run is found again by the name that
it was made under (tag ``spectral.uid``).
"""

import getpass
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from PIL import Image

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.tracking.environment import git_state
from spectral_mlops.tracking.holder import WRITER, take, writer
from spectral_mlops.tracking.pending import build_part
from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow
from spectral_mlops.tracking.spool import Event, Spool, inside
from spectral_mlops.tracking.store import (
    Store,
    may_come_back,
    open_store,
    redacted,
    resolve_uri,
    unusable,
)

# isort: split
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

BATCH = 1000
"""Metrics in one request; more are refused by servers."""
UID = "spectral.uid"
_DIGEST = 12  # characters shown; the whole digest stands in the profile
_REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
)
_JOINED = ("metrics", "tags", "part", "records", "names")
"""Events that are sent together; the last two are the spool's alone."""
_TABLES = "mlflow.loggedArtifacts"
_IMAGES = "mlflow.loggedImages"
_THUMBNAIL = 256  # pixels


class Delivery:
    """Sends one spool to one run.

    Used by one thread at a time.

    Args:
        spool: Open.
        uri: The store, as `resolve_uri` gives it.
        experiment: Where a new run is made.
        given: A run of the user's to attach to; its name, its status and its end are
            never touched.
        fresh: Whether nobody ever tried to make the spool's run, so that none is
            looked for; else one that a lost answer or a killed process left is found.

    Attributes:
        run: The run, once there is one.
        store: Its store, once it answered.
        delivered: Points and files that arrived, of those this object has seen.
        refused: Points and files that the store refuses for good.
        trouble: Why something did not arrive; empty if everything has.
    """

    def __init__(
        self,
        spool: Spool,
        uri: str,
        experiment: str | None,
        given: str | None,
        *,
        fresh: bool = False,
    ) -> None:
        self.run: Run | None = None
        self.store: Store | None = None
        self.delivered = 0
        self.refused = sum(line["points"] for line in _refusals(spool))
        self.trouble = ""
        self.ended = False
        self._spool = spool
        self._uri = uri
        self._experiment = experiment
        self._given = given
        self._fresh = fresh
        self._made_with: dict[str, str] = {}
        self._acked = spool.acked
        self._place = next((e.end for e in spool.events() if e.seq == self._acked), 0)

    def connect(self) -> None:
        """Open the store and find the run, or make it.

        Raises:
            StoreAway: If the store does not answer; later it may.
            TrackingError: If it cannot be used, or the run cannot be written to.
        """
        store = open_store(self._uri)
        with quiet():
            try:
                run = self._attached(store) if self._given else self._own(store)
                take(store, run, self._spool.root)
            except (MlflowException, OSError) as error:
                away = may_come_back(self._uri, error)
                raise unusable(self._uri, error, away=away) from error
        self.store, self.run = store, run
        self._spool.write_info(
            run_id=run.info.run_id, experiment_id=run.info.experiment_id
        )

    @property
    def tables(self) -> set[str]:
        """Names of tables that are in the run, whoever logged them."""
        if self.run is None:
            return set()
        known = json.loads(self.run.data.tags.get(_TABLES, "[]"))
        return {item["path"].removesuffix(".json") for item in known}

    def describe(self) -> None:
        """Send the first event, which a run that cannot be described is refused by.

        Raises:
            StoreAway: If the store does not answer any more; it is sent later.
            TrackingError: If the store refuses it; a run made for it is ended.
        """
        event = next(self._spool.events(self._place))
        with quiet():
            try:
                self._send_start(event)
            except (MlflowException, OSError) as error:
                if may_come_back(self._uri, error):
                    raise unusable(self._uri, error, away=True) from error
                if not self._given:
                    self._store.client.set_terminated(self._run_id, "FAILED")
                raise unusable(self._uri, error) from error
        self._ack(event)

    def deliver(self) -> bool:
        """Send what is in the spool; return whether all of it arrived or was refused.

        What the store refuses for good is set aside in ``spool/refused.jsonl``, so it
        cannot hold up the rest. At any other failure the store counts as away, and
        what was to be sent is where the next call begins.
        """
        try:
            if self.run is None:
                self.connect()
            with quiet():
                for events in _batches(self._spool.events(self._place)):
                    self._send_or_refuse(events)
        except Exception as error:  # each store and file store raises its own kinds
            said = str(error).strip() or type(error).__name__
            self.trouble = redacted(said.splitlines()[0][:300])
            return False
        self.trouble = ""
        return True

    def release(self) -> None:
        """Let another process write to the run."""
        if self.run is not None and self.store is not None:
            with quiet():
                try:
                    self.store.client.delete_tag(self._run_id, WRITER)
                except (MlflowException, OSError):
                    return  # its process is known to have ended when it has

    def _send_or_refuse(self, events: list[Event]) -> None:
        """Send events; what the store refuses for good is set aside, and no more."""
        for event in self._refused_of(events):
            _refuse(self._spool, event[0], event[1])
            self.refused += event[0].points
            self.delivered -= event[0].points
        self._ack(events[-1], sum(event.points for event in events))

    def _refused_of(self, events: list[Event]) -> list[tuple[Event, str]]:
        """Send events, in ever smaller pieces if need be; return what was refused."""
        try:
            self._send(events)
        except (MlflowException, InputError, FileNotFoundError) as error:
            if getattr(error, "error_code", _REFUSALS[0]) not in _REFUSALS:
                raise
            pieces = [[e] for e in events] if len(events) > 1 else _halves(events[0])
            if len(pieces) < 2:
                return [(events[0], str(error))]
            return [each for piece in pieces for each in self._refused_of(piece)]
        return []

    def _ack(self, event: Event, points: int = 0) -> None:
        self._place, self._acked = event.end, event.seq
        self._spool.acked = event.seq
        self.delivered += points

    def _send(self, events: list[Event]) -> None:
        """Send several events that go together, or one of another kind."""
        event, body = events[0], events[0].body
        match event.kind:
            case kind if kind in _JOINED:
                self._send_batch(events)
            case "start":
                self._send_start(event)
            case "resume":
                self._send_resume(body)
            case "file":
                self._send_file(inside(self._spool.root, body["path"]), body["folder"])
            case "table":
                self._send_table(inside(self._spool.root, body["path"]), body["name"])
            case "image":
                self._send_image(inside(self._spool.root, body["path"]), event)
            case "end":
                self.ended = True
                if not self._given:
                    self._store.client.set_terminated(
                        self._run_id, body["status"], event.time
                    )

    def _send_batch(self, events: list[Event]) -> None:
        """Send metrics and tags at once: each request has a cost of its own."""
        points: list[Metric] = []
        tags: dict[str, str] = {}
        for event in events:
            step, values = event.body.get("step", 0), event.body.get("metrics", {})
            points += [Metric(k, x, event.time, step) for k, x in values.items()]
            tags |= event.body.get("tags", {})
        for start in range(0, max(len(points), 1), BATCH):
            self._store.client.log_batch(
                self._run_id,
                metrics=points[start : start + BATCH],
                tags=[RunTag(key, value) for key, value in tags.items()],
                synchronous=True,
            )
            tags = {}
        for part in (event.body["part"] for event in events if event.kind == "part"):
            for path in build_part(self._spool.root, part):
                self._send_file(path, path.parent.name)

    def _send_start(self, event: Event) -> None:
        """Send parameters and tags in one batch, and the cohort as a dataset."""
        body = event.body
        tags = {
            key: value
            for key, value in body["tags"].items()
            if self._made_with.get(key) != value
        }
        self._store.client.log_batch(
            self._run_id,
            params=[Param(key, value) for key, value in body["params"].items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
            synchronous=True,
        )
        if body["cohort"] is not None:
            self._send_cohort(_dataset(body["cohort"]))

    def _send_cohort(self, cohort: DatasetInput) -> None:
        """Send the dataset; runs of an experiment share the entry of one cohort."""
        try:
            self._store.client.log_inputs(self._run_id, [cohort])
        except MlflowException:
            # Another run made the entry at the same moment: now it is found.
            self._store.client.log_inputs(self._run_id, [cohort])

    def _send_resume(self, body: dict[str, Any]) -> None:
        if not self._given:
            self._store.client.update_run(self._run_id, status="RUNNING")
        self._send_tags(body["tags"])

    def _send_tags(self, tags: dict[str, str]) -> None:
        sent = [RunTag(key, value) for key, value in tags.items()]
        self._store.client.log_batch(self._run_id, tags=sent, synchronous=True)

    def _send_file(self, path: Path, folder: str) -> None:
        self._store.client.log_artifact(self._run_id, str(path), folder or None)

    def _send_table(self, path: Path, name: str) -> None:
        """Send a table as MLflow's own ``log_table`` leaves one."""
        folder = str(Path(name).parent)
        self._send_file(path, "" if folder == "." else folder)
        known = self._store.client.get_run(self._run_id).data.tags.get(_TABLES, "[]")
        tables = json.loads(known)
        entry = {"path": name, "type": "table"}
        if entry not in tables:
            value = json.dumps([*tables, entry])
            self._store.client.set_tag(self._run_id, _TABLES, value)

    def _send_image(self, path: Path, event: Event) -> None:
        """Send a picture and a small copy, named as MLflow's own ``log_image`` does.

        The last part of the names is random there, so that a picture that is sent
        again would be another one; here it says which picture it is.
        """
        key, step = event.body["key"], event.body["step"]
        same = uuid5(NAMESPACE_OID, f"{self._run_id} {key} {step}")
        stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{event.time}+{same}"
        with TemporaryDirectory(prefix="spectral-") as folder:
            whole = Path(folder) / f"{stem}.png"
            shutil.copyfile(path, whole)
            small = Path(folder) / f"{stem}+compressed.webp"
            with Image.open(path, formats=["PNG"]) as picture:
                picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
                picture.save(small)
            for each in (whole, small):
                self._send_file(each, "images")
        self._store.client.set_tag(self._run_id, _IMAGES, "True")

    @property
    def _run_id(self) -> str:
        if self.run is None:
            raise TrackingError("The run has not been found in its store yet.")
        return str(self.run.info.run_id)

    @property
    def _store(self) -> Store:
        if self.store is None:
            raise TrackingError("The store has not been opened yet.")
        return self.store

    def _attached(self, store: Store) -> Run:
        """Return the given run, if it can be written to."""
        run = store.client.get_run(self._given)
        if run.info.lifecycle_stage != "active":
            raise TrackingError(f"Run {self._given} was deleted: restore it first.")
        store.check_files(run.info.artifact_uri, f"Run {self._given}")
        return run

    def _own(self, store: Store) -> Run:
        """Return the run made for this spool, or make it, tagged as MLflow would."""
        if known := self._spool.info.get("run_id"):
            return store.client.get_run(known)
        start = next(self._spool.events()).body
        experiment = store.experiment(self._experiment)
        uid = start["tags"].get(UID) or self._spool.info["uid"]
        if not self._fresh:
            found = store.client.search_runs(
                [experiment.experiment_id], f"tags.`{UID}` = '{uid}'"
            )
            if found:
                return found[0]
        self._fresh = False  # whatever the answer, there may be one now
        tags = {k: v for k, v in start["tags"].items() if not k.startswith("mlflow.")}
        tags |= {
            UID: uid,
            WRITER: writer(self._spool.root),
            "mlflow.user": _user(),
            "mlflow.source.name": sys.argv[0] or "interactive",
            "mlflow.source.type": "LOCAL",
        }
        if commit := tags.get("spectral.git_commit") or git_state()[0]:
            tags["mlflow.source.git.commit"] = commit
        made = store.client.create_run(
            experiment.experiment_id, tags=tags, run_name=start["name"] or None
        )
        self._made_with = tags
        return made


def known_uri(spool: Spool, tracking_uri: str | None) -> str:
    """Return the store that a run belongs to, with the password if there is one.

    Args:
        spool: The run's.
        tracking_uri: What the user says; see `resolve_uri`. Of a run that knows its
            store, the same but for the password, which is never written down.

    Raises:
        InputError: If the user names another store, or the password is missing.
    """
    known = spool.info.get("tracking_uri")
    asked = resolve_uri(tracking_uri)
    if known is None or redacted(asked) == known:
        return asked
    if tracking_uri is not None or "***" in known:
        raise InputError(
            f"The run in {spool.root} belongs to {known}, not to {redacted(asked)}: "
            "give that address by --tracking or MLFLOW_TRACKING_URI"
            + (", with its password." if "***" in known else ".")
        )
    return str(known)


def _batches(events: Iterator[Event]) -> Iterator[list[Event]]:
    """Put following events together that are sent so, up to what a request takes."""
    batch: list[Event] = []
    points = 0
    for event in events:
        joins = {event.kind, *(each.kind for each in batch[-1:])} <= {*_JOINED}
        if batch and not (joins and points + event.points <= BATCH):
            yield batch
            batch, points = [], 0
        batch.append(event)
        points += event.points
    if batch:
        yield batch


def _halves(event: Event) -> list[list[Event]]:
    """Cut the metrics of an event in two; nothing else can be cut."""
    items = list(event.body["metrics"].items()) if event.kind == "metrics" else []
    middle = len(items) // 2
    parts = [part for part in (items[:middle], items[middle:]) if part]
    return [[event._replace(body=event.body | {"metrics": dict(p)})] for p in parts]


def _refuse(spool: Spool, event: Event, reason: str) -> None:
    """Set an event aside, with why the store did not take it."""
    line = {"seq": event.seq, "points": event.points, "reason": reason[:300]}
    line |= {"metrics": event.body["metrics"]} if event.kind == "metrics" else {}
    with (spool.folder / "refused.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _refusals(spool: Spool) -> list[dict[str, Any]]:
    path = spool.folder / "refused.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _dataset(cohort: dict[str, Any]) -> DatasetInput:
    """Return a cohort as MLflow describes data: name, digest, counts."""
    profile = {
        "num_rows": cohort["n"],
        "groups": cohort["groups"],
        "sha256": cohort["digest"],
    }
    source = cohort["source"]
    dataset = Dataset(
        name=Path(source).name or source or "cohort",
        digest=cohort["digest"][:_DIGEST],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
