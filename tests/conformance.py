"""Suites that every implementation of a contract must pass."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.records import CohortSummary, EpochRecord
from spectral_mlops.tracking import Tracker
from tests.tracking.factory import Epoch, epoch, in_order, record, same

COHORT = CohortSummary("0123456789abcdef" * 4, "/data/cobre", 12, {"patient": 4})


def picture(path: Path, width: int) -> Path:
    """Write a PNG of its own kind per width."""
    Image.new("RGB", (width, 5), (width, 0, 0)).save(path)
    return path


class Reader(ABC):
    """Gives back what a tracker stored; asked after ``close``."""

    @abstractmethod
    def params(self) -> dict[str, str]: ...

    @abstractmethod
    def tags(self) -> dict[str, str]: ...

    @abstractmethod
    def history(self, key: str) -> list[tuple[int, float]]: ...

    @abstractmethod
    def keys(self) -> set[str]: ...

    @abstractmethod
    def records(self) -> list[EpochRecord]: ...

    @abstractmethod
    def table(self, name: str) -> pd.DataFrame: ...

    @abstractmethod
    def file(self, path: str) -> bytes: ...

    @abstractmethod
    def images(self) -> dict[tuple[str, int], bytes]: ...

    @abstractmethod
    def status(self) -> str: ...


class TrackerSuite:
    """Asks for the fixtures ``tracker`` and ``reader`` (of that tracker)."""

    def test_gives_back_params_tags_and_every_epoch(
        self, tracker: Tracker, reader: Reader
    ) -> None:
        tracker.start("one", {"depth": 3, "lr": 1e-3}, {"kind": "train"}, COHORT)
        logged = [epoch(number) for number in range(12)]
        for item in logged:
            tracker.log(item, metrics={"train/loss": 1 / (1 + item.records[0].epoch)})
        tracker.log_metrics({"final/accuracy": np.float32(0.75)}, step=np.int64(11))
        tracker.close()
        assert reader.params().items() >= {"depth": "3", "lr": "0.001"}.items()
        assert reader.tags()["kind"] == "train"
        assert reader.history("train/loss") == [(n, 1 / (1 + n)) for n in range(12)]
        assert reader.history("final/accuracy") == [(11, 0.75)]
        assert len(reader.history("div_grad/00_layers.0.linear1")) == 12
        expected = in_order([each for item in logged for each in item.records])
        stored = in_order(reader.records())
        assert len(stored) == len(expected)
        assert all(map(same, stored, expected))
        assert all(item.released for item in logged)
        assert reader.status() == "FINISHED"
        assert tracker.undelivered == 0

    def test_starts_by_itself(self, tracker: Tracker, reader: Reader) -> None:
        tracker.log(epoch(4))
        assert tracker.run_id
        assert tracker.where
        tracker.close()
        assert reader.history("spectral/nonfinite") == [(4, 1.0)]

    def test_untrained_network_is_epoch_minus_one(
        self, tracker: Tracker, reader: Reader
    ) -> None:
        tracker.log(epoch(-1))
        tracker.close()
        assert [step for step, _ in reader.history("spectral/grad_div")] == [-1]

    def test_not_a_number_is_counted_never_sent(
        self, tracker: Tracker, reader: Reader
    ) -> None:
        tracker.log(epoch(), {"train/loss": float("nan"), "val/loss": float("inf")})
        tracker.close()
        assert not {"train/loss", "val/loss"} & reader.keys()
        assert reader.history("nonfinite/metrics") == [(0, 2.0)]
        marked = [s for r in reader.records() for s in r.spectra if s.status != "ok"]
        assert len(marked) == 1
        assert np.isnan(marked[0].values).all()

    def test_stores_tables_texts_and_files(
        self, tracker: Tracker, reader: Reader, tmp_path: Path
    ) -> None:
        frame = pd.DataFrame({"layer": ["a", "b"], "z": [1.5, None]})
        tracker.log_table(frame, "layers")
        frame.loc[0, "z"] = 99.0
        (tmp_path / "weights.bin").write_bytes(b"\x00\x01")
        tracker.log_file(tmp_path / "weights.bin", "checkpoints")
        (tmp_path / "weights.bin").unlink()
        tracker.log_text("lr = 0.1 # σ\n", "settings/config.toml")
        with pytest.raises(InputError, match="'layers' is written already"):
            tracker.log_table(frame, "layers")
        tracker.close()
        assert reader.table("layers")["z"].tolist()[0] == 1.5
        assert reader.file("checkpoints/weights.bin") == b"\x00\x01"
        assert reader.file("settings/config.toml").decode() == "lr = 0.1 # σ\n"

    def test_stores_images_by_step_and_later_tags(
        self, tracker: Tracker, reader: Reader, tmp_path: Path
    ) -> None:
        tracker.start("one", tags={"kind": "train", "stage": "first"})
        pictures = {}
        places = [("maps/erank", 0), ("maps/erank", 7), ("maps/div.x y", 7)]
        for width, (key, step) in enumerate(places, start=3):
            path = picture(tmp_path / "picture.png", width)
            tracker.log_image(path, key, step)
            pictures[key, step] = path.read_bytes()
        tracker.log_tags({"stage": "second"})
        (tmp_path / "text.png").write_text("no picture")
        with pytest.raises(InputError, match="no PNG"):
            tracker.log_image(tmp_path / "text.png", "maps/erank")
        with pytest.raises(InputError, match="letters of ASCII"):
            tracker.log_image(path, "maps/σ")
        tracker.close()
        assert reader.images() == pictures
        assert reader.tags()["kind"] == "train"
        assert reader.tags()["stage"] == "second"

    def test_keeps_to_the_profile_and_says_what_it_left_out(
        self, tracker: Tracker, reader: Reader
    ) -> None:
        tracker.start("one", profile="sweep", epochs=250)
        for number in (0, 1, 2, 249):
            tracker.log(epoch(number), {"val/loss": number})
        tracker.log_metrics({f"mine/{n}": n for n in range(100)}, step=249)
        tracker.close()
        keys = reader.keys()
        assert len(keys | {"cost/tracking_s", "cost/pending"}) == 40
        assert {"spectral/grad_div", "excess/adjoint", "mine/0"} <= keys
        assert not {key for key in keys if key.startswith(("div_", "erank_"))}
        assert "erank_grad/all" in reader.tags()["spectral.dropped_keys"]
        # every third epoch, the last among them
        assert [step for step, _ in reader.history("val/loss")] == [0, 249]
        assert len({record.epoch for record in reader.records()}) == 4

    @pytest.mark.parametrize(
        ("error", "status"),
        [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")],
    )
    def test_exception_ends_the_run_and_keeps_what_there_is(
        self,
        tracker: Tracker,
        reader: Reader,
        error: type[BaseException],
        status: str,
    ) -> None:
        def train() -> None:
            with tracker:
                tracker.log(epoch(0))
                raise error("out of memory")

        with pytest.raises(error, match="out of memory"):
            train()
        assert reader.status() == status
        assert same(in_order(reader.records())[-1], record(0))

    def test_nothing_after_close(self, tracker: Tracker, reader: Reader) -> None:
        tracker.log(epoch(0))
        tracker.close("KILLED")
        tracker.close("FINISHED")
        with pytest.raises(TrackingError, match="closed"):
            tracker.log(epoch(1))
        with pytest.raises(TrackingError, match="closed"):
            tracker.start("again")
        assert reader.status() == "KILLED"

    def test_starts_once(self, tracker: Tracker) -> None:
        tracker.start("one")
        with pytest.raises(TrackingError, match="start it once"):
            tracker.start("two")
        tracker.close()

    def test_refuses_what_no_store_takes(self, tracker: Tracker) -> None:
        with pytest.raises(InputError, match=r"'config' has 6001 characters"):
            tracker.start("one", {"config": "x" * 6001})
        with pytest.raises(InputError, match=r"Parameter 'layers' is \[1\]"):
            tracker.start("one", {"layers": [1]})  # type: ignore[dict-item]
        tracker.start("one")
        for name in ("a//b", "/a", "a/", "../a", "a[0]", "", "x" * 251):
            with pytest.raises(InputError, match="Metric"):
                tracker.log_metrics({name: 1.0})
        with pytest.raises(InputError, match="is one number"):
            tracker.log_metrics({"a": np.zeros(2)})
        with pytest.raises(InputError, match="whole number"):
            tracker.log_metrics({"a": 1.0}, step=2.7)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"those of \[0, 1\]"):
            tracker.log(Epoch([record(0), record(1)]))
        with pytest.raises(InputError, match="'spectral/grad_div' is computed"):
            tracker.log(epoch(), {"spectral/grad_div": 1.0})
        with pytest.raises(InputError, match="no file"):
            tracker.log_file("absent.bin")
        with pytest.raises(InputError, match="FINISHED, FAILED, KILLED"):
            tracker.close("done")  # type: ignore[arg-type]
        tracker.close()
