"""The page as a run leaves it, and as the command makes it anew."""

import json
from pathlib import Path

from spectral_mlops.report import html
from spectral_mlops.report.stored import read_stored
from spectral_mlops.tracking import MemoryTracker, open_tracker
from spectral_mlops.training import make_plan, run
from tests.report.test_html import Read


def data_of(page):
    return json.loads(Read(page.read_text(encoding="utf-8")).data)["report"]


def test_a_run_leaves_its_page_and_any_reader_makes_the_same(
    small, tmp_path, uri, command
):
    plan = make_plan(small(), Path())
    folder = tmp_path / "one"
    with open_tracker(uri, "pages", folder) as tracker:
        done = run(plan, tracker, folder, name="one")
    assert done.page == folder / "report.html"
    assert done.trouble == ""
    left = data_of(done.page)
    assert left["layers"] == ["hidden_1", "hidden_2", "output"]
    assert left["groupings"] == {"group": ["control", "patient"]}
    assert {cell["source"] for cell in left["spectra"]} == {"train", "probe"}
    assert set(left["where"]["quantities"]) == {"gradient", "activation"}
    assert left["where"]["size"] == 12
    assert {m["tested"] for m in left["maps"] if m["source"] == "probe"} == {"joint"}

    code, out, _ = command("report", folder, "-o", tmp_path / "again.html")
    assert code == 0
    assert "again.html" in out
    again = data_of(tmp_path / "again.html")
    for part in ("spectra", "trajectories", "maps", "where", "influence", "styles"):
        assert again[part] == left[part]

    whole = read_stored(tracker.run_id, uri)
    assert whole.maps is not None
    assert whole.final == read_stored(folder).final
    code, _, _ = command("report", tracker.run_id, "--tracking", uri)
    assert code == 0
    from_store = data_of(Path(f"report-{tracker.run_id}.html"))
    assert from_store["spectra"] == left["spectra"]


def test_two_runs_are_compared_on_a_page(small, tmp_path, command):
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        plan = make_plan(small(training={"seed": seed}), Path())
        with open_tracker("spool", None, folder) as tracker:
            run(plan, tracker, folder, name=folder.name, figures=False)
    code, out, _ = command("compare", *folders)
    assert code == 0
    assert "compare.html" in out
    text = Path("compare.html").read_text(encoding="utf-8")
    data = json.loads(Read(text).data)["compare"]
    assert [one["name"] for one in data["runs"]] == ["one", "two"]
    assert data["yardsticks"] == [0, 0]
    assert all(one["spectra"] and one["maps"] for one in data["runs"])
    assert "training.seed" in text
    code, out, _ = command("compare", folders[0])
    assert code == 0
    assert "Open it" not in out


def test_runs_in_mlflow_are_compared_as_their_folders_are(
    small, tmp_path, uri, command
):
    plan = make_plan(small(), Path())
    folder = tmp_path / "one"
    with open_tracker(uri, "pages", folder) as tracker:
        run(plan, tracker, folder, name="one", figures=False)
    kept = (folder / "splits" / "splits.json").read_bytes()
    for words in ((folder, folder), (tracker.run_id, folder)):
        code, out, err = command("compare", *words, "--tracking", uri)
        assert (code, err) == (0, ""), words
        assert "share the probe" in out
    text = Path("compare.html").read_text(encoding="utf-8")
    first, second = json.loads(Read(text).data)["compare"]["runs"]
    assert (first["name"], second["name"]) == (tracker.run_id, "one")
    for part in ("final", "curves", "spectra", "maps", "yardstick", "probe"):
        assert first[part] == second[part], part
    assert (folder / "splits" / "splits.json").read_bytes() == kept
    code, _, err = command("compare", "0" * 32, folder, "--tracking", uri)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    code, _, err = command("compare", tmp_path / "absent", "--tracking", uri)
    assert (code, "there is no such folder" in err) == (2, True)


def test_a_page_that_cannot_be_drawn_costs_one_notice_and_no_run(
    small, tmp_path, monkeypatch
):
    def fail(*_):
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(html, "write_report", fail)
    tracker = MemoryTracker()
    done = run(make_plan(small(), Path()), tracker, tmp_path / "one", name="one")
    assert done.page is None
    assert done.trouble == "The page report.html was not drawn: no ink"
    assert "report.html" not in tracker.files
    assert done.result.verdict


def test_no_page_where_no_figures_are_asked_for(small, tmp_path):
    tracker = MemoryTracker()
    plan = make_plan(small(), Path())
    done = run(plan, tracker, tmp_path / "one", name="one", figures=False)
    assert done.page is None
    assert not {"report.html", "directions/maps.npz"} & set(tracker.files)


def test_what_is_no_run_is_said_in_a_sentence(command, tmp_path):
    (tmp_path / "x").mkdir()
    code, out, err = command("report", tmp_path / "x")
    assert code == 2
    assert "no run's folder" in err
    assert not out
