import copy

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.probe import margin
from spectral_mlops.schedule import EvenlySpaced
from spectral_mlops.spectra.solver import Solver
from tests.hooks.conftest import hooks_on

PEOPLE, INPUTS, CLASSES = 26, 9, 2


def network(dropout=0.0, classes=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, 6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, classes)
    )


def people(seed=0, n=PEOPLE, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, INPUTS, generator=generator)
    y = torch.arange(n) % 2
    x[:, :4] += shift * y.unsqueeze(1)
    sex = ["f" if i % 3 else "m" for i in range(n)]
    return x, y, sex, [f"sub-{i:02d}" for i in range(n)]


def epoch(model, optimizer, monitor, x, y, sex, who, size=8):
    batches = torch.arange(len(x)).split(size)
    for batch in batches:
        rows = batch.tolist()
        groups = {"dx": y[batch], "sex": [sex[i] for i in rows]}
        with monitor.watch(groups, [who[i] for i in rows], y[batch]):
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(batches)


def test_watched_training_is_bit_for_bit_the_unwatched_one():
    x, y, sex, who = people()
    trained = []
    for every in (1, 2, None):
        model = network(dropout=0.5)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = SpectralMonitor(
            model,
            schedule=(lambda epoch, step: False) if every is None else None,
            every=every or 1,
        )
        torch.manual_seed(1)
        for number in range(3):
            epoch(model, optimizer, monitor, x, y, sex, who)
            result = monitor.collect(number)
            if every:
                result.divergences(permutations=19)
                held = [f"held-{person}" for person in who]
                monitor.probe([(x, y, {"dx": y}, held)], epoch=number)
            else:
                assert result.spectra == []
        trained.append(
            (model.state_dict(), optimizer.state_dict(), torch.get_rng_state())
        )
    for weights, state, random in trained[:2]:
        assert torch.equal(random, trained[2][2])
        for name, value in weights.items():
            assert torch.equal(value, trained[2][0][name])
        for a, b in zip(
            state["state"].values(), trained[2][1]["state"].values(), strict=True
        ):
            assert all(torch.equal(a[k], b[k]) for k in a)


def test_every_nth_step_is_watched_and_the_others_carry_no_hook():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model, every=3)
    for step in range(5):
        with monitor.watch(y[:4], who[:4]) as captured:
            assert (captured is not None) == (step % 3 == 0)
            assert bool(hooks_on(model)) == (step % 3 == 0)
            cross_entropy(model(x[:4]), y[:4]).backward()
    assert hooks_on(model) == 0
    result = monitor.collect()
    assert result.batches == 2
    assert {s.step for s in result.spectra} == {0, 3}


def test_only_the_epochs_asked_for_are_watched():
    x, y, sex, who = people()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SpectralMonitor(model, epochs=[1])
    watched = []
    for _ in range(3):
        epoch(model, optimizer, monitor, x, y, sex, who)
        watched.append(monitor.collect().batches)
    assert watched == [0, 4, 0]


def test_epochs_count_from_zero_and_collect_empties_the_monitor():
    x, y, sex, who = people()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SpectralMonitor(model)
    numbers = []
    for _ in range(3):
        steps = epoch(model, optimizer, monitor, x, y, sex, who)
        result = monitor.collect()
        numbers.append(result.epoch)
        assert result.batches == steps
        assert {s.step for s in result.spectra} == set(range(steps))
    assert numbers == [0, 1, 2]
    assert monitor.collect(epoch=7).spectra == []


def test_evenly_spaced_schedules_need_the_number_of_steps():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model, schedule=EvenlySpaced(2))
    with pytest.raises(InputError, match="begin_epoch"):
        monitor.start(y[:4], who[:4])
    monitor.begin_epoch(0, steps=6)
    watched = []
    for _ in range(6):
        watched.append(monitor.start(y[:4], who[:4]) is not None)
        cross_entropy(model(x[:4]), y[:4]).backward()
        monitor.stop()
    assert watched == [True, False, False, True, False, False]


