"""Finished retrainings on disk: one line each, there for good once it is written."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_mlops.errors import InputError
from spectral_mlops.inference.exchange import by_family
from spectral_mlops.training.retrain_permute import TargetShuffle
from spectral_mlops.training.retrain_statistic import Cell, Statistic

VERSION = 2
"""Of what a line means; another number makes another test."""


def settings_of(shuffle: TargetShuffle, device: str = "cpu") -> dict[str, str]:
    """Digests of everything that a retraining depends on, by a name for people."""
    plan = shuffle.plan
    splits = [plan.probe and plan.probe.ids]
    splits += [part for f in plan.folds for part in (f.train_ids, f.validation_ids)]
    kinds = [[[x.tolist() for x in f] for f in by_family(k)] for k in shuffle.kinds]
    config = plan.config.model_dump(mode="json", exclude={"tracking"})
    return {
        "the settings in config.json": _digest(config),
        "the people": plan.cohort.digest,
        "the splits": _digest(splits),
        "the strata": _digest(
            [
                shuffle.strata,
                shuffle.moving,
                shuffle.plan.groupings,
                kinds,
            ]
        ),
        "the device": _digest(device),
        "the version of the test": str(VERSION),
    }


class RetrainLog:
    """The file of finished retrainings.

    A line that a killed process left unfinished is taken away.

    Args:
        path: Made, with its folder, if absent.
        settings: From `settings_of`.

    Raises:
        InputError: If the file is of other settings, or no such file at all.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self.path = path
        self.finished: dict[int, Statistic] = {}
        self.reasons: dict[Cell, str] = {}
        self.note = ""
        if path.exists() and self._read(dict(settings)):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as stream:
            _write(stream, {"settings": dict(settings)})

    def append(
        self,
        number: int,
        values: Statistic,
        reasons: Mapping[Cell, str] | None = None,
        note: str = "",
    ) -> None:
        """Keep one retraining; it is on disk when this returns."""
        rows = [
            [*cell, None if value != value else value] for cell, value in values.items()
        ]
        line: dict[str, Any] = {"permutation": number, "values": rows}
        if reasons:
            line["reasons"] = [[*cell, why] for cell, why in reasons.items()]
        if note:
            line["note"] = note
        with self.path.open("a", encoding="utf-8") as stream:
            _write(stream, line)
        self._take(line)

    def _read(self, settings: dict[str, str]) -> bool:
        """Take in what is there; False where nothing is."""
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            return False
        head, *lines = whole.splitlines()
        try:
            stored = json.loads(head)["settings"]
            self._refuse_others(stored, settings)
            for line in lines:
                self._take(json.loads(line))
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.path} is damaged; move it away, and all starts anew."
            ) from error
        if len(whole) < len(text):
            os.truncate(self.path, len(whole))
        return True

    def _refuse_others(
        self, stored: Mapping[str, str], settings: Mapping[str, str]
    ) -> None:
        """Refuse retrainings of another test, whose lines may mean something else."""
        differ = [
            name for name, digest in settings.items() if stored.get(name) != digest
        ]
        if differ:
            raise InputError(
                f"{self.path} was made with other values of {' and '.join(differ)}: "
                "restore those, or move the file away, and all starts anew."
            )

    def _take(self, line: Mapping[str, Any]) -> None:
        self.finished[int(line["permutation"])] = {
            Cell(*cell): float("nan") if value is None else float(value)
            for *cell, value in line["values"]
        }
        for *cell, why in line.get("reasons", ()):
            self.reasons[Cell(*cell)] = why
        self.note = line.get("note", self.note)


def _write(stream: Any, line: Mapping[str, Any]) -> None:
    stream.write(json.dumps(line, allow_nan=False) + "\n")
    stream.flush()
    os.fsync(stream.fileno())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
