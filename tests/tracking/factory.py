"""Small made-up epochs with unequal shapes, marked spectra and absent numbers."""

from dataclasses import dataclass, field

import numpy as np

from spectral_mlops.records import (
    POOLED,
    QUANTITIES,
    Divergence,
    EpochRecord,
    Quantity,
    Spectrum,
)

LAYERS = {"encoder.layers.0.linear1": (7, 5), "encoder.act": (5, 9), "head": (9, 2)}
GROUPS = {POOLED: 12, "patient": 4, "control group": 8}


def spectrum(
    layer: str = "head",
    quantity: Quantity = "gradient",
    group: str = POOLED,
    *,
    grouping: str | None = None,
    values: tuple[float, ...] | None = None,
    status: str = "ok",
    step: int = 0,
    shape: tuple[int, int] = (9, 2),
    seed: int = 0,
) -> Spectrum:
    rng = np.random.default_rng([seed + 1, step, len(layer), len(group)])
    if values is None:
        sigma = np.sort(rng.gamma(2.0, size=min(shape)))[::-1].copy()
    else:
        sigma = np.array(values, dtype=np.float64)
    if status != "ok":
        sigma = np.full_like(sigma, np.nan)
    p = sigma[sigma > 0] / sigma.sum()
    summaries = {"effective_rank": float(np.exp(-(p * np.log(p)).sum()))}
    if status != "ok":
        summaries["effective_rank"] = np.nan
    if len(sigma) > 4:
        summaries["power_law_slope"] = -1.25
    samples = GROUPS.get(group, 3)
    return Spectrum(
        layer=layer,
        quantity=quantity,
        grouping=grouping or (POOLED if group == POOLED else "diagnosis"),
        group=group,
        values=sigma,
        samples=samples,
        rows=samples,
        batch_samples=12,
        subjects=samples,
        loss_scale=1 / 12,
        shape=shape,
        route="gram",
        floor=1e-7,
        below_floor=0,
        status=status,
        summaries=summaries,
        step=step,
    )


def divergence(
    layer: str = "head",
    quantity: Quantity = "gradient",
    value: float = 0.2,
    *,
    null_mean: float = 0.1,
    z: float = 1.5,
    name: str = "js",
    grouping: str = "diagnosis",
    pair: tuple[str, str] = ("control group", "patient"),
    source: str = "train",
    reason: str = "",
) -> Divergence:
    return Divergence(
        layer=layer,
        quantity=quantity,
        grouping=grouping,
        group_a=pair[0],
        group_b=pair[1],
        divergence=name,
        value=value,
        null_mean=null_mean,
        null_sd=0.05,
        excess=value - null_mean,
        z=z,
        p=np.nan,
        p_max=np.nan,
        n_a=8,
        n_b=4,
        subjects_a=8,
        subjects_b=4,
        source=source,
        null="",
        strata="site",
        valid_for="description only",
        reason=reason,
    )


def record(epoch: int = 0, *, source: str = "train", fold: int = 0) -> EpochRecord:
    """Two steps of three layers and three groups; one spectrum is not finite."""
    spectra = [
        spectrum(layer, quantity, group, step=step, shape=shape, seed=epoch)
        for step in (0, 3)
        for layer, shape in LAYERS.items()
        for quantity in QUANTITIES
        for group in GROUPS
    ]
    spectra[2] = spectrum(
        "encoder.layers.0.linear1", group="control group", status="non-finite"
    )
    rows = [
        divergence(layer, quantity, 0.1 * (1 + place) + 0.01 * epoch, source=source)
        for place, layer in enumerate(list(LAYERS)[:2])
        for quantity in QUANTITIES
    ]
    rows += [
        divergence("head", q, np.nan, z=np.nan, source=source, reason="rank bound 1")
        for q in QUANTITIES
    ]
    return EpochRecord(epoch, source, tuple(spectra), tuple(rows), fold)


@dataclass
class Epoch:
    """Stands for the monitor's EpochSpectra."""

    records: list[EpochRecord]
    released: bool = field(default=False, init=False)

    def to_records(self) -> list[EpochRecord]:
        assert not self.released
        return self.records

    def release(self) -> None:
        self.released = True


def epoch(number: int = 0) -> Epoch:
    probe = EpochRecord(number, "probe", (), record(number, source="probe").divergences)
    return Epoch([record(number), probe])


def in_order(records: list[EpochRecord]) -> list[EpochRecord]:
    return sorted(records, key=lambda r: (r.epoch, r.source, r.fold, r.seed))


def same(first: EpochRecord, second: EpochRecord) -> bool:
    """Compare two records bit for bit, NaN equal to NaN."""
    return _plain(first) == _plain(second)


def _plain(item: EpochRecord) -> object:
    spectra = [
        (
            [
                repr(getattr(s, name))
                for name in Spectrum.__slots__
                if name not in ("values", "summaries")
            ],
            s.values.tobytes(),
            {name: repr(value) for name, value in s.summaries.items()},
        )
        for s in item.spectra
    ]
    rows = list(map(repr, item.divergences))
    return item.epoch, item.source, item.fold, item.seed, spectra, rows