def test_start_twice_and_stop_without_backward_are_refused():
    _, y, _, who = people()
    monitor = SpectralMonitor(network())
    monitor.start(y[:4], who[:4])
    with pytest.raises(CaptureError, match="stop"):
        monitor.start(y[:4], who[:4])
    with pytest.raises(CaptureError, match="Nothing was captured"):
        monitor.stop()


def test_an_exception_leaves_no_hook_and_the_monitor_usable():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model)

    def fail():
        with monitor.watch(y[:4], who[:4]):
            model(x[:4])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks_on(model) == 0
    with monitor.watch(y[:4], who[:4]):
        cross_entropy(model(x[:4]), y[:4]).backward()
    assert monitor.collect().batches == 1


def test_state_goes_on_where_it_was():
    monitor = SpectralMonitor(network(), every=2)
    monitor.begin_epoch(4, steps=9)
    other = SpectralMonitor(network(), every=2)
    other.load_state_dict(monitor.state_dict())
    assert other.collect().epoch == 4


def test_the_time_budget_watches_the_first_step():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model, every="auto")
    for _ in range(3):
        with monitor.watch(y[:4], who[:4]):
            cross_entropy(model(x[:4]), y[:4]).backward()
    result = monitor.collect()
    assert {s.step for s in result.spectra} >= {0}
    assert monitor._steps.schedule.spent > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "at least 1"),
        ({"every": "often"}, "'auto'"),
        ({"schedule": 3}, "function"),
        ({"aggregate": "median"}, "'batch'"),
        ({"distributed": "on"}, "'auto' or 'off'"),
        ({"groups": {"dx": []}}, "at least one group"),
        ({"permutations": -1}, "not below zero"),
        ({"reduction": "none"}, "'mean' or 'sum'"),
        ({"layers": ["9"]}, "holds no parameters"),
    ],
)
def test_impossible_settings_are_refused_at_once(settings, words):
    with pytest.raises((InputError, LookupError), match=words):
        SpectralMonitor(network(), **settings)


# -- the probe ---------------------------------------------------------------------


def probe_batches(x, y, who, sizes=(11, 15)):
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        yield x[part], y[part], {"dx": y[part]}, who[part]
        start += size


def test_the_probe_leaves_everything_as_it_was():
    x, y, _, who = people()
    model = nn.Sequential(network(dropout=0.5), nn.BatchNorm1d(2))
    model[1].eval()
    cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    SpectralMonitor(model).probe(probe_batches(x, y, who))
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip(model.parameters(), gradients, strict=True)
    )
    assert hooks_on(model) == 0


def test_probe_batches_are_one_set_of_people():
    x, y, _, who = people()
    monitor = SpectralMonitor(network())
    one = monitor.probe([(x, y, {"dx": y}, who)], epoch=2)
    two = monitor.probe(probe_batches(x, y, who), epoch=2)
    assert (one.source, one.epoch, one.batches) == ("probe", 2, 1)
    for a, b in zip(one.spectra, two.spectra, strict=True):
        assert (a.layer, a.quantity, a.group, a.subjects) == (
            b.layer,
            b.quantity,
            b.group,
            b.subjects,
        )
        np.testing.assert_allclose(a.values, b.values, atol=1e-5 * a.values[0])
    tables = [r.divergences(permutations=39)[["value", "z", "p"]] for r in (one, two)]
    np.testing.assert_allclose(*tables, rtol=1e-3, atol=1e-3)


def test_margin_adjoints_are_the_derivatives_of_the_margin():
    x, y, _, who = people()
    model = network()
    result = SpectralMonitor(model, quantities=["adjoint"], layers=["0"]).probe(
        [(x, y, {"dx": y}, who)]
    )
    first = x.requires_grad_()
    hidden = model[0](first)
    out = model[3](torch.relu(hidden))
    (adjoint,) = torch.autograd.grad((out[:, 1] - out[:, 0]).sum(), hidden)
    expected = np.linalg.svd(adjoint.numpy(), compute_uv=False)
    pooled = next(s for s in result.spectra if s.group == "all")
    np.testing.assert_allclose(pooled.values, expected, atol=1e-5 * expected[0])
    assert pooled.loss_scale == 1.0


