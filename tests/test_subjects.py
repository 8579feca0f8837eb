import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_ind
from torch import nn

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.inference.relabel import draw_relabellings


def people(n=14):
    torch.manual_seed(2)
    sex = ["f" if i % 3 else "m" for i in range(n)]
    return torch.randn(n, 7), sex, [f"sub-{i:02d}" for i in range(n)]


def watched(rows_per_person=1):
    x, sex, who = people()
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    monitor = SpectralMonitor(model, reduction="sum", null_batches=2)
    x, sex, who = (
        torch.cat([x] * rows_per_person) + 0.1 * torch.randn(14 * rows_per_person, 7),
        sex * rows_per_person,
        who * rows_per_person,
    )
    with monitor.watch({"sex": sex}, who):
        model(x).square().sum().backward()
    return model, x, sex, who, monitor.collect()


@pytest.mark.parametrize("rows_per_person", [1, 3])
def test_each_person_alone(rows_per_person):
    model, x, _, who, result = watched(rows_per_person)
    frame = result.per_subject().set_index(["layer", "subject"])
    assert len(frame) == 2 * 14
    for name in ("0", "2"):
        weight = model.get_submodule(name).weight
        gradients = {}
        for person in dict.fromkeys(who):
            own = x[[i for i, other in enumerate(who) if other == person]]
            loss = model(own).square().sum() / len(own)  # scan length must not matter
            gradients[person] = torch.autograd.grad(loss, weight)[0].flatten()
        whole = sum(gradients.values())
        for person, gradient in gradients.items():
            row = frame.loc[name, person]
            assert row.log_norm == pytest.approx(float(gradient.norm().log()), abs=1e-4)
            cosine = torch.cosine_similarity(gradient, whole, dim=0)
            assert row.cosine == pytest.approx(float(cosine), abs=1e-4)


def test_without_nuisance_it_is_a_permuted_t_test():
    _, _, sex, who, result = watched()
    table = result.adjusted("sex", {}, permutations=99, seed=4)
    assert list(table["layer"]) == ["0", "2", "0", "2"]
    wide = result.per_subject().pivot(index="subject", columns="layer")
    labels = [sex[who.index(person)] for person in wide.index]
    codes = draw_relabellings(labels, ["all"] * 14, 99, 4)
    for _, row in table.iterrows():
        y = wide[row.scalar, row.layer].to_numpy()
        t = np.abs([ttest_ind(y[c == 0], y[c == 1]).statistic for c in codes])
        assert row.value == pytest.approx(t[0])
        assert row.p == pytest.approx(np.mean(t >= t[0] * (1 - 1e-9)))
        assert row.p <= row.p_max <= 1


def test_what_a_nuisance_explains_is_no_difference():
    _, _, _, who, result = watched()
    scalars = result.per_subject()
    own = scalars[scalars["layer"] == "0"].set_index("subject")["log_norm"]
    groups = {person: "hi" if own[person] > own.median() else "lo" for person in who}
    x, _, _ = people()
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    monitor = SpectralMonitor(model, reduction="sum")
    with monitor.watch({"half": [groups[person] for person in who]}, who):
        model(x).square().sum().backward()
    result = monitor.collect()
    plain = result.per_subject().pivot(index="subject", columns="layer")
    motion = plain["log_norm", "0"].to_dict()  # the very number
    table = result.adjusted("half", {"motion": motion, "site": dict.fromkeys(who, "a")})
    held = table[(table.layer == "0") & (table.scalar == "log_norm")].iloc[0]
    assert np.isnan(held.p)
    assert held.reason
    assert (table.nuisance == "motion + site").all()


def test_a_target_that_training_knew_has_no_p_and_others_stay_within_it():
    x, sex, who = people()
    classes = [int(i % 4 < 2) for i in range(14)]
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    monitor = SpectralMonitor(model, reduction="sum")
    groups = {"sex": sex, "class": classes}
    with monitor.watch(groups, who, targets=classes):
        model(x).square().sum().backward()
    result = monitor.collect()
    table = result.adjusted("class", {})
    assert table.p.isna().all()
    assert table.p_max.isna().all()
    assert table.reason.str.startswith("descriptive: the grouping is the target").all()
    within = {
        "target": {person: str(c) for person, c in zip(who, classes, strict=True)}
    }
    auto = result.adjusted("sex", {}, seed=2)
    given = result.adjusted("sex", {}, strata=within, seed=2)
    pd.testing.assert_frame_equal(auto, given)
    assert not auto.equals(result.adjusted("sex", {}, strata={}, seed=2))


def test_refusals():
    _, _, _, who, result = watched()
    with pytest.raises(InputError, match="No grouping 'age'"):
        result.adjusted("age", {})
    with pytest.raises(InputError, match="'age' says nothing about subject"):
        result.adjusted("sex", {"age": {who[0]: 1.0}})
    result.release()
    with pytest.raises(CaptureError, match="released"):
        result.per_subject()


def test_the_frame_is_tidy():
    frame = watched()[-1].per_subject()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame) == ["layer", "subject", "log_norm", "cosine"]
    assert frame.cosine.between(-1, 1).all()
