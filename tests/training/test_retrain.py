"""The training-level test, on a cohort and networks of seconds."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.cohorts import FeatureScaler
from spectral_mlops.errors import InputError, SpectralError
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.again import read_plan
from spectral_mlops.training.retrain import (
    MEAN,
    compare_with_null,
    retrain,
    retrain_test,
)
from spectral_mlops.training.retrain_batched import can_batch, measure_batch
from spectral_mlops.training.retrain_permute import shuffle_of
from spectral_mlops.training.retrain_statistic import Cell, measure_training
from spectral_mlops.training.retrain_workers import retrainings
from tests.training.toys import toy


@pytest.fixture
def finished(small, tmp_path):
    """Make a finished run; keywords are laid over its settings."""

    def make(name="one", **changes):
        plan = make_plan(small(**changes), Path())
        run(plan, MemoryTracker(), tmp_path / name, name=name)
        return tmp_path / name

    return make


def lines(folder):
    text = (folder / "retrain" / "permutations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_targets_stay_in_their_site_and_part_of_the_split(small):
    plan = make_plan(small(), Path())
    shuffle = shuffle_of(plan)
    people = plan.cohort.people
    assert shuffle.moving == ("group",)
    assert shuffle.strata == "site × fold"
    parts = [list(plan.probe.ids), *(list(f.validation_ids) for f in plan.folds)]
    moved = []
    for number in (1, 2, 3):
        other = shuffle.permuted(number)
        now = other.cohort.people
        for ids in parts:
            for site in people["site"].unique():
                here = [who for who in ids if people.loc[who, "site"] == site]
                assert sorted(people.loc[here, "group"]) == sorted(
                    now.loc[here, "group"]
                )
        assert now.drop(columns="group").equals(people.drop(columns="group"))
        everyone = np.arange(len(now))
        assert other.labels(everyone)["group"] == list(now["group"])
        moved.append((now["group"] != people["group"]).sum())
        again = shuffle_of(plan).permuted(number)
        assert list(again.targets) == list(other.targets)
    assert min(moved) > 5
    assert list(shuffle.permuted(0).targets) == list(plan.targets)


def test_a_grouping_that_is_not_the_target_stays_with_its_people(small):
    comparison = {"groupings": ["sex", "group"], "probe_fraction": 0.2}
    plan = make_plan(small(comparison=comparison), Path())
    shuffle = shuffle_of(plan)
    assert shuffle.moving == ("group",)
    assert shuffle.strata == "site × sex × fold"
    now = shuffle.permuted(1).cohort.people
    people = plan.cohort.people
    assert (now["sex"] == people["sex"]).all()
    assert (now["group"] != people["group"]).any()
    for sex in people["sex"].unique():
        here = people["sex"] == sex
        assert sorted(now["group"][here]) == sorted(people["group"][here])


def test_all_groupings_are_tested_by_the_same_retrainings(small):
    comparison = {"groupings": ["group", "sex"], "probe_fraction": 0.45}
    shuffle = shuffle_of(make_plan(small(comparison=comparison), Path()))
    assert shuffle.plan.groupings == ("group", "sex")
    assert shuffle.moving == ("group",)
    assert shuffle.strata == "site × sex × fold"
    assert {cell.grouping for cell in measure_training(shuffle.permuted(1)).values} == {
        "group",
        "sex",
    }


def test_a_grouping_within_which_nothing_moves_is_left_out(small):
    plan = make_plan(small(), Path())
    people = plan.cohort.people.copy()
    people["own"] = people.index
    plan = replace(
        plan, cohort=replace(plan.cohort, people=people), groupings=("group", "own")
    )
    shuffle = shuffle_of(plan)
    assert shuffle.moving == ("group", "own")  # each label of one has one of the other
    people["own"] = [str(k) for k in range(len(people))]
    people.loc[people.index[:2], "own"] = "0"
    people.loc[people.index[:2], "group"] = ["control", "patient"]
    plan = replace(plan, cohort=replace(plan.cohort, people=people))
    shuffle = shuffle_of(plan)
    assert shuffle.left_out == ("own",)
    assert shuffle.plan.groupings == ("group",)
    assert shuffle.strata == "site × fold"


@pytest.fixture
def related(small):
    """A plan of pairs, threes and single people; members stay in their part."""

    def make(targets=None, sites=None):
        plan = make_plan(small(), Path())
        people = plan.cohort.people.copy()
        people["site"] = "one"
        people["family_id"] = None
        ids = list(plan.folds[0].validation_ids)
        pairs = [ids[0:2], ids[2:4], ids[4:6], ids[6:9]]
        for number, members in enumerate(pairs):
            people.loc[members, "family_id"] = f"F{number}"
        people["group"] = "control"  # whoever is in no family cannot change
        said = targets or ["patient"] * 2 + ["control"] * 2 + ["patient", "control"]
        people.loc[ids[:6], "group"] = said
        if sites:
            people.loc[ids[:6], "site"] = sites
        cohort = replace(plan.cohort, people=people)
        return replace(plan, cohort=cohort), ids

    return make


def arrangements(shuffle, ids, draws=400):
    """Different targets of some people among many permutations."""
    return {
        tuple(shuffle.permuted(k).cohort.people.loc[ids, "group"]) for k in range(draws)
    }


def test_families_of_one_make_up_exchange_as_a_whole(related):
    """Against all that blocks allow, written out by hand."""
    plan, ids = related()
    shuffle = shuffle_of(plan)
    p, c = "patient", "control"
    blocks = [(p, p), (c, c), (p, c), (c, p)]
    expected = {
        (*x, *y, *z)
        for x, y, z in itertools.product(blocks, repeat=3)
        if sorted(tuple(sorted(b)) for b in (x, y, z)) == [(c, c), (c, p), (p, p)]
    }
    assert arrangements(shuffle, ids[:6]) == expected
    assert shuffle.different == len(expected) == 12
    rest = [who for who in plan.cohort.people.index if who not in ids[:6]]
    assert set(shuffle.permuted(3).cohort.people.loc[rest, "group"]) == {c}
    assert "over families of one make-up" in shuffle.moved


def test_every_permutation_of_blocks_is_as_likely(related):
    """12 arrangements in 1200 draws: χ² with 11 degrees of freedom."""
    plan, ids = related()
    shuffle = shuffle_of(plan)
    seen = Counter(
        tuple(shuffle.permuted(k).cohort.people.loc[ids[:6], "group"])
        for k in range(1, 1201)
    )
    assert sum((n - 100) ** 2 / 100 for n in seen.values()) < 31.3  # p = 0.001


def test_families_across_sites_exchange_with_families_across_the_same_sites(related):
    """The first two families stand in two sites each, the third in one."""
    sites = ["one", "two", "two", "one", "one", "one"]
    plan, ids = related(["patient", "control"] * 3, sites)
    shuffle = shuffle_of(plan)
    p, c = "patient", "control"
    # By site, the first family has (one: p, two: c), the second (one: c, two: p).
    assert arrangements(shuffle, ids[:6]) == {
        (*x, *y) for x in [(p, c, p, c), (c, p, c, p)] for y in [(p, c), (c, p)]
    }


def test_families_that_cannot_exchange_are_refused(related):
    plan, _ = related(["patient"] * 2 + ["control"] * 4, ["two"] * 2 + ["one"] * 4)
    with pytest.raises(InputError, match="retraining needs families of one make-up"):
        shuffle_of(plan)


def test_without_relatives_people_are_permuted(small):
    plan = make_plan(small(), Path())
    people = plan.cohort.people.assign(family=[f"F{k}" for k in range(56)])
    alone = replace(plan, cohort=replace(plan.cohort, people=people))
    now, then = shuffle_of(alone), shuffle_of(plan)
    assert not now.families
    assert now.different == then.different > 1e6
    assert list(now.permuted(2).targets) == list(then.permuted(2).targets)


def test_a_finer_name_of_the_target_moves_with_it(small):
    plan = make_plan(small(), Path())
    people = plan.cohort.people.copy()
    number = np.arange(len(people)) % 2
    people["subtype"] = [f"{g}-{k}" for g, k in zip(people["group"], number)]  # noqa: B905
    plan = replace(
        plan, cohort=replace(plan.cohort, people=people), groupings=("subtype",)
    )
    shuffle = shuffle_of(plan)
    assert shuffle.moving == ("group", "subtype")
    now = shuffle.permuted(4).cohort.people
    assert all(s.startswith(g) for s, g in zip(now["subtype"], now["group"]))  # noqa: B905
    assert (now["subtype"] != people["subtype"]).any()


def test_targets_that_cannot_move_are_refused(small):
    plan = make_plan(small(), Path())
    people = plan.cohort.people.copy()
    people["site"] = people["group"]
    with pytest.raises(InputError, match="No permutation of 'group' within site"):
        shuffle_of(replace(plan, cohort=replace(plan.cohort, people=people)))


def test_the_observed_statistic_is_that_of_the_run(small, finished):
    """Training batches of the last epoch as recorded; the probe as in its table."""
    plan = make_plan(small(), Path())
    found = measure_training(plan)
    folder = finished()
    table = pd.read_csv(folder / "layers.tsv", sep="\t")
    own = {(r.layer, r.quantity): r.divergence for r in table.itertuples()}
    for cell, value in found.values.items():
        if cell.source == "probe":
            assert value == pytest.approx(own[cell.layer, cell.quantity], nan_ok=True)
    stored = torch.load(folder / "checkpoints" / "fold-1.pt", weights_only=True)
    assert all(torch.equal(stored[name], x) for name, x in found.weights[1].items())
    assert {cell.source for cell in found.values} == {"train", "probe"}
    assert "degenerate" in " ".join(found.reasons.values())


CASES = {
    "dropout and adam": {},
    "sgd, gelu": {
        "training": {"optimizer": "sgd", "learning_rate": 0.05},
        "model": {"settings": {"dropout": 0.0, "activation": "gelu"}},
    },
    "sex, adamw, tanh": {
        "training": {"optimizer": "adamw", "batch_size": 7},
        "model": {"settings": {"activation": "tanh", "hidden": [6]}},
        "comparison": {"groupings": ["sex"], "probe_fraction": 0.2},
    },
    "some batches, one layer": {
        "spectra": {
            "batches_per_epoch": 1,
            "layers": ["hidden_2"],
            "quantities": ["activation", "gradient"],
        },
        "comparison": {"divergence": "hellinger"},
    },
    "two groupings": {
        "comparison": {"groupings": ["group", "sex"], "probe_fraction": 0.45},
    },
    "linear": {"model": {"settings": {"hidden": []}}},
}


@pytest.mark.parametrize("case", CASES)
def test_networks_trained_as_one_are_those_trained_one_by_one(case, small, monkeypatch):
    """In float64, so that nothing but a mistake could show."""
    scaled = FeatureScaler.transform
    monkeypatch.setattr(
        FeatureScaler, "transform", lambda *args: scaled(*args).astype(np.float64)
    )
    torch.set_default_dtype(torch.float64)
    try:
        shuffle = shuffle_of(make_plan(small(**CASES[case]), Path()))
        assert can_batch(shuffle.plan)
        plans = [shuffle.permuted(number) for number in range(3)]
        together = measure_batch(plans)
        for plan, found in zip(plans, together, strict=True):
            alone = measure_training(plan).values
            assert found.keys() == alone.keys()
            for cell, value in alone.items():
                assert found[cell] == pytest.approx(value, rel=1e-6, nan_ok=True), cell
    finally:
        torch.set_default_dtype(torch.float32)
    values = [x for x in together[1].values() if np.isfinite(x)]
    assert values or case == "linear"


def test_float32_rounding_is_all_that_differs(small):
    shuffle = shuffle_of(make_plan(small(), Path()))
    plan = shuffle.permuted(1)
    (found,) = measure_batch([plan])
    for cell, value in measure_training(plan).values.items():
        assert found[cell] == pytest.approx(value, rel=1e-3, nan_ok=True), cell


def test_p_counts_the_run_itself_and_what_is_missing():
    cells = [
        Cell("train", "dx", name, "gradient", "a", "b") for name in ("x", "y", "z")
    ]
    observed = dict(zip(cells, [3.0, 1.0, np.nan], strict=True))
    null = [
        dict(zip(cells, row, strict=True))
        for row in ([1.0, 2.0, 1.0], [4.0, 0.5, 1.0], [np.nan, 0.2, 1.0], [0.0, 0.1, 1])
    ]
    table = compare_with_null(observed, null, {cells[2]: "degenerate"})
    table = table.set_index("layer")
    assert table.loc["x", "p"] == pytest.approx(3 / 5)
    assert table.loc["y", "p"] == pytest.approx(2 / 5)
    assert np.isnan(table.loc["z", "p"])
    assert table.loc["z", "reason"] == "degenerate"
    assert table.loc[MEAN, "observed"] == pytest.approx(2.0)
    assert table.loc[MEAN, "p"] == pytest.approx(3 / 5)  # 2.25 and the missing one
    assert (table["p_max"].dropna() >= table["p"].dropna()[:2]).all()
    assert list(table["reason"]) == ["", "", "degenerate", ""]
    still = compare_with_null({cells[0]: 2.0}, [{cells[0]: 2.0}] * 3, {})
    assert still["p"].tolist() == [1.0, 1.0]
    assert still["reason"].str.startswith("every retraining has the same value").all()


def test_a_run_is_tested_resumed_and_extended(finished):
    folder = finished()
    plan = read_plan(folder, Path())
    seen = []
    result = retrain(plan, folder, 3, progress=lambda *said: seen.append(said))
    assert ("retraining", 3, 3) in seen
    assert [line.get("permutation") for line in lines(folder)] == [None, 0, 1, 2, 3]
    table = result.table
    assert set(table["p"].dropna()) <= {0.25, 0.5, 0.75, 1.0}
    assert {"train", "probe"} == set(table["source"])
    assert "3 retrainings on 'group' permuted" in result.sentences[0]
    assert not any("again here gave" in said for said in result.sentences)
    stored = json.loads((folder / "retrain" / "result.json").read_text())
    assert stored["permutations"] == 3
    assert len(stored["rows"]) == len(table)
    # Killed while writing the last line: that one is done again, to the same values.
    log = folder / "retrain" / "permutations.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-40])
    again = retrain(plan, folder, 3, batched=False)
    assert [line.get("permutation") for line in lines(folder)] == [None, 0, 1, 2, 3]
    pd.testing.assert_frame_equal(again.table, table, rtol=1e-3)
    before = log.read_text()
    more = retrain(plan, folder, 5)
    assert log.read_text().startswith(before)
    assert more.permutations == 5
    fewer = retrain(plan, folder, 3)
    pd.testing.assert_frame_equal(fewer.table, again.table)


def test_workers_give_the_same(finished, tmp_path):
    folder = finished()
    shutil.copytree(folder, tmp_path / "other")
    plan = read_plan(folder, Path())
    here = retrain(plan, folder, 4, batched=False)
    there = retrain(plan, tmp_path / "other", 4, batched=False, workers=2)
    pd.testing.assert_frame_equal(here.table, there.table)


def test_an_interrupted_test_keeps_what_it_had(finished):
    folder = finished()
    plan = read_plan(folder, Path())

    def stop(what, done, total):
        if what == "retraining" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(plan, folder, 4, batched=False, progress=stop)
    assert len(lines(folder)) == 4  # settings, the run, two retrainings


def test_a_killed_worker_is_one_sentence_and_the_rest_is_kept(finished):
    folder = finished()
    plan = read_plan(folder, Path())

    def kill(what, done, total):
        if what == "retraining" and done == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(SpectralError, match="A worker was killed"):
        retrain(plan, folder, 9, batched=False, workers=2, progress=kill)
    assert not multiprocessing.active_children()
    assert len(lines(folder)) >= 3


def test_what_a_worker_raises_is_raised(small):
    shuffle = shuffle_of(make_plan(small(), Path()))
    training = shuffle.plan.config.training.model_copy(update={"optimizer": "none"})
    config = shuffle.plan.config.model_copy(update={"training": training})
    broken = replace(shuffle, plan=replace(shuffle.plan, config=config))
    with pytest.raises(KeyError, match="none"):
        list(retrainings(broken, [1, 2], workers=2, batched=False))


def test_other_settings_are_refused(finished):
    folder = finished()
    plan = read_plan(folder, Path())
    retrain(plan, folder, 1)
    training = plan.config.training.model_copy(update={"learning_rate": 0.1})
    config = plan.config.model_copy(update={"training": training})
    with pytest.raises(InputError, match=r"other values of the settings in config"):
        retrain(replace(plan, config=config), folder, 1)
    log = folder / "retrain" / "permutations.jsonl"
    head, *rest = log.read_text().splitlines()
    settings = json.loads(head)["settings"]
    settings.pop("the device")  # as before there was one, with other lines
    before = [json.dumps({"settings": settings}), '{"permutation": 0, "values": [[1]]}']
    log.write_text("\n".join(before) + "\n")
    with pytest.raises(InputError, match="other values of the device"):
        retrain(plan, folder, 1)
    log.write_text("\n".join([head, *rest, "[]"]) + "\n")
    with pytest.raises(InputError, match="damaged"):
        retrain(plan, folder, 1)
    log.write_text("nothing\n")
    with pytest.raises(InputError, match="damaged"):
        retrain(plan, folder, 1)


def test_a_run_that_cannot_be_repeated_is_told(finished):
    folder = finished()
    path = folder / "checkpoints" / "fold-0.pt"
    weights = torch.load(path, weights_only=True)
    weights["output.bias"] += 1
    torch.save(weights, path)
    result = retrain(read_plan(folder, Path()), folder, 1)
    assert "gave other weights" in result.sentences[-1]
    result = retrain(read_plan(folder, Path()), folder, 2)
    assert "gave other weights" in result.sentences[-1]


def test_what_cannot_be_tested_is_refused(finished, tmp_path, small_folder):
    folder = finished()
    with pytest.raises(InputError, match="ask for 19 or more"):
        retrain_test(folder, 18, Path())
    with pytest.raises(InputError, match="--workers 0"):
        retrain_test(folder, 19, Path(), workers=0)
    with pytest.raises(InputError, match="is no run"):
        read_plan(tmp_path, Path())
    config = json.loads((folder / "config.json").read_text())
    config["cohort"]["settings"]["folder"] = "nowhere"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="there is no nowhere in"):
        read_plan(folder, Path())
    config["cohort"]["settings"]["folder"] = str(tmp_path / "changed")
    shutil.copytree(small_folder, tmp_path / "changed")
    (folder / "config.json").write_text(json.dumps(config))
    fnc = pd.read_csv(tmp_path / "changed" / "fnc.csv")
    fnc.iloc[:, 3] *= 0.9
    fnc.to_csv(tmp_path / "changed" / "fnc.csv", index=False)
    with pytest.raises(InputError, match="are not those that"):
        read_plan(folder, Path())
    (folder / "final.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        read_plan(folder, Path())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"settings": {"norm": "layer"}}},
        {"training": {"schedule": "cosine"}},
        {"training": {"warmup": 0.1}},
        {"training": {"class_weights": "balanced"}},
        {"training": {"accumulate": 2}},
        {"training": {"clip_norm": 1.0}},
        {"training": {"amp": "bfloat16"}},
    ],
)
def test_settings_that_a_stack_does_not_know_are_trained_one_by_one(small, changes):
    assert can_batch(make_plan(small(), Path()))
    assert not can_batch(make_plan(small(**changes), Path()))


def test_a_recurrent_network_is_retrained_one_by_one(tmp_path):
    settings = toy(model={"name": "gru", "settings": {"width": 3}})
    plan = make_plan(settings, Path())
    assert not can_batch(plan)
    run(plan, MemoryTracker(), tmp_path / "one", name="one", figures=False)
    plan = read_plan(tmp_path / "one", Path())
    result = retrain(plan, tmp_path / "one", 3)
    means = result.table[result.table["layer"] == MEAN]
    assert np.isfinite(means["observed"]).all()
    assert not any("other weights" in said for said in result.sentences)


def test_early_stopping_has_no_last_epoch_to_compare(finished):
    folder = finished(training={"patience": 1})
    with pytest.raises(InputError, match=r"training\.patience"):
        retrain_test(folder, 19, Path())