def test_margin_of_one_two_and_more_outputs():
    two = torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert margin(two).tolist() == [3.0, -2.0]
    assert margin(torch.tensor([[1.0, 4.0, 2.0]])).tolist() == [2.0]
    assert margin(torch.tensor([[0.5], [2.0]])).tolist() == [0.5, 2.0]
    assert margin(torch.tensor([0.5, 2.0])).tolist() == [0.5, 2.0]
    for outputs in (torch.zeros(2, 3, 4), {"logits": two}):
        with pytest.raises(InputError, match="logits"):
            margin(outputs)


def test_probe_refuses_no_people_and_a_loss_without_function():
    monitor = SpectralMonitor(network())
    with pytest.raises(InputError, match="no batches"):
        monitor.probe([])
    with pytest.raises(InputError, match="loss_function"):
        monitor.probe([], adjoint="loss")


def test_people_who_were_watched_in_training_are_no_probe():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    with monitor.watch({"dx": y[:4]}, who[:4]):
        cross_entropy(model(x[:4]), y[:4]).backward()
    monitor.probe([(x[4:], y[4:], {"dx": y[4:]}, who[4:])])
    with pytest.raises(InputError, match=r"2 people .* training, the first sub-02"):
        monitor.probe([(x[2:], y[2:], {"dx": y[2:]}, who[2:])])
    fresh = SpectralMonitor(model)  # whoever stands behind samples was not told
    with fresh.watch({"dx": y}):
        cross_entropy(model(x), y).backward()
    fresh.probe([(x, y, {"dx": y}, None)])


def test_a_model_may_change_between_steps():
    x, y, _, who = people()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 2))
    monitor = SpectralMonitor(model)

    def layers():
        with monitor.watch({"dx": y}, who):
            cross_entropy(model(x), y).backward()
        return {s.layer for s in monitor.collect().spectra}

    assert layers() == {"0", "1"}
    model[1] = nn.Linear(4, 2)  # a new head
    assert layers() == {"0", "1"}
    model.insert(1, nn.Linear(4, 4))
    assert layers() == {"0", "1", "2"}
    model[0].requires_grad_(False)  # nothing then reaches it
    assert layers() == {"1", "2"}


def solving_late():
    """A solver whose thread gets nothing done before collect."""

    class Busy:
        def submit(self, work):
            """Leave it to `Solver.drain`."""

    solver = Solver(threaded=True)
    solver._pool = Busy()
    return solver


@pytest.mark.filterwarnings("ignore:.*spectra could not be computed:RuntimeWarning")
def test_what_is_written_to_before_it_is_reduced_is_marked():
    x, y, _, who = people()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))
    stashed = []
    model[1].register_forward_hook(lambda m, a, o: stashed.append(o))
    monitor = SpectralMonitor(model)
    monitor._backlog.solver = solving_late()
    for step in range(2):
        with monitor.watch({"dx": y}, who):
            cross_entropy(model(x), y).backward()
        if step:
            stashed[-1].detach().zero_()
    first, second = [
        {s.status for s in monitor_spectra if s.step == step}
        for monitor_spectra in [monitor.collect().spectra]
        for step in (0, 1)
    ]
    assert first == {"ok"}
    assert second == {"failed"}
    assert monitor.collect().spectra == []


def test_no_null_is_formed_of_what_was_written_to():
    x, y, _, who = people()
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))
    stashed = []
    model[1].register_forward_hook(lambda m, a, o: stashed.append(o))
    monitor = SpectralMonitor(model, null_batches=2)
    monitor._backlog.solver = solving_late()
    for step in range(2):
        with monitor.watch({"dx": y}, who):
            cross_entropy(model(x), y).backward()
        if not step:
            stashed[-1].detach().zero_()
    with pytest.warns(RuntimeWarning, match="could not be computed"):
        result = monitor.collect()
    table = result.divergences(19)
    said = table[table["null"] != "none"]["null"]
    assert len(said)
    assert said.str.contains("1 of 2 watched batches").all()


