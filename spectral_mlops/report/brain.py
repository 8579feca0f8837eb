"""Directions of input space on the brain: connectomes, slices, NIfTI.

Colours are those of ColorBrewer's red–blue scale, which most colour-blind people tell
apart; white is zero, grey is where nothing is known (on slices, which nilearn draws,
white too). All panels of a figure share one scale.
"""

import gzip
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Shares = Mapping[str, Sequence[float] | Array]

COLOURS = "RdBu_r"
UNKNOWN = "0.85"
"""Grey of what is not known: the diagonal, features left out."""
CLIPPED = 99.5
"""Percentile of absolute loadings at which the scale ends, so that one connection does
not pale all others."""
ORDINALS = ("1st", "2nd", "3rd")


def connectome_figure(
    matrices: Mapping[str, Array],
    networks: Sequence[str] = (),
    shares: Shares | None = None,
    title: str = "",
    note: str = "",
) -> "Figure":
    """Draw directions over connections, a column per group, a row per direction.

    Args:
        matrices: Group to symmetric matrices, shape ``[k, n, n]``; NaN is grey.
        networks: One name a network; borders and names of domains are drawn where
            names are a domain and a number (``SC1``, `domains_of`).
        shares: Group to each direction's share of energy.
        title: Above all panels.
        note: Below, what a reader must know.

    Returns:
        The figure, not shown.

    Raises:
        InputError: If there is nothing to draw, or names do not fit.
    """
    sizes = {matrix.shape[-1] for matrix in matrices.values()}
    if len(sizes) != 1 or (networks and {len(networks)} != sizes):
        raise InputError(
            f"Matrices of {sorted(sizes)} networks and {len(networks)} names of them: "
            "give square matrices of one size, and one name a network."
        )
    (n,) = sizes
    domains = domains_of(networks)
    rows = max(len(matrix) for matrix in matrices.values())
    figure, axes, limit = _panels(matrices, rows, len(matrices), title, note)
    image: Any = None
    for column, (group, stack) in enumerate(matrices.items()):
        for row in range(rows):
            panel = axes[row, column]
            if row >= len(stack):
                panel.set_axis_off()
                continue
            image = _draw(panel, stack[row], limit)
            share = (shares or {}).get(group)
            panel.set_title(f"{group}\n{_rank(row, share)}", fontsize=8.5)
            _borders(panel, domains, n, named_rows=column == 0)
    _scale(figure, axes, image, matrices, limit)
    return figure


def volume_figure(
    volumes: Mapping[str, Array],
    affine: Array,
    shares: Shares | None = None,
    title: str = "",
    note: str = "",
) -> "Figure":
    """Draw the first direction over voxels: nilearn's three slices per group.

    The slices go through the largest absolute loading of the last group; letters say
    which side is left.

    Args:
        volumes: Group to maps, shape ``[k, x, y, z]``, axes RAS; NaN is white, as zero.
        affine: From voxels to mm.
        shares: Group to each direction's share of energy.
        title: Above all panels.
        note: Below, what a reader must know.

    Returns:
        The figure, not shown.

    Raises:
        InputError: If there is nothing to draw.
    """
    if not volumes or any(len(maps) == 0 for maps in volumes.values()):
        raise InputError("There is no map to draw.")
    firsts = {group: maps[:1] for group, maps in volumes.items()}
    figure, axes, limit = _panels(firsts, len(firsts), 1, title, note, 0.85, wide=3)
    last = np.nan_to_num(list(firsts.values())[-1][0])
    at = np.unravel_index(np.abs(last).argmax(), last.shape)
    place = tuple(float(x) for x in (affine @ [*at, 1.0])[:3])
    where = ", ".join(f"{c} = {x:.0f} mm" for c, x in zip("xyz", place, strict=True))
    image: Any = None
    for row, (group, maps) in enumerate(firsts.items()):
        frame = axes[row, 0]
        words = f"{group}: {_rank(0, (shares or {}).get(group))}"
        said = f"{words}\n{where}".replace("-", "−") if row == 0 else words
        frame.set_title(said, fontsize=8.5, loc="left")
        image = _slices(figure, frame, maps[0], affine, place, limit)
    _scale(figure, axes, image, firsts, limit)
    return figure


def _slices(
    figure: "Figure",
    frame: "Axes",
    values: Array,
    affine: Array,
    place: tuple[float, ...],
    limit: float,
) -> Any:
    """Let nilearn draw three slices over a frame, and follow it when it moves.

    nilearn places slices once; the frame gets its place when the figure is drawn.
    """
    import nibabel
    from nilearn.plotting import plot_stat_map

    image: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        np.nan_to_num(values).astype(np.float32), affine
    )
    display = plot_stat_map(
        image,
        bg_img=None,
        figure=figure,
        axes=frame,
        cut_coords=place,
        colorbar=False,
        cmap=COLOURS,
        vmin=-limit,
        vmax=limit,
        black_bg=False,
        annotate=False,
        draw_cross=False,  # it is thick, and hides the voxel that it is about
    )
    display.annotate(size=7, positions=False)
    display.draw_cross(cut_coords=place, color="0.3", linewidth=0.6)

    def follow(inner: Any) -> Any:
        def locate(axes: Any, renderer: Any) -> Any:
            display.rect = frame.get_position().extents
            return inner(axes, renderer).shrunk(0.94, 1.0)  # a gap between slices

        return locate

    slices = [cut.ax for cut in display.axes.values()]
    for axes in slices:
        axes.set_axes_locator(follow(axes.get_axes_locator()))
    return slices[0].images[0]


