"""The page of a study in a browser, sandboxed as MLflow shows it."""

import pytest

from spectral_mlops.report.sweep_page import study_page
from spectral_mlops.sweeps.answers import answers
from tests.report.test_html_browser import PLOTS, opened
from tests.sweeps.test_answers import known_study

pytestmark = pytest.mark.browser
__all__ = ["opened"]  # a fixture, found here by name


def test_every_plot_is_drawn_and_nothing_is_fetched(opened):
    frame, wrong = opened(study_page(answers(known_study())))
    drawn = dict(frame.evaluate(PLOTS))
    assert drawn == dict.fromkeys(
        [
            *("plot-drive", "plot-tradeoff", "plot-contours"),
            *("plot-slices-accuracy", "plot-slices-z"),
        ],
        True,
    )
    assert wrong() == []
    assert frame.evaluate("window.hit") is None
    points = frame.evaluate(
        "document.getElementById('plot-tradeoff').data.flatMap("
        "(t) => t.mode === 'markers' ? t.x : []).length"
    )
    assert points == 40
    # Divergence falls with dropout, across, and AUC rises with the rate, up.
    surfaces = frame.evaluate(
        "document.getElementById('plot-contours').data.filter("
        "(t) => t.type === 'contour').map((t) => [t.z[28][8], t.z[28][30], "
        "t.z[18][29], t.z[30][29]])"
    )
    (*_, low, high), (left, right, *_) = surfaces
    assert low < high - 0.1
    assert left > right + 2
    assert frame.evaluate("document.querySelectorAll('#contours select').length") == 2


def test_few_trials_leave_words_in_place_of_plots(opened):
    frame, wrong = opened(study_page(answers(known_study(3, "few"))))
    assert "nothing recorded" in frame.inner_text("#plot-drive")
    assert "nothing recorded" in frame.inner_text("#plot-contours")
    assert "there are 3" in frame.inner_text("#drive")
    assert wrong() == []