@pytest.mark.parametrize("aggregate", ["batch", "window"])
def test_a_null_needs_no_rows_of_the_batch(aggregate):
    x, y, sex, who = people()
    model = network()
    monitor = SpectralMonitor(model, aggregate=aggregate)
    with monitor.watch({"sex": sex}, who, targets=y):
        cross_entropy(model(x), y).backward()
    (pending,) = monitor._backlog.observed
    if aggregate == "batch":
        result = monitor.collect()  # waits for the worker
    assert not hasattr(pending, "measurable")
    if aggregate == "window":
        result = monitor.collect()
    assert result.divergences(39)["p"].notna().any()


def test_an_input_buffer_that_is_used_again_does_no_harm():
    x, y, _, who = people()
    torch.manual_seed(0)
    model = nn.Linear(9, 2)
    monitor, buffer = SpectralMonitor(model), x.clone()
    monitor._backlog.solver = solving_late()
    with monitor.watch({"dx": y}, who):
        cross_entropy(model(buffer), y).backward()
    buffer.zero_()
    found = {(s.quantity, s.group): s for s in monitor.collect().spectra}
    expected = torch.linalg.svdvals(x.double())
    np.testing.assert_allclose(
        found["activation", "all"].values, expected[:9], rtol=1e-5
    )


def test_a_copy_of_a_monitor_watches_the_copied_model():
    x, y, _, who = people()
    monitor = SpectralMonitor(nn.Linear(9, 2), strict=True)
    with monitor.watch({"dx": y}, who):
        cross_entropy(monitor.model(x), y).backward()
    twin = copy.deepcopy(monitor)
    assert twin.model is not monitor.model
    with twin.watch({"dx": y}, who):
        cross_entropy(twin.model(x), y).backward()
    assert len(twin.collect().spectra) == len(monitor.collect().spectra)


def test_padded_steps_weigh_nothing_in_a_comparison():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)
            self.output = nn.Linear(4, 2)

        def forward(self, x):
            steps = nn.utils.rnn.pack_padded_sequence(
                x.unflatten(1, (3, 3)), lengths, True, enforce_sorted=False
            )
            return self.output(self.gru(steps)[1][0])

    x, y, _, who = people()
    lengths = torch.arange(len(x)) % 3 + 1
    torch.manual_seed(0)
    result = SpectralMonitor(Packed()).probe([(x, y, {"dx": y}, who)])
    kept = result._observed[0].layers["gru.weight_ih_l0"].kept["activation"]
    alone = kept.spectra(torch.eye(PEOPLE, dtype=torch.bool))
    steps = [x[i].view(3, 3)[:n] for i, n in enumerate(lengths.tolist())]
    expected = torch.stack([s.square().sum(1).mean() for s in steps])
    torch.testing.assert_close(alone.square().sum(1), expected.double())
    table = result.divergences(19)
    assert table[table["layer"].str.startswith("gru")]["p"].notna().all()


def test_a_model_without_rows_is_described_by_replay():
    class Own(nn.LSTM):
        pass

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = Own(3, 2, batch_first=True)

        def forward(self, x):
            return self.lstm(x.unflatten(1, (3, 3)))[0][:, -1]

    x, y, _, who = people()
    torch.manual_seed(0)
    model = Recurrent()
    monitor = SpectralMonitor(model)
    with monitor.watch({"dx": y}, who):
        cross_entropy(model(x), y).backward()
    result = monitor.collect()
    assert max(monitor.additivity.values()) < 1e-5
    assert {s.layer for s in result.spectra} == {
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    }
    held = [f"held-{person}" for person in who]
    one = monitor.probe([(x, y, {"dx": y}, held)])
    two = monitor.probe(probe_batches(x, y, held))
    for a, b in zip(one.spectra, two.spectra, strict=True):
        assert (a.group, a.samples, a.batch_samples) == (
            b.group,
            b.samples,
            b.batch_samples,
        )
        np.testing.assert_allclose(a.values, b.values, atol=1e-5 * a.values[0])
    table = one.divergences(19)
    assert table["value"].notna().all()
    assert table["p"].isna().all()
    assert table["reason"].str.contains("nothing is known of single people").all()


