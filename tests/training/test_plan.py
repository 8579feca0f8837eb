from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spectral_mlops.cohorts import Probe, write_splits
from spectral_mlops.config import RunConfig, validate
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.training import make_plan
from spectral_mlops.training.crossfit import crossfit_plans


def test_nobody_is_in_two_places(small):
    plan = make_plan(small(), Path())
    probe = set(plan.probe.ids)
    for fold in plan.folds:
        train, held = set(fold.train_ids), set(fold.validation_ids)
        assert not train & held
        assert not (train | held) & probe
        assert len(train | held | probe) == 56
    assert {p for f in plan.folds for p in f.validation_ids} | probe == {
        *plan.cohort.people.index
    }


def test_the_settings_of_a_plan_name_what_was_left_to_defaults(small):
    config = small()
    flat = make_plan(config, Path()).config.flat()
    assert "model.settings.dropout" not in config.flat()
    assert flat["model.settings.dropout"] == 0.2
    assert flat["model.settings.hidden"] == "9-5"
    assert flat["cohort.settings.modality"] == "fnc"
    assert flat["spectra.quantities"] == "gradient-activation-adjoint"
    assert flat["comparison.groupings"] == "group"
    assert flat["comparison.primary_quantity"] == "adjoint"
    again = make_plan(make_plan(config, Path()).config, Path())
    assert again.config.flat() == flat


def test_the_positive_class_is_last(small):
    plan = make_plan(small(), Path())
    assert plan.classes == ("control", "patient")
    labels = plan.cohort.labels[plan.targets == 1]
    assert set(labels) == {"patient"}


def test_labels_and_strata_are_those_of_the_people(small):
    plan = make_plan(small(comparison={"groupings": ["group", "sex"]}), Path())
    rows = np.array([5, 0, 17])
    people = plan.cohort.people.iloc[rows]
    assert plan.labels(rows) == {
        "group": list(people["group"]),
        "sex": list(people["sex"]),
    }
    assert plan.primary == "group"
    for name, column in plan.strata().items():
        who = plan.cohort.people.index[3]
        assert column[who] == str(plan.cohort.people.loc[who, name])


def test_families_are_those_of_the_people(small):
    plan = make_plan(small(), Path())
    assert plan.families == {}
    people = plan.cohort.people.copy()
    people["family"] = [f"F{max(i, 1)}" for i in range(len(people))]
    related = replace(plan, cohort=replace(plan.cohort, people=people))
    assert related.families == dict(
        zip(map(str, people.index), people["family"], strict=True)
    )


def test_epochs_with_a_null_end_with_the_last(small):
    plan = make_plan(
        small(training={"epochs": 10}, comparison={"null_epochs": 3}), Path()
    )
    assert max(plan.null_epochs().fixed) == 9
    assert len(plan.null_epochs().fixed) == 3
    assert make_plan(small(), Path()).null_epochs().fixed == {2, 1}
    settings = {"null_epochs": None, "null_budget": 0.2}
    budgeted = make_plan(small(comparison=settings), Path()).null_epochs()
    assert (budgeted.fixed, budgeted.budget, budgeted.epochs) == (None, 0.2, 3)


def test_the_primary_quantity_is_the_declared_one_or_the_adjoint(small):
    plan = make_plan(small(), Path())
    assert plan.primary_quantity == "adjoint"
    assert "Primary outcome: adjoint between control and patient" in plan.notes[-1]
    only = small(spectra={"quantities": ["gradient", "activation"]})
    assert make_plan(only, Path()).primary_quantity == "activation"
    declared = small(comparison={"primary_quantity": "activation"})
    assert make_plan(declared, Path()).primary_quantity == "activation"


def test_a_probe_of_people_who_train_is_refused(small):
    plan = make_plan(small(), Path())
    probe = Probe((plan.folds[0].train_ids[0],), ("group",))
    with pytest.raises(InputError, match="1 people who train"):
        replace(plan, probe=probe)


def test_a_cohort_too_small_for_a_probe_says_so(small):
    plan = make_plan(small(comparison={"probe_fraction": 0.2}), Path())
    assert plan.probe is None
    assert any("No probe" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"comparison": {"groupings": ["diagnosis"]}}, "choose from"),
        ({"comparison": {"divergence": "kl"}}, "js"),
        ({"model": {"name": "lstn"}}, "Did you mean 'lstm'"),
        ({"model": {"settings": {"hiden": [3]}}}, "Did you mean 'hidden'"),
        ({"cohort": {"name": "simulatd"}}, "simulated"),
        ({"cohort": {"settings": {"presett": "easy"}}}, "Did you mean 'preset'"),
        ({"training": {"folds": 40}}, "folds=40"),
        (
            {
                "spectra": {"quantities": ["adjoint"]},
                "comparison": {"primary_quantity": "gradient"},
            },
            "primary_quantity='gradient' is not watched",
        ),
        ({"controls": {"nuisance_columns": ["ages"]}}, "Did you mean 'age'"),
        ({"spectra": {"quantities": ["weights"]}}, "quantities"),
        ({"confounds": {"regress": ["aeg"]}}, "Did you mean 'age'"),
        ({"confounds": {"regress": ["group"]}}, "the target"),
        ({"training": {"split": "site", "repeats": 2}}, "leave repeats out"),
        (
            {"training": {"split": "site"}, "confounds": {"harmonise": "site"}},
            "nothing to harmonise",
        ),
        ({"training": {"splits": "nowhere"}}, "Cannot read nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(small, changes, words):
    with pytest.raises((InputError, UnknownNameError), match=words):
        make_plan(small(**changes), Path())


def test_splits_of_another_run_are_taken_as_they_are(small, tmp_path):
    first = make_plan(small(comparison={"probe_seed": 3}), Path())
    write_splits(tmp_path / "splits", first.probe, first.folds)
    settings = small(training={"splits": str(tmp_path / "splits"), "seed": 8})
    plan = make_plan(settings, Path("/"))
    assert (plan.probe, plan.folds) == (first.probe, first.folds)
    assert plan.probe.digest == first.probe.digest
    held = f"a probe of {len(first.probe.ids)} people, 2 folds"
    assert any(held in note for note in plan.notes)
    with pytest.raises(InputError, match=r"--crossfit .* training.splits"):
        crossfit_plans(plan, 2)


def test_sites_and_repeats_make_the_folds(small):
    by_site = make_plan(small(training={"split": "site"}), Path())
    assert len(by_site.folds) == 2
    assert any("site A held out" in note for note in by_site.notes)
    repeated = make_plan(small(training={"repeats": 3}), Path())
    assert len(repeated.folds) == 6
    assert repeated.folds[:2] == make_plan(small(), Path()).folds


def test_sites_that_go_with_the_target_are_warned_of(tmp_path):
    cohort = {"preset": "confounded", "people": 60, "components": 9, "volumes": False}
    settings = {"cohort": {"settings": cohort}}
    plan = make_plan(validate(RunConfig, settings, "test"), tmp_path)
    assert any("goes with 'site' (Cramér's V 0.8" in note for note in plan.notes)
