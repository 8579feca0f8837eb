"""Plots of a study as images: what they show is what its trials are."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from matplotlib.image import imread
from optuna.trial import TrialState, create_trial

from spectral_mlops.report import sweep_plots
from spectral_mlops.report.sweep_plots import write_study_plots
from spectral_mlops.sweeps.answers import answers
from tests.sweeps.test_answers import STORAGE, known_study

NAMES = ["tradeoff.png", "importances.png", "slices.png"]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("known"))
        yield answers(known_study())


def test_every_plot_is_an_image(known):
    written = write_study_plots(known, Path("new/plots"))
    assert [path.name for path in written] == NAMES
    for path in written:
        height, width, _ = imread(path).shape
        assert 200 < height < 1200
        assert width == int(180 / 25.4 * 150)


def test_few_trials_have_fewer_plots_and_none_have_none():
    few = write_study_plots(answers(known_study(3, "few")), Path("few"))
    assert [path.name for path in few] == ["tradeoff.png", "slices.png"]
    study = optuna.create_study(study_name="bare", storage=STORAGE)
    for state in (None, TrialState.FAIL, TrialState.PRUNED):
        if state is not None:
            study.add_trial(create_trial(state=state))
        assert write_study_plots(answers(study), Path("bare")) == []


def test_trials_stand_at_their_divergence_and_accuracy(known):
    (panel,) = sweep_plots._tradeoff(known, known.trials).axes
    hollow, full = (points.get_offsets().data for points in panel.collections)
    table = known.trials
    for drawn, rows in ((hollow, ~table["allowed"]), (full, table["allowed"])):
        expected = table.loc[rows, ["divergence", "auc"]].to_numpy(float)
        np.testing.assert_array_equal(drawn, expected)
    assert len(hollow) > 0
    front = {str(n) for n in table.loc[table["front"], "trial"]}
    assert {text.get_text() for text in panel.texts} == front


def test_bars_are_the_importances(known):
    panels = sweep_plots._importances(known, known.trials).axes
    told = known.importances.set_index(["evaluator", "target", "setting"])["importance"]
    settings = [tick.get_text() for tick in panels[0].get_yticklabels()]
    for panel in panels:
        for bars in panel.containers:
            for setting, bar in zip(settings, bars, strict=True):
                key = panel.get_title(), bars.get_label(), setting
                if key in told.index:
                    assert bar.get_width() == told[key]
    assert settings[-1] == "rate"  # matters most, and stands on top
    assert [panel.get_title() for panel in panels] == ["fANOVA", "PED-ANOVA"]


def test_words_and_wide_ranges_have_axes_of_their_own(known):
    figure = sweep_plots._slices(known, known.trials)
    by_name = {panel.get_xlabel(): panel for panel in figure.axes}
    kinds = [tick.get_text() for tick in by_name["kind"].get_xticklabels()]
    assert len(kinds) == 2
    assert kinds[1] == "b"
    assert by_name["rate"].get_xscale() == "log"
    drawn = by_name["b/momentum"].collections[0].get_offsets()
    assert len(drawn) == known.trials["b/momentum"].notna().sum() < 40