# -- comparing groups --------------------------------------------------------------

COLUMNS = [
    "layer",
    "quantity",
    "grouping",
    "group_a",
    "group_b",
    "divergence",
    "value",
    "null_mean",
    "null_sd",
    "excess",
    "z",
    "p",
    "p_max",
    "n_a",
    "n_b",
    "subjects_a",
    "subjects_b",
    "source",
    "null",
    "strata",
    "valid_for",
    "reason",
]


def test_beside_a_comparison_stands_what_it_could_have_shown():
    x, y, sex, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"sex": sex}, who)])
    table = result.detectable(39, seed=3).set_index(["layer", "quantity"])
    for item in result.comparisons(39, seed=3):
        row = table.loc[item.layer, item.quantity]
        if not item.has_null:
            assert np.isnan(row.smallest_detectable)
            assert row.reason
            continue
        second = np.sort(item.values[1:])[-2]  # 2 of 40 labellings are 0.05
        assert row.critical == second
        expected = second + 0.8416 * item.values[1:].std()
        assert row.smallest_detectable == pytest.approx(expected, rel=1e-4)
    assert table.smallest_detectable.notna().any()


def test_the_frame_has_the_columns_of_the_design():
    x, y, _, who = people()
    table = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)]).divergences(19)
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 3


def test_the_target_on_training_people_has_no_p():
    x, y, sex, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    with monitor.watch({"dx": y, "sex": sex}, who, targets=y):
        cross_entropy(model(x), y).backward()
    table = monitor.collect().divergences(permutations=39).set_index("grouping")
    shaped = table[~table["reason"].str.contains("degenerate")]
    target, unseen = shaped.loc["dx"], shaped.loc["sex"]
    assert target[["z", "p", "p_max"]].isna().all(axis=None)
    assert target["valid_for"].str.startswith("descriptive").all()
    assert target["excess"].notna().all()
    assert unseen[["z", "p", "p_max"]].notna().all(axis=None)
    assert (unseen["strata"] == "target").all()
    assert (unseen["valid_for"] == "training people; grouping unseen by training").all()


def test_without_targets_the_assumption_is_said():
    x, y, sex, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    with monitor.watch({"sex": sex}, who):
        cross_entropy(model(x), y).backward()
    table = monitor.collect().divergences(permutations=39)
    assert table["valid_for"].str.contains("assuming").all()
    assert (table["strata"] == "none").all()


def test_what_knows_the_loss_of_the_target_on_the_probe_has_no_p():
    x, y, sex, who = people()
    batch = (x, y, {"dx": y, "sex": sex}, who)
    result = SpectralMonitor(network()).probe([batch], cross_entropy, adjoint="loss")
    table = result.divergences(39).set_index(["grouping", "quantity"]).sort_index()
    for quantity in ("gradient", "adjoint"):
        assert table.loc[("dx", quantity), "p"].isna().all()
        assert table.loc[("sex", quantity), "p"].notna().any()
    activations = table.loc[("dx", "activation")]
    assert activations["p"].notna().all()
    assert set(activations["valid_for"]) == {
        "held-out people; activations know no labels"
    }
    margins = SpectralMonitor(network()).probe([batch]).divergences(39)
    margins = margins.set_index(["grouping", "quantity"]).loc[("dx", "activation")]
    assert margins["p"].tolist() == activations["p"].tolist()
    assert {s.loss_scale for s in result.spectra} == {1 / PEOPLE}


def test_two_class_outputs_are_degenerate_and_left_out():
    x, y, _, who = people()
    table = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)]).divergences(39)
    table = table.set_index(["layer", "quantity"])
    for quantity in ("gradient", "adjoint"):
        assert np.isnan(table.loc[("3", quantity), "value"])
        assert "degenerate" in table.loc[("3", quantity), "reason"]
        assert np.isnan(table.loc[("3", quantity), "p_max"])
    assert table.loc[("3", "activation"), "p"] > 0


