"""Pages in a browser, in a sandboxed frame as MLflow shows them."""

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.report.html import report_page
from spectral_mlops.report.html_compare import comparison_page
from spectral_mlops.report.input_maps import InputMaps
from tests.report.pages import HOSTILE, stored
from tests.report.test_html import SITES
from tests.report.test_html_compare import finished
from tests.report.test_trends import table_of

pytestmark = pytest.mark.browser

FRAME = """page => {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.srcdoc = page;
  frame.style.cssText = "width:1200px;height:900px";
  document.body.replaceChildren(frame);
}"""
PLOTS = """[...document.querySelectorAll(".plot")].map(
  (plot) => [plot.id, Boolean(plot.querySelector(".main-svg"))])"""
ROWS = """[...document.querySelectorAll("#tables tbody tr")].filter(
  (row) => !row.hidden).length"""
DRAWN = "() => document.querySelectorAll('.plot .main-svg').length"


@pytest.fixture
def opened(browser):
    """Open a page in a sandboxed frame; gives the frame, and what went wrong."""
    page = browser.new_page(viewport={"width": 1250, "height": 950})
    wrong = []
    page.on("console", lambda message: wrong.append((message.type, message.text)))
    page.on("pageerror", lambda error: wrong.append(("error", str(error))))
    page.on("request", lambda sent: wrong.append(("request", sent.url)))

    def own(entry):
        """What a page asks of itself: pictures that it holds."""
        return entry[0] == "request" and entry[1].startswith(("data:", "blob:"))

    def open_it(text):
        page.evaluate(FRAME, text)
        frame = page.frames[-1]
        frame.wait_for_selector(".plot .main-svg", timeout=60_000)
        frame.wait_for_function("document.readyState === 'complete'")
        return frame, lambda: [entry for entry in wrong if not own(entry)]

    yield open_it
    page.close()


def whole(**tables):
    """A run with all there is to draw, and names as bad as can be."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(2, 6, 6))
    maps = InputMaps(
        {"gradient": {HOSTILE: stack, "all": stack}},
        {"gradient": {HOSTILE: np.array([0.5, 0.2]), "all": np.array([0.5, 0.2])}},
        {"gradient": HOSTILE}, ("SC1", "SC2", "AU1", "AU2", "VI1", "VI2"),
    )  # fmt: skip
    controls = pd.DataFrame({"control": [f"{i} {HOSTILE}" for i in range(12)]})
    controls["p"] = np.linspace(0.9, 0.1, 12)
    return stored(
        groups=(HOSTILE, "<b>b</b>", "c"), layers=(HOSTILE, "out"), name=HOSTILE,
        verdict=HOSTILE, maps=maps,
        tables={"controls": controls, **tables},
    )  # fmt: skip


def choose(frame, menu, label):
    frame.select_option(f"#choose label:has-text('{menu}') select", label=label)


def test_a_report_draws_everything_in_the_frame_and_asks_for_nothing(opened):
    apart = table_of((HOSTILE, "<b>b</b>"), (HOSTILE, "out"))
    frame, wrong = opened(report_page(whole(trends=apart)))
    choose(frame, "quantity", "gradient")
    plots = frame.evaluate(PLOTS)
    empty = [name for name, drawn in plots if not drawn]
    assert empty == ["plot-counts"]  # of cost/pending the run has none
    assert len(plots) == 15
    assert frame.evaluate("window.hit") is None
    names = frame.locator("#plot-spectra .legendtext").all_text_contents()
    assert "<b>b</b>" in names  # Plotly reads tags in names unless they are escaped
    assert wrong() == []


NAMES = """id => [...document.querySelectorAll(`#plot-${id} .legendtext`)].map(
  (text) => text.textContent)"""


def test_ranks_and_norms_apart_have_bands_and_stars(opened):
    frame, wrong = opened(report_page(stored(tables={"trends": table_of()})))
    choose(frame, "quantity", "gradient")
    for plot in ("rank-apart", "norm-apart"):
        names = frame.evaluate(NAMES, plot)
        assert names == [
            "relabelled: 5 to 95 %", "relabelled: mean", "control – patient",
            "p max ≤ 0.05",
        ]  # fmt: skip
    choose(frame, "layer", "out")
    assert frame.locator("#plot-rank-apart .nothing").count() == 1
    assert "p max ≤ 0.05" not in frame.evaluate(NAMES, "norm-apart")
    choose(frame, "quantity", "activation")
    nothing = frame.locator("#plot-norm-apart .nothing").inner_text()
    assert "gradients alone" in nothing
    assert wrong() == []


def test_menus_change_what_is_drawn(opened):
    frame, wrong = opened(report_page(whole()))
    title = "document.querySelector('#plot-spectra .gtitle').textContent"
    before = frame.evaluate(title)
    assert "training batches" in before
    choose(frame, "people", "probe (held-out people)")
    choose(frame, "quantity", "adjoint")
    choose(frame, "layer", "out")
    after = frame.evaluate(title)
    assert "out, adjoint, probe" in after
    frame.locator("#spectra-bar input[type=range]").fill("0")
    assert "epoch −1" in frame.evaluate(title)
    frame.locator("#tables summary").first.wait_for()
    frame.locator("#tables input.search").first.fill("11 ")
    assert frame.evaluate(ROWS) == 1
    frame.locator("#tables input.search").first.fill("")
    frame.locator("#tables th").last.click()
    first = "document.querySelector('#tables tbody tr').textContent"
    assert frame.evaluate(first).startswith("11 ")
    assert wrong() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1, "folds": 1, "probe": False, "groups": ("only",)},
        {"groups": SITES, "layers": ("l",), "epochs": 1},
    ],
    ids=["one epoch, one group", "20 groups"],
)
def test_small_and_wide_runs_are_drawn_too(opened, changes):
    run = stored(**changes)
    run.spectra.loc[:2, "effective_rank"] = np.nan
    run.divergences["z"] = np.nan
    frame, wrong = opened(report_page(run))
    assert frame.evaluate(DRAWN) > 5
    assert wrong() == []


def test_a_comparison_draws_everything(opened, tmp_path):
    runs = [finished(tmp_path, "a", "p1"), finished(tmp_path, "b", "p2")]
    records = [stored(name=HOSTILE), stored(seed=1, epochs=2, layers=("out", "new"))]
    frame, wrong = opened(comparison_page(runs, records))
    assert all(drawn for _, drawn in frame.evaluate(PLOTS))
    assert "no common yardstick" in frame.locator("#scatter-note").inner_text()
    choose(frame, "layer", "new")
    assert wrong() == []
