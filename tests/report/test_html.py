"""The page of a run: whole, safe, and right about its numbers."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.records import Spectrum
from spectral_mlops.report.colours import group_styles
from spectral_mlops.report.html import report_data, report_page, write_report
from spectral_mlops.report.html_data import (
    divergence_maps,
    frame_of,
    mean_scale,
    rank_positions,
    spectra_cells,
    thinned,
    trajectory_cells,
)
from spectral_mlops.report.html_page import embed
from spectral_mlops.report.html_people import connectomes, influence_maps, performance
from spectral_mlops.report.html_tables import table_html
from spectral_mlops.report.input_maps import InputMaps, read_maps, write_maps
from spectral_mlops.report.stored import read_stored
from tests.report.pages import HOSTILE, divergence, spectrum, stored

SITES = tuple(f"site {i}" for i in range(20))
SOURCES = ("train", "probe")


class Read(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.data, self.inside, self.text = [], "", None, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") if tag == "script" else tag

    def handle_data(self, data):
        if self.inside == "data":
            self.data += data
        elif self.inside not in (None, "script", "style"):
            self.text.append(data)

    def handle_endtag(self, tag):
        self.inside = None


def frame_of_run(run):
    groupings = run.config["comparison"]["groupings"]
    return frame_of(run.spectra, run.divergences, groupings)


def test_embedded_data_come_back_and_cannot_end_the_script():
    data = {
        HOSTILE: [np.float32(0.5), np.nan, -np.inf, np.int64(3), None, True],
        "array": np.array([[1.0, np.nan]]),
        "line ends": "\u2028",
    }
    text = embed(data)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {
        HOSTILE: [0.5, None, None, 3, None, True],
        "array": [[1.0, None]],
        "line ends": "\u2028",
    }


def test_names_stay_names():
    """Groups, layers, notes, tables: whatever a user writes is text in the page."""
    control = pd.DataFrame({HOSTILE: [HOSTILE], "p": [0.2]})
    run = stored(
        groups=(HOSTILE, "b"), layers=(HOSTILE,), grouping=HOSTILE, name=HOSTILE,
        verdict=f"Verdict: {HOSTILE}\n{HOSTILE}", tables={"controls": control},
        pictures={HOSTILE: b"PNG"},
    )  # fmt: skip
    page = Read(report_page(run))
    scripts = [tag for tag, _ in page.tags if tag == "script"]
    assert len(scripts) == 4  # data, Plotly and two of ours
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes or attributes["src"].startswith("data:")
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert HOSTILE in "".join(page.text)
    data = json.loads(page.data)["report"]
    assert data["layers"] == [HOSTILE]
    assert data["groupings"] == {HOSTILE: [HOSTILE, "b"]}


def test_only_the_pages_own_scripts_may_run():
    import base64
    import hashlib

    page = report_page(stored())
    policies = [a["content"] for t, a in Read(page).tags if "http-equiv" in a]
    assert len(policies) == 1
    assert "unsafe-inline" not in policies[0].split("style-src")[0]
    bodies = page.split("<script>")[1:]
    for body in bodies:
        script = body.split("</script>")[0].encode()
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        assert f"'sha256-{digest}'" in policies[0]


def slow_mean(run, epoch, length, **key):
    """The mean spectrum by records, one number at a time."""
    folds = {}
    for row in run.spectra.to_dict("records"):
        if row["epoch"] != epoch or any(row[k] != v for k, v in key.items()):
            continue
        own = {name: row[name] for name in ("rows", "loss_scale")}
        where = [row[name] for name in ("layer", "quantity", "grouping", "group")]
        record = spectrum(*where, row["values"], row["samples"], **own)
        folds.setdefault(row["fold"], []).append(record.scaled("mean"))
    out = []
    for place in range(length):
        means = [
            sum(v[place] if place < len(v) else 0.0 for v in fold) / len(fold)
            for fold in folds.values()
        ]
        out.append(sum(means) / len(means))
    return out


@pytest.mark.parametrize("quantity", ["gradient", "activation", "adjoint"])
def test_mean_spectra_are_those_of_a_slow_loop(quantity):
    run = stored(groups=("a", "bb", "ccc"), epochs=2)
    extra = run.spectra.iloc[[-1, 0]].copy()  # batches of their own, of other lengths
    extra["values"] = [np.array([3.0, 1.0]), np.array([2.0])]
    spectra = pd.concat([run.spectra, extra], ignore_index=True)
    run = stored(groups=("a", "bb", "ccc"), epochs=2, spectra=spectra)
    frame = frame_of_run(run)
    cells = [c for c in spectra_cells(spectra, frame) if c["quantity"] == quantity]
    assert len(cells) == 2 * 2 * 4  # sources, layers, groups and everyone
    for cell in cells:
        key = {k: cell[k] for k in ("source", "layer", "quantity", "grouping", "group")}
        for epoch, values in zip(cell["epochs"], cell["values"], strict=True):
            expected = slow_mean(run, epoch, len(values), **key)
            np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_the_scale_is_that_of_the_records():
    records = [
        spectrum("l", quantity, "g", "a", [2.0, 1.0], samples, rows=rows)
        for quantity in ("gradient", "activation", "adjoint")
        for samples, rows in ((3, 3), (5, 20))
    ]
    frame = pd.DataFrame(
        [{k: getattr(r, k) for k in ("quantity", "samples", "rows", "loss_scale")}
         for r in records]
    )  # fmt: skip
    expected = [record.factor_of("mean") for record in records]
    np.testing.assert_allclose(mean_scale(frame), expected)
    assert isinstance(records[0], Spectrum)


def test_trajectories_average_batches_then_folds():
    def rows(fold, ranks):
        return [
            {
                "epoch": 0, "fold": fold, "source": "train", "step": step,
                "layer": "l", "quantity": "gradient", "grouping": "g", "group": "a",
                "samples": 4, "rows": 4, "loss_scale": 0.5, "status": "ok",
                "values": np.ones(1), "effective_rank": rank, "frobenius_norm": 6.0,
            }
            for step, rank in enumerate(ranks)
        ]  # fmt: skip

    spectra = pd.DataFrame(rows(0, [1.0, 3.0]) + rows(1, [6.0]))
    blank = stored(spectra=spectra, divergences=stored().divergences[:0])
    frame = frame_of_run(blank)
    (cell,) = trajectory_cells(spectra, frame)
    assert cell["epochs"] == [0]
    assert cell["effective_rank"] == [[4.0], [2.828]]  # of 2 and 6
    assert cell["frobenius_norm"] == [[3.0], [0.0]]  # over c·n = 2
    assert cell["samples"] == 4.0


def rows_of(*more):
    """Divergences of the probe, one row a mapping."""
    base = divergence("l", "gradient", "g", "a", "b")
    keep = {name: getattr(base, name) for name in base.__slots__}
    return pd.DataFrame([{**keep, "epoch": 0, "fold": 0, **one} for one in more])


def test_a_map_marks_only_what_was_tested_together():
    several = rows_of({"z": 3.0, "value": 0.2}, {"fold": 1, "z": 1.0, "value": 0.4})
    blank = pd.DataFrame()
    frame = frame_of(stored().spectra[:0], several)
    (one,), _ = divergence_maps(several, blank, frame)
    assert one["tested"] == "folds"
    assert (one["value"], one["z"], one["p_max"]) == ([[0.3]], [[2.0]], [[None]])
    joint = pd.DataFrame(
        {
            "quantity": "gradient", "group_a": ["a"], "group_b": ["b"], "layer": ["l"],
            "epoch": [0], "t": [3.5], "p_max": [0.01], "cluster_p": [np.nan],
        }
    )  # fmt: skip
    (one,), _ = divergence_maps(several, joint, frame)
    assert one["tested"] == "joint"
    assert (one["z"], one["p_max"]) == ([[3.5]], [[0.01]])
    (one,), _ = divergence_maps(several[:1], blank, frame)
    assert one["tested"] == "one"
    assert (one["z"], one["p_max"]) == ([[3.0]], [[0.04]])


def test_a_joint_test_is_never_lent_to_another_grouping():
    rows = rows_of({}, {"fold": 1}, {"grouping": "h"}, {"grouping": "h", "fold": 1})
    joint = pd.DataFrame(
        {
            "quantity": "gradient", "group_a": ["a"], "group_b": ["b"], "layer": ["l"],
            "epoch": [0], "t": [3.5], "p_max": [0.01], "cluster_p": [0.01],
        }
    )  # fmt: skip
    frame = frame_of(stored().spectra[:0], rows, ["g"])
    maps, _ = divergence_maps(rows, joint, frame)
    assert [(m["grouping"], m["tested"]) for m in maps] == [
        ("g", "joint"),
        ("h", "folds"),
    ]
    trained = rows.assign(source="train")
    maps, _ = divergence_maps(trained, joint, frame)
    assert {m["tested"] for m in maps} == {"folds"}


def test_missing_values_are_gaps():
    blank = dict.fromkeys(("value", "null_sd", "z"), np.nan)
    rows = rows_of({**blank, "reason": "rank 1"})
    frame = frame_of(stored().spectra[:0], rows)
    (one,), _ = divergence_maps(rows, pd.DataFrame(), frame)
    assert one["value"] == [[None]]
    assert one["reasons"] == ["rank 1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": ("only",)},
        {"groups": SITES, "layers": ("l",), "epochs": 1, "folds": 1},
        {"epochs": 1, "folds": 1, "probe": False},
        {"quantities": ("adjoint",), "verdict": "", "final": {}, "influence": []},
        {"config": {}, "metrics": stored().metrics[:0]},
        {"spectra": stored().spectra[:0], "divergences": stored().divergences[:0]},
        {"divergences": stored().divergences[:0]},
    ],
    ids=["one group", "20 groups", "one epoch, no probe", "adjoint", "no settings",
         "no records", "no divergences"],
)  # fmt: skip
def test_any_run_has_a_page(changes, tmp_path):
    out = write_report(stored(**changes), tmp_path / "new" / "page.html")
    text = out.read_text(encoding="utf-8")
    json.loads(Read(text).data)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_a_spectrum_that_is_not_ok_or_all_zero_is_no_number():
    spectra = stored(epochs=1, folds=1, probe=False).spectra
    spectra.loc[0, "status"] = "non-finite"
    spectra["values"] = [np.full(4, np.nan), *[np.zeros(4)] * (len(spectra) - 1)]
    run = stored(spectra=spectra)
    cells = spectra_cells(spectra, frame_of_run(run))
    assert len(cells) == len(spectra) - 1
    assert {v for c in cells for row in c["values"] for v in row} == {0.0}


@pytest.mark.slow
def test_large_runs_stay_small():
    groups = SITES[:9]
    layers = tuple(f"block.{i}.attention" for i in range(70))
    one = stored(groups, layers, 1, folds=1, probe=False, quantities=("gradient",))
    spectra = pd.concat(
        [one.spectra.assign(epoch=e, source=s) for e in range(5) for s in SOURCES],
        ignore_index=True,
    )
    spectra["values"] = [np.linspace(9.876543, 1.234567, 90)] * len(spectra)
    rows = pd.concat([one.divergences.assign(epoch=e) for e in range(24)])
    run = stored(spectra=spectra, divergences=rows, epochs=4)
    frame = frame_of_run(run)
    assert len(frame.layers) == 60
    assert (frame.layers[0], frame.layers[-1]) == (layers[0], layers[-1])
    data = report_data(run, frame)
    assert len(embed(data)) < 3.2e6  # beside 4.8 MB of Plotly
    said = " ".join(data["notes"])
    assert "60 of 70 layers" in said
    assert "of 36 maps of pairs" in said


def test_thinning_keeps_ends_and_what_must_stay():
    assert thinned(range(5), 9) == [0, 1, 2, 3, 4]
    assert thinned(range(100), 3) == [0, 50, 99]
    assert thinned(range(100), 3, keep=[7]) == [0, 7, 50, 99]
    assert rank_positions(5).tolist() == [1, 2, 3, 4, 5]
    some = rank_positions(2000)
    assert (some[0], some[-1]) == (1, 2000)
    assert len(some) <= 48
    assert (np.diff(some) > 0).all()


def test_a_group_has_one_colour_and_no_two_share_it():
    styles = group_styles({"a": [str(i) for i in range(19)], "b": ["0", "1"]})
    every = [style for groups in styles.values() for style in groups.values()]
    assert len(set(every)) == 21
    data = report_data(run := stored(), frame_of_run(run))
    assert set(data["styles"]["diagnosis"]) == {"control", "patient"}


def test_performance_gives_names_back():
    metrics = pd.DataFrame(
        {
            "key": ["val_acc/a_b", "val_acc/a_b", "val_auc/c", "val/auc", "train/loss"],
            "step": [1, 1, 0, 0, 0],
            "value": [0.1, 0.5, 0.6, np.nan, 0.2],
            "time": 0,
        }
    )
    found = performance(metrics, ["c", "a_b"])
    assert found["groups"] == {
        "acc": {"a_b": [[1], [0.5]]},
        "auc": {"c": [[0], [0.6]]},
    }
    assert found["overall"] == {"val/auc": [[0], [None]], "train/loss": [[0], [0.2]]}


def test_influence_is_averaged_over_folds():
    run = stored(epochs=2, folds=3)
    found = influence_maps(run.influence, frame_of_run(run))
    assert np.shape(found["value"]) == (1, 2, 2, 2)
    assert np.allclose(np.array(found["value"], dtype=float), -0.1)


def test_pictures_are_inside_unless_they_are_too_large():
    pictures = {"gradient": b"PNG", "activation": b"x" * 3_000_000}
    text = report_page(stored(pictures=pictures))
    sources = [a["src"] for tag, a in Read(text).tags if tag == "img"]
    assert sources == ["data:image/png;base64,UE5H"]
    assert "Larger pictures" in text


def test_tables_escape_and_cut():
    frame = pd.DataFrame({"p_max": [0.0456, np.nan], "n": [3, 4], "x": "<b>"})
    text = table_html(frame)
    assert "0.046" in text
    assert "–" in text
    assert ">3<" in text
    assert "&lt;b&gt;" in text
    long = table_html(pd.DataFrame({"n": range(1200)}))
    assert "The first 1000 of 1200 rows" in long


@pytest.fixture
def matrices():
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(2, 4, 4))
    stack = stack + stack.transpose(0, 2, 1)
    stack[:, range(4), range(4)] = np.nan
    groups = {HOSTILE: stack[:1], "all": stack}
    shares = {HOSTILE: np.array([0.5]), "all": np.array([0.5, 0.25])}
    return InputMaps(
        {"gradient": groups}, {"gradient": shares}, {"gradient": "at the input"},
        ("SC1", "SC2", "AU1", "AU2"),
    )  # fmt: skip


def test_maps_come_back(matrices, tmp_path):
    read = read_maps(write_maps(matrices, tmp_path / "maps.npz"))
    assert read.networks == matrices.networks
    assert read.titles == matrices.titles
    assert read.affine is None
    for group, stack in matrices.vectors["gradient"].items():
        np.testing.assert_allclose(read.vectors["gradient"][group], stack, rtol=1e-6)
        shares = matrices.shares["gradient"][group]
        np.testing.assert_array_equal(read.shares["gradient"][group], shares)
    (tmp_path / "maps.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="damaged"):
        read_maps(tmp_path / "maps.npz")


def test_connectomes_have_their_domains(matrices):
    found = connectomes(matrices)
    assert found["domains"] == [["SC", 0, 2], ["AU", 2, 4]]
    assert found["names"] == ["SC1", "SC2", "AU1", "AU2"]
    (first, second) = found["quantities"]["gradient"]["groups"]
    assert first["name"] == HOSTILE
    assert first["matrices"][0][0][0] is None
    assert len(second["matrices"]) == 2
    assert connectomes(None) == {}


def test_a_folder_without_records_is_read_as_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text('{"training": {"epochs": 3}}')
    pd.DataFrame({"layer": ["1"], "pair": ["NA"]}).to_csv(
        tmp_path / "layers.tsv", sep="\t", index=False
    )
    run = read_stored(tmp_path)
    assert run.spectra.empty
    assert run.metrics.empty
    assert run.tables["layers"].to_dict("records") == [{"layer": "1", "pair": "NA"}]
    assert "no records" in report_page(run)
    with pytest.raises(InputError, match="no run's folder"):
        read_stored(tmp_path.parent)
