import subprocess
import sys

import pytest

from spectral_mlops.cohorts import (
    COHORTS,
    check_cohort,
    load_cohort,
    register_cohort,
)
from spectral_mlops.config import Component, Settings
from spectral_mlops.errors import InputError, UnknownNameError


def test_the_cohorts_that_come_with_it():
    assert {"simulated", "fnc"} <= set(COHORTS)


def test_unknown_cohort_lists_what_there_is(tmp_path):
    with pytest.raises(UnknownNameError, match=r"simulated.*Did you mean 'simulated'"):
        load_cohort(Component(name="simulatd"), tmp_path)


def test_misspelt_setting_names_the_nearest():
    component = Component(name="simulated", settings={"modalty": "fnc"})
    message = r"cohort 'simulated': unknown key 'modalty'.*Did you mean 'modality'"
    with pytest.raises(InputError, match=message):
        check_cohort(component)


def test_unknown_preset_lists_the_presets():
    component = Component(name="simulated", settings={"preset": "hard"})
    with pytest.raises(InputError, match=r"'easy', 'confounded' or 'dirty'"):
        check_cohort(component)


def test_order_is_needed_and_says_which_there_are():
    paths = {"features": "a.csv", "labels": "b.csv"}
    with pytest.raises(InputError, match=r"'order' is needed and missing"):
        check_cohort(Component(name="fnc", settings=paths))
    with pytest.raises(InputError, match=r"'upper' or 'lower'"):
        check_cohort(Component(name="fnc", settings=paths | {"order": "up"}))


def test_users_register_their_own(tmp_path, make_cohort):
    class Own(Settings):
        positive: str = "sz"

    @register_cohort("own-for-a-test", Own)
    def load(settings, workdir, progress=None):
        assert workdir == tmp_path
        return make_cohort(positive=settings.positive)

    component = Component(name="own-for-a-test", settings={"positive": "hc"})
    assert load_cohort(component, tmp_path).positive == "hc"
    with pytest.raises(InputError, match=r"registered already"):
        register_cohort("own-for-a-test", Own)(load)
    COHORTS._entries.pop("own-for-a-test")


def test_importing_cohorts_brings_neither_torch_nor_images():
    code = (
        "import sys, spectral_mlops.cohorts; "
        "print([m for m in ('torch', 'nibabel', 'nilearn', 'sklearn', 'mlflow') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