def test_relabelling_is_the_same_for_the_same_seed_and_another_for_another():
    x, y, _, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)])
    first, again = (result.divergences(39, seed=4) for _ in range(2))
    other = result.divergences(39, seed=5)
    assert first.equals(again)
    with_null = first[first["null"] != "none"]["null"]
    assert with_null.nunique() == 1
    assert not set(with_null) & set(other["null"])
    assert not first["null_mean"].equals(other["null_mean"])
    assert first["value"].equals(other["value"])


def test_strata_hold_labels_and_say_where_nothing_can_move():
    x, y, sex, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"sex": sex}, who)])
    fixed = {"scanner": dict(zip(who, sex, strict=True))}
    table = result.divergences(19, strata=fixed)
    assert table["z"].isna().all()
    assert table["reason"].str.contains("tell the same people apart|degenerate").all()
    own = {"sex": dict(zip(who, sex, strict=True))}
    assert result.divergences(19, strata=own)["p"].notna().any()
    each = {"family": {person: person for person in who}}
    table = result.divergences(19, strata=each)
    assert table["z"].isna().all()
    assert table["reason"].str.contains("no relabelling|degenerate").all()
    with pytest.raises(InputError, match=r"'scanner'.*'sub-00'"):
        result.divergences(19, strata={"scanner": {"sub-01": "a"}})
    with pytest.raises(InputError, match="strata='site'"):
        result.divergences(19, strata="site")


def test_people_with_several_rows_weigh_the_same():
    """Doubling somebody's rows changes no comparison; weights undo it exactly."""
    x, y, _, who = people()
    monitor = SpectralMonitor(network())
    plain = monitor.probe([(x, y, {"dx": y}, who)]).divergences(39)
    rows = [*range(PEOPLE), 0, 0, 5]
    double = monitor.probe(
        [(x[rows], y[rows], {"dx": y[rows]}, [who[i] for i in rows])]
    ).divergences(39)
    numbers = ["value", "null_mean", "null_sd", "p"]
    np.testing.assert_allclose(plain[numbers], double[numbers], rtol=1e-4, atol=1e-6)
    assert (double["subjects_a"] == plain["subjects_a"]).all()
    assert (double["n_a"] == plain["n_a"] + 2).all()


def test_batches_keep_their_group_sizes_under_relabelling():
    """Two batches of opposite shares: labels move within each, by a slow loop."""
    x, y, sex, who = people(n=24)
    labels = ["a"] * 9 + ["b"] * 3 + ["a"] * 4 + ["b"] * 8
    model = network()
    monitor = SpectralMonitor(model, null_batches=2, layers=["0"])
    for part in (slice(0, 12), slice(12, 24)):
        with monitor.watch({"site": labels[part]}, who[part], targets=sex[part]):
            cross_entropy(model(x[part]), y[part]).backward()
    result = monitor.collect()
    plain = result.divergences(permutations=0).set_index("quantity")
    (found,) = (
        c
        for c in result.comparisons(permutations=29, strata=None, seed=3)
        if c.quantity == "activation"
    )
    assert found.strata == "batch"
    assert found.values[0] == pytest.approx(plain.loc["activation", "value"])
    within = ["0"] * 12 + ["1"] * 12
    expected = []
    for codes in draw_relabellings(labels, within, 29, seed=3):
        values = []
        for part in (slice(0, 12), slice(12, 24)):
            groups = [x[part][codes[part] == code].double().numpy() for code in (0, 1)]
            spectra = [np.linalg.svd(g, compute_uv=False) for g in groups]
            a, b = (np.pad(s, (0, 9 - len(s))) / s.sum() for s in spectra)
            values.append(jensenshannon(a, b, base=2) ** 2)
        expected.append(np.mean(values))
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_somebody_with_two_labels_is_refused():
    x, y, _, who = people()
    mixed = [who[0], who[0], *who[2:]]
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, mixed)])
    with pytest.raises(InputError, match="'sub-00' is in group"):
        result.divergences(19)


