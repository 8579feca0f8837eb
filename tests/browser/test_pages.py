"""MLflow's own pages on three finished runs, in a real browser."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.browser]
WAIT = 120_000  # milliseconds; a page on a busy machine takes its time
NAMES = {"width-8", "width-16", "width-32"}


def wait_for_charts(visit, number):
    visit.page.wait_for_function(
        "number => document.querySelectorAll('.js-plotly-plot').length >= number",
        arg=number,
        timeout=WAIT,
    )
    visit.page.wait_for_timeout(2000)  # lines are drawn one after the other


def section(visit, name):
    return visit.page.get_by_text(name, exact=True).first


def test_prepared_view_opens_with_divergence_beside_accuracy(visit, runs, keep):
    visit.page.goto(runs.view)
    wait_for_charts(visit, 6)
    shown = visit.page.inner_text("body")
    assert "You're viewing a shared view" in shown
    for name in ("Divergence and accuracy", "Groups", "Layers"):
        assert section(visit, name).is_visible()
    for key in ("divergence/gradient", "divergence/activation", "divergence/adjoint",
                "val/auc", "final/divergence_activation vs. final/auc"):  # fmt: skip
        assert key in shown
    divergence, accuracy, loss, *points = visit.charts()[:6]
    for lines, keys in ((divergence, 3), (accuracy, 2), (loss, 2)):
        assert set(lines) == NAMES
        assert len(lines) >= keys * len(NAMES)
    assert len(points) == 3
    for plot in range(3, 6):
        dots = visit.page.evaluate(
            "n => document.querySelectorAll('.js-plotly-plot')[n].data[0].x.length",
            plot,
        )
        assert dots == 3
    assert visit.outside == []
    picture = keep("divergence-and-accuracy", visit.page.screenshot())
    assert picture.stat().st_size < 200_000


def test_groups_and_layers_of_the_prepared_view(visit, runs, keep):
    visit.page.goto(runs.view)
    wait_for_charts(visit, 6)
    section(visit, "Divergence and accuracy").click()  # closes it
    section(visit, "Groups").scroll_into_view_if_needed()
    wait_for_charts(visit, 6)
    shown = visit.page.inner_text("body")
    for key in ("val_acc/control", "val_acc/patient", "erank_act/patient"):
        assert key in shown
    groups = visit.charts()[:6]
    assert all(set(lines) == NAMES for lines in groups)
    picture = keep("groups", visit.page.screenshot())
    assert picture.stat().st_size < 200_000
    section(visit, "Groups").click()
    wait_for_charts(visit, 6)
    assert "div_act/00_hidden_1 vs " in visit.page.inner_text("body")
    assert all(set(lines) == NAMES for lines in visit.charts()[:6])
    keep("layers", visit.page.screenshot())


def test_plain_chart_page_has_a_line_per_run_in_our_sections(visit, runs, keep):
    address = f"{runs.address}/#/experiments/{runs.experiment_id}/runs"
    visit.page.goto(f"{address}?compareRunsMode=CHART")
    wait_for_charts(visit, 1)
    for name in ("divergence", "div_grad", "erank_act", "probe_adj", "val", "train"):
        assert section(visit, name).is_visible()
    search = visit.page.get_by_placeholder("Search metric charts")
    for key in ("divergence/", "val_acc/", "probe_act/"):
        search.fill(key)
        visit.page.wait_for_timeout(3000)
        wait_for_charts(visit, 2)
        charts = visit.charts()
        assert all(set(lines) == NAMES for lines in charts), key
    assert visit.outside == []
    keep("plain", visit.page.screenshot())


def test_page_of_a_run_is_drawn_among_its_files(visit, runs, keep):
    address = f"{runs.address}/#/experiments/{runs.experiment_id}/runs"
    visit.page.goto(f"{address}/{runs.run_ids[0]}/artifacts/report.html")
    visit.page.wait_for_selector("iframe", timeout=WAIT)
    frame = visit.page.frame_locator("iframe").first
    frame.locator(".plot .main-svg").first.wait_for(timeout=WAIT)
    assert frame.locator(".plot .main-svg").count() > 3
    assert visit.outside == []
    # What MLflow's own page asks its server for in vain is not ours.
    ours = [said for said in visit.errors if not said.startswith(runs.address)]
    assert ours == []
    keep("report", visit.page.screenshot())
