"""MLflow's cards of images, in a real browser."""

import numpy as np
import pytest
from PIL import Image

from spectral_mlops.tracking import MlflowTracker

pytestmark = [pytest.mark.slow, pytest.mark.browser]
WAIT = 60_000  # milliseconds; a page on a busy machine takes its time
SIZE = (96, 60)
DRAWN = """wanted => [...document.images].filter(
    image => image.complete && image.naturalWidth === wanted[0]
        && image.naturalHeight === wanted[1] && image.clientWidth > 20
).length"""
"""How many pictures of a size are drawn, not only asked for."""


def test_a_logged_image_is_drawn_on_the_runs_page(visit, server, tmp_path, keep):
    path = tmp_path / "map.png"
    with MlflowTracker(
        experiment="pictures", tracking_uri=server.address, folder=tmp_path / "run"
    ) as tracker:
        tracker.start("pictured")
        for step in range(3):
            shade = np.linspace(0, 80 * (step + 1), SIZE[0] * SIZE[1] * 3)
            Image.fromarray(shade.reshape(SIZE[1], SIZE[0], 3).astype(np.uint8)).save(
                path
            )
            tracker.log_metrics({"val/auc": 0.5 + 0.1 * step}, step)
            tracker.log_image(path, "maps/erank", step)
    assert tracker.undelivered == 0
    where = tracker.where.split()[-1]
    visit.page.goto(f"{where.removesuffix('/')}/model-metrics")
    visit.page.wait_for_function(
        f"wanted => ({DRAWN})(wanted) > 0", arg=SIZE, timeout=WAIT
    )
    assert visit.page.get_by_text("maps/erank").first.is_visible()
    assert visit.outside == []
    keep("image-card", visit.page.screenshot())
