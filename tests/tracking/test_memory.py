import pytest

from spectral_mlops.tracking import MemoryTracker
from tests.conformance import TrackerSuite
from tests.tracking.factory import epoch
from tests.tracking.readers import MemoryReader


class TestMemoryTracker(TrackerSuite):
    @pytest.fixture
    def tracker(self) -> MemoryTracker:
        return MemoryTracker()

    @pytest.fixture
    def reader(self, tracker: MemoryTracker) -> MemoryReader:
        return MemoryReader(tracker)


def test_frame_has_one_row_per_spectrum() -> None:
    tracker = MemoryTracker()
    tracker.log(epoch(2))
    frame = tracker.to_frame()
    assert len(frame) == 2 * 3 * 3 * 3
    assert frame["values"].map(len).tolist()[:2] == [5, 5]
    assert set(frame["epoch"]) == {2}
    assert len(tracker.to_frame("divergences")) == 2 * 9
