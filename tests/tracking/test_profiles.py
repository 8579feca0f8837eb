import numpy as np
import pytest

from spectral_mlops.errors import UnknownNameError
from spectral_mlops.tracking import (
    KeyNames,
    MemoryTracker,
    SpoolTracker,
    record_metrics,
)
from spectral_mlops.tracking.profiles import PROFILES, STANDARD, SWEEP, KeyBudget
from spectral_mlops.tracking.schema import meaning, schema
from spectral_mlops.tracking.spool import read_events
from tests.tracking.factory import Epoch, divergence, epoch, spectrum
from tests.tracking.test_metrics import of


def steps(budget, epochs, key="a", offered=None):
    offered = range(epochs) if offered is None else offered
    return [step for step in offered if budget.due({key: 1.0}, step)]


@pytest.mark.parametrize("epochs", [1, 2, 99, 100, 101, 200, 201, 299, 1000, 12345])
def test_points_are_evenly_spaced_and_the_last_epoch_has_one(epochs):
    sent = steps(KeyBudget(SWEEP, epochs), epochs)
    every = int(np.ceil(epochs / SWEEP.points))
    assert len(sent) <= SWEEP.points
    assert sent[-1] == epochs - 1
    on_grid = [s for s in sent if (epochs - 1 - s) % every == 0]
    assert on_grid == list(range((epochs - 1) % every, epochs, every))
    assert len(sent) - len(on_grid) <= 1  # a first point, where there is room


@pytest.mark.parametrize("epochs", [100, 150, 201])
def test_the_untrained_network_has_a_point_and_the_cap_holds(epochs):
    sent = steps(KeyBudget(SWEEP, epochs), epochs, offered=range(-1, epochs))
    assert sent[0] == -1
    assert sent[-1] == epochs - 1
    assert len(sent) <= SWEEP.points


def test_a_rare_key_has_all_its_points():
    rare = [119, 239, 359, 479, 598, 599]
    budget = KeyBudget(SWEEP, 600)
    assert steps(budget, 600, "often")[-1] == 599
    assert steps(budget, 600, "rare", rare) == rare


def test_a_run_of_unknown_length_is_dense_then_sparse_and_capped():
    sent = steps(KeyBudget(SWEEP), 50_000)
    assert sent[:80] == list(range(80))
    assert sent[-1] > 1000
    assert len(sent) <= SWEEP.points
    gaps = np.diff(sent)
    assert (np.diff(gaps) >= 0).all()


def test_a_step_logged_again_costs_nothing():
    budget = KeyBudget(SWEEP, 100)
    for _ in range(3):
        assert steps(budget, 100) == list(range(100))


def test_the_users_own_keys_cannot_be_crowded_out():
    names = KeyNames(SWEEP)
    groups = [f"site {n}" for n in range(50)]
    own = names.budget.fit("own", {f"a/{n}": 0.0 for n in range(31 - 2)})
    shown = of(*[spectrum("a", group=g) for g in groups], divergence("a"))

    derived = record_metrics([shown], names)
    more = names.budget.fit("own", {f"final/{n}": 0.0 for n in range(100)})
    assert len(own) == 29
    assert set(derived) == {
        "spectral/grad_div",
        "excess/gradient",
        "spectral/grad_div_max",
    }
    assert len(names.budget.chosen) == 40
    assert len(more) == 40 - 29 - 2 - 3


@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("groups", [1, 3, 30])
@pytest.mark.parametrize("layers", [1, 7, 200])
def test_no_run_has_more_keys_than_its_profile(profile, groups, layers):
    tracker = MemoryTracker()
    tracker.start(profile=profile, epochs=2)
    names = [f"block.{n}.fc" for n in range(layers)]
    spectra = [
        spectrum(layer, quantity, f"g{g}", shape=(4, 3))
        for layer in names
        for quantity in ("gradient", "activation", "adjoint")
        for g in range(groups)
    ]
    rows = [divergence(s.layer, s.quantity) for s in spectra[::groups]]
    mine = {f"mine/{n}": float(n) for n in range(20)}
    for number in range(2):
        records = [of(*spectra, *rows), of(*rows, source="probe")]
        for record in records:
            object.__setattr__(record, "epoch", number)
        tracker.log(Epoch(records), mine)
    cap = PROFILES.get(profile).keys
    keys = {key for key, _, _ in tracker.history}
    assert len(keys) <= cap
    assert mine.keys() <= keys
    assert len(tracker.history) == 2 * len(keys)
    sections = {key.rpartition("/")[0] for key in keys if key.startswith("erank_")}
    for section in sections:  # whole, or not there
        assert len([k for k in keys if k.startswith(f"{section}/")]) == groups
    wanted = tracker.names.budget
    assert not wanted.chosen.keys() & wanted.dropped.keys()
    if profile == "full" and groups == 3 and layers == 7:
        assert {"erank_grad.00/g0", "erank_adj.06/g2"} <= keys
    assert ("spectral.dropped_keys" in tracker.tags) == bool(wanted.dropped)


def test_the_same_run_has_the_same_keys():
    chosen = []
    for _ in range(2):
        names = KeyNames(STANDARD)
        for number in range(3):
            record_metrics(epoch(number).records, names)
        chosen.append(names.state())
    assert chosen[0] == chosen[1]
    assert KeyNames.of(chosen[0]).state() == chosen[0]


def test_a_resumed_run_keeps_its_keys_and_points():
    tracker = SpoolTracker("run")
    tracker.start(profile="sweep", epochs=250)
    for number in range(100):
        tracker.log_metrics({"a": 1.0}, number)
    tracker.log_metrics({f"b/{n}": 1.0 for n in range(60)}, 99)
    tracker.close("KILLED")
    again = SpoolTracker("run")
    again.start(profile="full", epochs=9)
    for number in range(90, 250):
        again.log_metrics({"a": 1.0, "new": 1.0}, number)
    again.close()
    sent = [
        event.body["step"]
        for event in read_events(again.folder)
        if event.kind == "metrics" and "a" in event.body["metrics"]
    ]
    assert sent == steps(KeyBudget(SWEEP, 250), 250)
    events = read_events(again.folder)
    assert not [e for e in events if e.kind == "metrics" and "new" in e.body["metrics"]]


def test_an_unknown_profile_is_answered_with_those_there_are():
    with pytest.raises(UnknownNameError, match="sweep, standard, full"):
        MemoryTracker().start(profile="everything")


def test_every_key_of_an_epoch_has_a_meaning():
    tracker = MemoryTracker()
    tracker.start(profile="full")
    tracker.log(epoch(), {"mine/x": 1.0})
    told = schema(tracker.names, ["gradient"], {"diagnosis": {"patient": 4}})
    ours = {key for key, said in told["keys"].items() if said != "logged by the caller"}
    assert told["keys"].keys() - ours == {"mine/x"}
    assert "group patient" in told["keys"]["erank_grad/patient"]
    assert meaning("div_adj/03_a.b").startswith("divergence of the groups' adjoint")
    assert told["groupings"]["diagnosis"]["patient"] == {"n": 4, "key": "patient"}
    assert [row["layer"] for row in told["layers"]][-1] == "head"
    assert told["layers"][0]["key"] == "00_layers.0.linear1"
