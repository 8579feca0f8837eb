"""A trial trained again with other people held out."""

import json
import re
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from spectral_mlops.errors import InputError
from spectral_mlops.report.sweep_page import study_page
from spectral_mlops.sweeps import Sweep
from spectral_mlops.sweeps.answers import answers
from spectral_mlops.sweeps.confirm import _chosen, confirm, confirmations, second_plan
from spectral_mlops.tracking import open_store
from spectral_mlops.training import make_plan

STORAGE = "sqlite:///optuna.db"


def test_the_second_probe_is_of_other_people_and_the_first_go_back(small):
    plan = make_plan(small(), Path.cwd())
    second = second_plan(plan)
    first = set(plan.probe.ids)
    held = set(second.probe.ids)
    assert not first & held
    assert len(first) == len(held)
    for fold in second.folds:
        used = {*fold.train_ids, *fold.validation_ids}
        assert first <= used
        assert not held & used
    assert second_plan(plan).probe.digest == second.probe.digest
    assert second.config.comparison.probe_seed == 1


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        ({"probe_fraction": 0.5}, "no room for another"),
        ({"probe_fraction": 0.05}, "no first probe"),
    ],
)
def test_without_room_there_is_none(small, comparison, words):
    plan = make_plan(small(comparison=comparison), Path.cwd())
    with pytest.raises(InputError, match=words):
        second_plan(plan)


def test_splits_that_were_given_are_not_drawn_anew(small):
    plan = make_plan(small(), Path.cwd())
    training = plan.config.training.model_copy(update={"splits": "somewhere"})
    config = plan.config.model_copy(update={"training": training})
    with pytest.raises(InputError, match=r"training\.splits"):
        second_plan(replace(plan, config=config))


def test_the_best_of_those_allowed_is_chosen():
    study = optuna.create_study(direction="maximize")
    with pytest.raises(InputError, match="finished and is allowed"):
        _chosen(study, None)
    study.add_trial(create_trial(value=0.9, constraints={"confounds": 0.1}))
    study.add_trial(create_trial(value=0.8, constraints={"confounds": -0.1}))
    study.add_trial(create_trial(value=0.7))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    assert _chosen(study, None).number == 1
    assert _chosen(study, 0).number == 0
    with pytest.raises(InputError, match="no finished trial 3; there is 0, 1, 2"):
        _chosen(study, 3)


def test_a_trial_is_confirmed_in_a_run_of_its_own(small, uri, command):
    settings = small(tracking={"uri": uri})
    sweep = Sweep(settings, study="s", storage=STORAGE, runs=Path("runs"))
    sweep.run_trial()
    assert confirmations(sweep.study).empty
    code, out, err = command("sweep", "confirm", "s", "--trial", 0)
    assert (code, err) == (0, "")
    for word in ("first", "second", "p_max"):
        assert word in out
    client = open_store(uri).client
    experiment = client.get_experiment_by_name("spectral_mlops")
    runs = client.search_runs([experiment.experiment_id])
    by_kind = {run.data.tags["spectral.kind"]: run for run in runs}
    assert by_kind.keys() == {"trial", "confirm"}
    old, new = by_kind["trial"], by_kind["confirm"]
    assert new.info.status == "FINISHED"
    assert new.data.tags["spectral.confirms"] == old.info.run_id
    assert new.data.tags["spectral.probe"] != old.data.tags["spectral.probe"]
    own = ("comparison.probe_seed", "tracking.profile")
    for name in old.data.params.keys() - {*own}:
        assert new.data.params[name] == old.data.params[name]
    study = optuna.load_study(study_name="s", storage=STORAGE)
    table = confirmations(study).set_index("probe")
    for probe, run in (("first", old), ("second", new)):
        metrics = run.data.metrics
        assert table.loc[probe, "auc"] == pytest.approx(metrics["final/auc"])
        z = metrics["final/divergence_adjoint"]
        assert table.loc[probe, "divergence"] == pytest.approx(z)
        assert table.loc[probe, "p"] == pytest.approx(metrics["final/primary_p"])
        assert table.loc[probe, "upper"] > z
    assert study.user_attrs["confirmed.0"]["run"] == new.info.run_id
    page = study_page(answers(study)).split("<script>")[0]
    assert "On a second probe" in page
    assert "None yet" not in page


def test_a_run_that_is_elsewhere_is_fetched_and_other_people_are_refused(small, uri):
    settings = small(tracking={"uri": uri})
    sweep = Sweep(settings, study="s", storage=STORAGE, runs=Path("runs"))
    sweep.run_trial()
    people = sweep.study.user_attrs["people"]
    sweep.study.set_user_attr("people", people | {"cohort": "others"})
    with pytest.raises(InputError, match="not those of study 's'"):
        confirm("s", STORAGE, number=0, runs=Path("elsewhere"), tracking=uri)
    assert not Path("elsewhere").exists()


def test_a_study_without_confirmed_trials_says_how():
    study = optuna.create_study()
    text = study_page(answers(study))
    assert "None yet" in text
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data)["sweep"]["trials"] == []
