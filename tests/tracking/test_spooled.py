import pytest

from spectral_mlops.tracking import SpoolTracker
from tests.conformance import TrackerSuite
from tests.tracking.readers import SpoolReader


class TestSpoolTracker(TrackerSuite):
    @pytest.fixture
    def tracker(self) -> SpoolTracker:
        return SpoolTracker("run")

    @pytest.fixture
    def reader(self, tracker: SpoolTracker) -> SpoolReader:
        return SpoolReader(tracker)
