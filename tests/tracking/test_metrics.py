from dataclasses import replace

import numpy as np
import pytest

from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking import KeyNames, record_metrics, safe_name
from tests.tracking.factory import divergence, epoch, record, spectrum


def of(*items: object, source: str = "train", fold: int = 0) -> EpochRecord:
    spectra = tuple(i for i in items if hasattr(i, "values"))
    rows = tuple(i for i in items if hasattr(i, "value"))
    return EpochRecord(0, source, spectra, rows, fold)  # type: ignore[arg-type]


def test_layers_are_averaged_after_folds_and_pairs() -> None:
    first = of(divergence("a", value=0.1), divergence("b", value=0.6))
    second = of(
        divergence("a", value=0.2),
        divergence("a", value=0.3, pair=("x", "y")),
        fold=1,
    )
    metrics = record_metrics([first, second])
    assert metrics["div_grad/00_a"] == pytest.approx(0.2)
    assert metrics["spectral/grad_div"] == pytest.approx((0.2 + 0.6) / 2)
    assert metrics["spectral/grad_div_max"] == pytest.approx(0.6)
    assert metrics["excess/gradient"] == pytest.approx(0.3)


def test_only_the_first_divergence_and_grouping_count() -> None:
    metrics = record_metrics(
        [
            of(
                divergence("a", value=0.1),
                divergence("a", value=9.0, name="hellinger"),
                divergence("a", value=9.0, grouping="sex"),
            )
        ]
    )
    assert metrics["spectral/grad_div"] == pytest.approx(0.1)


def test_without_a_null_there_is_a_divergence_and_no_excess() -> None:
    metrics = record_metrics([of(divergence("a", null_mean=np.nan))])
    assert "spectral/grad_div" in metrics
    assert not [key for key in metrics if key.startswith("excess/")]


def test_probe_gives_z_and_nothing_of_training() -> None:
    rows = [divergence("a", z=2.5), divergence("b", z=np.inf)]
    assert record_metrics([of(*rows, source="probe")]) == {"probe_grad/00_a": 2.5}


def test_effective_rank_leaves_out_degenerate_layers_and_marked_spectra() -> None:
    metrics = record_metrics(
        [
            of(
                spectrum("a", values=(1.0, 1.0)),
                spectrum("a", values=(1.0, 1.0, 1.0, 1.0), step=1),
                spectrum("b", values=(2.0, 2.0, 0.0)),
                spectrum("b", status="non-finite", step=1),
                spectrum("head", values=(3.0, 0.0)),
            )
        ]
    )
    assert metrics == {
        "erank_grad/all": pytest.approx((3 + 2) / 2),
        "spectral/nonfinite": 1.0,
    }


def test_charted_summaries_are_at_their_scale() -> None:
    base = spectrum("a", values=(4.0, 3.0))
    summaries = {"effective_rank": 1.9, "stable_rank": 1.5, "frobenius_norm": 5.0}
    metrics = record_metrics([of(replace(base, summaries=summaries))])
    scale = base.loss_scale * base.samples
    assert metrics["norm_grad/all"] == pytest.approx(5.0 / scale)
    assert metrics["srank_grad/all"] == 1.5
    assert metrics["erank_grad/all"] == 1.9
    assert not [key for key in metrics if key.startswith("lead")]


def test_a_whole_epoch_has_finite_values_and_short_names() -> None:
    metrics = record_metrics(epoch().records)
    assert np.isfinite(list(metrics.values())).all()
    assert {
        "erank_grad/all",
        "erank_adj/patient",
        "erank_act/control_group",
        "spectral/act_div",
        "spectral/adj_div_max",
        "excess/adjoint",
        "div_grad/00_layers.0.linear1",
        "div_act/01_encoder.act",
        "probe_adj/00_layers.0.linear1",
        "spectral/nonfinite",
    } <= metrics.keys()
    assert not [key for key in metrics if "head" in key]


def test_groups_whose_names_look_alike_keep_keys_of_their_own() -> None:
    names = KeyNames()
    labels = ["a b", "a_b", "a/b", "σ", "all ", "a b"]
    keys = [names.group("site", label) for label in labels]
    assert keys[0] == keys[5] == "a_b"
    assert len(set(keys)) == 5
    assert names.group("sex", "1") == "sex.1"
    assert names.group("all", "all") == "all"


def test_a_group_that_comes_later_takes_no_key() -> None:
    names = KeyNames()
    record_metrics([of(spectrum("l", group="a_b", values=(1.0, 1.0)))], names)
    both = [
        spectrum("l", group="a b", values=(1.0, 1.0)),
        spectrum("l", group="a_b", values=(1.0, 1.0, 1.0)),
    ]
    metrics = record_metrics([of(*both)], names)
    assert metrics["erank_grad/a_b"] == pytest.approx(3)
    assert len(metrics) == 2


@pytest.mark.parametrize("text", ["", "σ", "a b", "..", "a" * 300, "1", "ctl[0]"])
def test_safe_names_have_safe_characters(text: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert safe_name(text)
    assert set(safe_name(text)) <= allowed
    assert safe_name(text, [safe_name(text)]) != safe_name(text)


@pytest.mark.parametrize("count", [1, 11, 12, 121, 500])
def test_layer_keys_are_capped_evenly_and_stay(count: int) -> None:
    layers = [f"blocks.{place}.fc" for place in range(count)]
    rows = [
        divergence(layer, quantity)
        for layer in layers
        for quantity in ("gradient", "activation", "adjoint")
    ]
    names = KeyNames()
    keys = [key for key in record_metrics([of(*rows)], names) if key[:4] == "div_"]
    assert len(keys) == 3 * min(count, 70 // 2 // 3)
    grad = sorted(key for key in keys if key.startswith("div_grad/"))
    places = [int(key.split("/")[1].split("_")[0]) for key in grad]
    assert places[0] == 0
    assert places[-1] == count - 1
    assert places == sorted(places)
    later = record_metrics([of(*rows[3:], divergence("new"))], names)
    assert {key for key in later if key[:4] == "div_"} <= set(keys)


def test_records_without_divergences_give_effective_ranks_only() -> None:
    bare = EpochRecord(0, "train", record().spectra)
    assert {key.split("/")[0] for key in record_metrics([bare])} == {
        "erank_grad",
        "erank_act",
        "erank_adj",
        "spectral",
    }
