"""What a run leaves of its directions and of the groups' influence on each other."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts import FeatureScaler
from spectral_mlops.records import POOLED, Direction, Influence, Quantity
from spectral_mlops.report.angles import RelabelledAngle, angle_figure, with_null
from spectral_mlops.report.brain import (
    connectome_figure,
    direction_to_nifti,
    save_figure,
    volume_figure,
)
from spectral_mlops.report.directions import angle_table, face_alike, join_folds
from spectral_mlops.report.input_maps import InputMaps, write_maps
from spectral_mlops.tracking import safe_name
from spectral_mlops.tracking.details import write_directions, write_influence
from spectral_mlops.training.plan import Plan

Array = NDArray[np.float64]
QUANTITIES: tuple[Quantity, ...] = ("gradient", "activation")
VOXELS = 8_000_000
"""Most numbers of images that are kept for figures; 32 MB before compression."""
NOTE = (
    "Signs are arbitrary: the largest loading is positive, groups are turned to face "
    "the pooled one.\nDirections depend on the size of the groups. Grey: not a feature."
)


class _Drawn(NamedTuple):
    """Directions of one quantity, joined over folds, per group."""

    vectors: dict[str, Array]  # [k, *features]
    shares: dict[str, Array]  # [k]


def leave_directions(
    folder: Path,
    plan: Plan,
    scalers: Sequence[FeatureScaler],
    directions: Sequence[Direction],
    influence: Sequence[Influence],
    angles: Sequence[RelabelledAngle] = (),
    figures: bool = True,
) -> list[Path]:
    """Write tables, figures and images into the run's folder.

    Figures are of the last kept epoch and the primary grouping, joined over folds; of
    layers whose input is not the features themselves there are tables only.

    Args:
        folder: Of the run.
        plan: The run.
        scalers: What each fold's features were scaled with.
        directions: Of all networks.
        influence: Of all networks.
        angles: Of all networks.
        figures: Whether to draw; it takes seconds.

    Returns:
        The files written.
    """
    written: list[Path] = []
    if influence:
        written.append(write_influence(influence, folder / "influence.parquet"))
    if not directions:
        return written
    written.append(write_directions(directions, folder / "directions.parquet"))
    inside = folder / "directions"
    inside.mkdir()
    table = with_null(angle_table(directions), angles)
    table.to_csv(inside / "angles.tsv", sep="\t", index=False)
    written.append(inside / "angles.tsv")
    if figures and table["angle_degrees"].notna().any():
        title = (
            f"How far groups pull {directions[0].layer} apart: {plan.compared} on the "
            f"probe, {len(scalers)} folds"
        )
        figure = angle_figure(table, plan.primary, title)
        written += save_figure(figure, inside / "angles")
    last = max(d.epoch for d in directions)
    kept = [d for d in directions if d.epoch == last and d.status == "ok"]
    joined: dict[str, tuple[_Drawn, str]] = {}
    for quantity in QUANTITIES if figures else ():
        chosen = [d for d in kept if d.quantity == quantity]
        drawn = _joined(plan, scalers, chosen)
        if POOLED in drawn.vectors:
            joined[quantity] = (drawn, _title(chosen, len(scalers)))
            written += _figure(inside / quantity, plan, *joined[quantity])
    if joined and (maps := _maps(plan, joined)) is not None:
        written.append(write_maps(maps, inside / "maps.npz"))
    return written


def _joined(
    plan: Plan, scalers: Sequence[FeatureScaler], directions: Iterable[Direction]
) -> _Drawn:
    """Bring directions back to the features; join each group's over all networks."""
    by_group: dict[str, dict[tuple[int, int], list[Direction]]] = {}
    for one in directions:
        scaler = scalers[one.fold]
        places = scaler.layout in ("vector", "sequence")  # kernels have none
        fits = places and one.shape == (scaler.width,)
        if fits and one.grouping in (plan.primary, POOLED):
            networks = by_group.setdefault(one.group, {})
            networks.setdefault((one.fold, one.seed), []).append(one)
    names = sorted(by_group, key=lambda group: (group == POOLED, group))
    shape = scalers[0].mask.shape
    joined = {}
    for group in names:
        parts = []
        for (fold, _), found in by_group[group].items():
            vectors = np.stack([d.vector for d in found]).astype(np.float64)
            restored = scalers[fold].restore(vectors).reshape(len(found), -1)
            parts.append((restored, np.array([d.share for d in found])))
        joined[group] = join_folds(parts)
    facing = {
        group: face_alike(of.vectors, joined[POOLED].vectors).reshape(-1, *shape)
        for group, of in joined.items()
        if POOLED in joined
    }
    return _Drawn(facing, {group: of.shares for group, of in joined.items()})


def _maps(plan: Plan, joined: Mapping[str, tuple[_Drawn, str]]) -> InputMaps | None:
    """Keep matrices of connections for pages and figures.

    Of voxels, which have images of their own, the first direction is kept, unless it
    is too large.
    """
    space = plan.cohort.space
    if space.order is None and space.affine is None:
        return None
    vectors = {
        quantity: {
            group: x[:1] if space.order is None else space.matrices(x)
            for group, x in drawn.vectors.items()
        }
        for quantity, (drawn, _) in joined.items()
    }
    size = sum(x.size for groups in vectors.values() for x in groups.values())
    if space.order is None and size > VOXELS:
        return None
    shares = {quantity: drawn.shares for quantity, (drawn, _) in joined.items()}
    titles = {quantity: title for quantity, (_, title) in joined.items()}
    affine = space.affine if space.order is None else None
    return InputMaps(vectors, shares, titles, space.networks, affine)


def _title(directions: Sequence[Direction], folds: int) -> str:
    """Say what is drawn."""
    one = directions[0]
    people = "probe" if one.source == "probe" else "last watched batch"
    return (
        f"Leading {one.quantity} directions at the input of {one.layer}\n"
        f"epoch {one.epoch}, {people}, {folds} folds joined"
    )


def _figure(stem: Path, plan: Plan, drawn: _Drawn, title: str) -> list[Path]:
    """Draw connections as matrices, voxels as slices with images beside."""
    space = plan.cohort.space
    names = {g: "everyone" if g == POOLED else g for g in drawn.vectors}
    vectors = {names[group]: x for group, x in drawn.vectors.items()}
    shares = {names[group]: x for group, x in drawn.shares.items()}
    if space.order is not None:
        matrices = {group: space.matrices(x) for group, x in vectors.items()}
        figure = connectome_figure(matrices, space.networks, shares, title, NOTE)
        return save_figure(figure, stem)
    if space.affine is None:
        return []
    note = NOTE.replace("Grey: not a feature.", "White: zero, or not a feature.")
    figure = volume_figure(vectors, space.affine, shares, title, note)
    written = save_figure(figure, stem)
    files: dict[str, str] = {}
    for group, maps in vectors.items():
        files[group] = safe_name(group, files.values())
        for rank, voxels in enumerate(maps, start=1):
            mask = np.isfinite(voxels)
            path = stem.with_name(f"{stem.name}-{files[group]}-{rank}.nii.gz")
            words = f"{stem.name}, {group}, direction {rank}; NaN: no feature"
            direction_to_nifti(voxels[mask], mask, space.affine, path, words)
            written.append(path)
    return written