def direction_to_nifti(
    vector: NDArray[np.floating],
    mask: NDArray[np.bool_],
    affine: Array,
    path: Path,
    description: str = "direction",
) -> Path:
    """Write a direction over the voxels of a mask as an image.

    Args:
        vector: Shape ``[mask.sum()]``, in the mask's row-major order.
        mask: Shape ``[x, y, z]``.
        affine: From voxels to mm, of the mask's grid.
        path: Ending in ``.nii.gz``; compressed without a time stamp.
        description: Up to 79 characters for the header.

    Returns:
        The path. Voxels outside of the mask are NaN, as are unknown loadings.

    Raises:
        InputError: If vector and mask do not fit.
    """
    import nibabel

    if vector.shape != (int(mask.sum()),):
        raise InputError(
            f"A direction of shape {vector.shape} for a mask of {int(mask.sum())} "
            "voxels: give the mask that the features were cut with."
        )
    voxels = np.full(mask.shape, np.nan, dtype=np.float32)
    voxels[mask] = vector
    image: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        voxels, affine
    )
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with (
        path.open("wb") as stream,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0) as packed,
    ):
        packed.write(image.to_bytes())
    return path


def domains_of(networks: Sequence[str]) -> list[tuple[str, int, int]]:
    """Find runs of networks of one domain: ``SC1, SC2, AU1`` are two.

    Returns:
        Name, start and end of each; none unless every name is a domain and a number,
        some domain has several networks, and each stands in one piece.
    """
    bare = [name.rstrip("0123456789").rstrip("_-. ") for name in networks]
    if not all(b and b != name for b, name in zip(bare, networks, strict=True)):
        return []
    found, start = [], 0
    for name, run in groupby(bare):
        stop = start + len(list(run))
        found.append((name, start, stop))
        start = stop
    pieces = len({name for name, _, _ in found}) == len(found)
    return found if pieces and 1 < len(found) < len(bare) else []


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write ``stem.png`` (200 dpi) and ``stem.svg``, the same bytes every time."""
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    with matplotlib.rc_context({"svg.hashsalt": stem.name}):
        figure.savefig(paths[0], dpi=200, metadata={"Software": None})
        figure.set_layout_engine("none")  # as laid out just now; takes a second
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _panels(
    arrays: Mapping[str, Array],
    rows: int,
    columns: int,
    title: str,
    note: str,
    height: float = 1.0,
    wide: int = 1,
) -> tuple["Figure", NDArray[Any], float]:
    """Return a figure, its axes ``[rows, columns]`` and where the scale ends.

    A panel is ``wide`` times as wide as a square one.
    """
    from matplotlib.figure import Figure

    side = 2.7
    figure = Figure(
        figsize=(side * columns * wide + 1.3, side * height * rows + 1.1),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    if note:
        figure.supxlabel(note, fontsize=7.5, color="0.35")
    known = np.concatenate([np.abs(x[np.isfinite(x)]) for x in arrays.values()])
    limit = float(np.percentile(known, CLIPPED)) if len(known) else 0.0
    return figure, axes, limit or 1.0


def _draw(panel: "Axes", values: Array, limit: float, **more: Any) -> Any:
    """Draw one array with zero in the middle of the colours."""
    import matplotlib

    colours = matplotlib.colormaps[COLOURS].with_extremes(bad=UNKNOWN)
    return panel.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
        **more,
    )


def _rank(row: int, shares: Sequence[float] | Array | None) -> str:
    """Say which direction it is, and how much it carries."""
    rank = ORDINALS[row] if row < len(ORDINALS) else f"{row + 1}th"
    share = f", {shares[row]:.0%} of energy" if shares is not None else ""
    return f"{rank} direction{share}"


def _borders(
    panel: "Axes", domains: list[tuple[str, int, int]], n: int, named_rows: bool
) -> None:
    """Draw borders between domains, and their names where there is room."""
    if not domains:
        panel.tick_params(labelsize=6)
        return
    for _, start, _ in domains[1:]:
        panel.axhline(start - 0.5, color="0.45", linewidth=0.5)
        panel.axvline(start - 0.5, color="0.45", linewidth=0.5)
    middles = [(start + stop - 1) / 2 for _, start, stop in domains]
    names = [name for name, _, _ in domains]
    panel.set_xticks(middles, names, rotation=90, fontsize=6)
    panel.set_yticks(middles, names if named_rows else [], fontsize=6)
    panel.tick_params(length=0, pad=2)
    panel.set_xlim(-0.5, n - 0.5)
    panel.set_ylim(n - 0.5, -0.5)


def _scale(
    figure: "Figure",
    axes: NDArray[Any],
    image: Any,
    arrays: Mapping[str, Array],
    limit: float,
) -> None:
    """Draw one colour scale beside all panels; pointed where values go beyond."""
    beyond = any((np.abs(np.nan_to_num(x)) > limit).any() for x in arrays.values())
    bar = figure.colorbar(
        image,
        ax=axes.ravel().tolist(),
        shrink=0.6,
        aspect=30,
        extend="both" if beyond else "neither",
    )
    bar.set_label("loading (direction has length 1)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