def test_three_groups_give_three_pairs():
    x, y, _, who = people()
    site = [("ab", "b", "c")[i % 3] for i in range(PEOPLE)]
    result = SpectralMonitor(network()).probe([(x, y, {"site": site}, who)])
    table = result.divergences(19)
    pairs = set(zip(table["group_a"], table["group_b"], strict=True))
    assert pairs == {("ab", "b"), ("ab", "c"), ("b", "c")}


def test_groups_that_never_meet_in_a_batch_say_so():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model)
    for batch in (y == 0, y == 1):
        rows = batch.nonzero().flatten()
        with monitor.watch({"dx": y[rows]}, [who[i] for i in rows.tolist()]):
            cross_entropy(model(x[rows]), y[rows]).backward()
    table = monitor.collect().divergences(19)
    assert table["value"].isna().all()
    assert table["reason"].str.contains("never in one watched batch").all()


def test_a_group_missing_from_the_kept_batches_has_no_null():
    x, y, _, who = people()
    labels = ["a"] * 8 + ["a", "b"] * 9
    model = network()
    monitor = SpectralMonitor(model, null_batches=1)
    for part in (slice(0, 8), slice(8, 26)):
        with monitor.watch({"site": labels[part]}, who[part]):
            cross_entropy(model(x[part]), y[part]).backward()
    table = monitor.collect().divergences(19)
    shaped = table[~table["reason"].str.contains("degenerate")]
    assert shaped["value"].notna().all()
    assert shaped["p"].isna().all()
    assert shaped["reason"].str.contains("only one of the groups").all()


def test_non_finite_rows_are_kept_marked_and_have_no_null():
    x, y, _, who = people()
    x[0, 0] = torch.nan
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)])
    table = result.divergences(19).set_index(["layer", "quantity"])
    assert np.isnan(table.loc[("0", "activation"), "value"])
    assert "finite" in table.loc[("0", "activation"), "reason"]
    assert table["p"].isna().all()
    assert (table["null"] == "none").all()
    assert result.to_records()[0].nonfinite > 0


def test_records_carry_the_divergences_last_computed_and_free_the_factors():
    x, y, _, who = people()
    result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)], epoch=3)
    (plain,) = result.to_records()
    assert all(np.isnan(row.z) for row in plain.divergences)
    result.divergences(permutations=39)
    (record,) = result.to_records()
    assert (record.epoch, record.source) == (3, "probe")
    assert any(row.p > 0 for row in record.divergences)
    result.release()
    (kept,) = result.to_records()
    assert [row.p for row in kept.divergences if row.p > 0]
    with pytest.raises(CaptureError, match="released"):
        result.divergences(permutations=39)
    assert len(result.divergences(permutations=0)) == len(record.divergences)


def test_a_planted_difference_is_found_and_none_is_not():
    """Labels that decide the spread of half the inputs, and labels that do not."""
    p = {}
    for planted in (False, True):
        generator = torch.Generator().manual_seed(11)
        x = torch.randn(60, INPUTS, generator=generator)
        y = torch.arange(60) % 2
        if planted:
            x[y == 1, :5] *= 0.1
        result = SpectralMonitor(network()).probe([(x, y, {"dx": y}, list(range(60)))])
        table = result.divergences(199).set_index(["layer", "quantity"])
        p[planted] = table.loc[("0", "activation"), "p"]
    assert p[True] == 1 / 200
    assert p[False] > 0.05


def test_the_frame_of_spectra_is_tidy():
    x, y, _, who = people()
    frame = SpectralMonitor(network()).probe([(x, y, {"dx": y}, who)]).to_frame()
    assert len(frame) == 2 * 3 * 3
    assert {"epoch", "source", "layer", "values", "effective_rank", "samples"} <= {
        *frame.columns
    }


def test_samples_without_subjects_are_other_people_in_each_batch():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    monitor = SpectralMonitor(model, null_batches=2)
    for labels in ("aabbb", "ababb"):
        with monitor.watch(list(labels)):
            model(torch.randn(5, 5)).square().sum().backward()
    frame = monitor.collect().divergences(permutations=9)
    assert frame.null.str.contains("of 10 people").any()
    assert frame.p.notna().any()
