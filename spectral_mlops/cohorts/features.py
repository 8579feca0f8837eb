"""Preprocessing fitted on training people only: mask, then z-scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.triangles import Order, rebuild, size_of
from spectral_mlops.config import Layout
from spectral_mlops.errors import InputError

VOLUME_THRESHOLD = 0.1
"""Voxels of volumes are kept if their training mean exceeds this, unless set."""

WORDS: dict[str, str] = {
    "vector": "vectors of connections",
    "matrix": "connectivity matrices",
    "volume": "volumes",
    "sequence": "time courses",
    "windows": "windows of time courses",
}
OFFERED: dict[str, tuple[Layout, ...]] = {
    "vector": ("vector", "matrix"),
    "volume": ("vector", "volume"),
    "sequence": ("sequence",),
    "windows": ("windows",),
}
"""Layouts that each kind of features can be brought to."""


def kind_of(cohort: Cohort) -> Layout:
    """Return the layout that a cohort's features are in as they stand.

    Raises:
        InputError: If features of that shape are of no known kind.
    """
    axes = cohort.features.ndim - 1
    if axes == 1:
        return "vector"
    if axes == 2:
        return "sequence"
    if axes == 3:
        return "volume" if cohort.modality == "volume" else "windows"
    raise InputError(
        f"{cohort.source}: features of {axes} axes a person; a network takes vectors, "
        "time courses [T, C], windows [W, T, C] or volumes [x, y, z]."
    )


def layout_for(cohort: Cohort, takes: tuple[Layout, ...], model: str) -> Layout:
    """Choose the layout in which a network gets a cohort's features.

    Args:
        cohort: The people.
        takes: What the network takes, the one it wants most first.
        model: Its name, for the message.

    Raises:
        InputError: If the cohort's features cannot be brought to any of them.
    """
    kind = kind_of(cohort)
    for layout in takes:
        ordered = layout != "matrix" or cohort.space.order is not None
        if layout in OFFERED[kind] and ordered:
            return layout
    if kind == "vector" and "matrix" in takes:
        raise InputError(
            f"The model '{model}' puts vectors back into matrices, and {cohort.source} "
            "does not say which triangle they are: set order= 'upper' or 'lower'."
        )
    raise InputError(
        f"The model '{model}' takes {' or '.join(WORDS[x] for x in takes)}, and "
        f"{cohort.source} gives {WORDS[kind]}: choose another model (model.name), or "
        "another modality of the cohort."
    )


def inputs_of(cohort: Cohort, layout: Layout) -> int | tuple[int, ...]:
    """Return what a model is built with, before any mask (`FeatureScaler.inputs`)."""
    shape = cohort.features.shape[1:]
    if layout == "matrix":
        n = size_of(shape[0], cohort.source)
        return n, n
    return prod(shape) if layout == "vector" else tuple(shape)


@dataclass(frozen=True, eq=False)
class FeatureScaler:
    """Mean, spread and mask of training people, applied to anyone.

    A feature that was constant in training has told a network nothing: it comes
    out as zero for everyone, also where a later person differs (its ``sd`` is
    stored as 1). Of time courses the features are the components, scaled over all
    time points of all training people (each time point counts the same; a zero time
    point past a person's length is none, and stays zero).

    Attributes:
        shape: Shape of one person's features.
        mask: Kept features, bool: of shape ``shape``, or ``[C]`` of time courses.
        mean: Training mean of each kept feature, shape ``[kept]``.
        sd: Training SD (divided by n, as scikit-learn does), shape ``[kept]``.
        constant: Which kept features were constant, shape ``[kept]``, bool.
        layout: What comes out (`config.Layout`).
        order: Of matrices, which triangle the vectors are.
    """

    shape: tuple[int, ...]
    mask: NDArray[np.bool_]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    constant: NDArray[np.bool_]
    layout: Layout = "vector"
    order: Order = "upper"

    @classmethod
    def fit(
        cls,
        features: NDArray[np.floating],
        threshold: float | None = None,
        *,
        layout: Layout = "vector",
        lengths: NDArray[np.intp] | None = None,
        order: Order | None = None,
    ) -> "FeatureScaler":
        """Fit on training people.

        Args:
            features: Of training people only, ``[people, *shape]``.
            threshold: Keep voxels whose training mean exceeds it; volumes only,
                `VOLUME_THRESHOLD` if not given.
            layout: What shall come out.
            lengths: Of time courses, how many time points each person has; all if
                not given.
            order: Of matrices, which triangle the vectors are; upper if not given.

        Returns:
            The fitted scaler.

        Raises:
            InputError: If there is nobody to fit on, a threshold is given for
                vectors, or no voxel exceeds it.
        """
        if len(features) == 0:
            raise InputError("The scaler needs at least one training person.")
        shape = features.shape[1:]
        if layout in ("sequence", "windows"):
            return cls._fit_time_courses(features, layout, lengths)
        if len(shape) < 2 and threshold is not None:
            raise InputError(
                f"threshold={threshold} selects voxels of volumes; these features are "
                "vectors, of which all are kept; leave it out."
            )
        flat = np.asarray(features).reshape(len(features), -1)
        mean = flat.mean(axis=0, dtype=np.float64)
        mask = np.ones(flat.shape[1], dtype=bool)
        if len(shape) >= 2:
            cut = VOLUME_THRESHOLD if threshold is None else threshold
            mask = mean > cut
            if not mask.any():
                raise InputError(
                    f"No voxel has a training mean above threshold={cut} (the largest "
                    f"is {mean.max():.3g}); lower it."
                )
        kept = flat[:, mask]
        sd = kept.std(axis=0, dtype=np.float64)
        constant = np.ptp(kept, axis=0) == 0
        sd[constant] = 1.0
        where = mask.reshape(shape)
        return cls(
            tuple(shape), where, mean[mask], sd, constant, layout, order or "upper"
        )

    @classmethod
    def _fit_time_courses(
        cls,
        features: NDArray[np.floating],
        layout: Layout,
        lengths: NDArray[np.intp] | None,
    ) -> "FeatureScaler":
        """Fit each component over all time points that are there."""
        rows = np.asarray(features)[_there(features, lengths)].astype(np.float64)
        constant = np.ptp(rows, axis=0) == 0
        sd = rows.std(axis=0)
        sd[constant] = 1.0
        mask = np.ones(features.shape[-1], dtype=bool)
        shape = tuple(features.shape[1:])
        return cls(shape, mask, rows.mean(axis=0), sd, constant, layout)

    @property
    def width(self) -> int:
        """Return the number of features kept."""
        return len(self.mean)

    @property
    def inputs(self) -> int | tuple[int, ...]:
        """Return what a model is built with: the width of vectors, else the shape."""
        if self.layout == "matrix":
            n = size_of(self.width, "the features")
            return n, n
        return self.width if self.layout == "vector" else self.shape

    def transform(
        self,
        features: NDArray[np.floating],
        lengths: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float32]:
        """Mask and z-score anyone's features, and bring them to the layout.

        Args:
            features: Shape ``[people, *shape]``.
            lengths: Of time courses, how many time points each person has.

        Returns:
            A new float32 array: ``[people, kept]`` of vectors, ``[people, 1, n, n]`` of
            matrices (diagonal zero), ``[people, 1, x, y, z]`` of volumes (zero outside
            the mask), ``[people, *shape]`` of time courses (zero past a person's
            length).

        Raises:
            InputError: If a person's features have another shape than in training.
        """
        if features.shape[1:] != self.shape:
            raise InputError(
                f"Features of shape {features.shape[1:]} where the scaler was fitted "
                f"on {self.shape}; use the same cohort settings."
            )
        timed = self.layout in ("sequence", "windows")
        array = np.asarray(features) if timed else np.asarray(features)[:, self.mask]
        kept = array.astype(np.float64)  # [people, *, kept]
        scaled = (kept - self.mean) / self.sd
        scaled[..., self.constant] = 0.0
        if self.layout == "volume":
            volumes = np.zeros((len(scaled), 1, *self.shape), dtype=np.float32)
            volumes[:, 0, self.mask] = scaled
            return volumes
        if self.layout == "matrix":
            matrices = rebuild(scaled, self.order)
            matrices[:, range(matrices.shape[1]), range(matrices.shape[1])] = 0.0
            return matrices[:, None].astype(np.float32)
        if timed:
            scaled[~_there(features, lengths)] = 0.0
        return scaled.astype(np.float32)

    def restore(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Put values over the kept features back where the features stood.

        Args:
            values: Loadings, weights, one per kept feature, shape ``[*, kept]``; in
                units of z-scored features, as a network saw them.

        Returns:
            Shape ``[*, *mask.shape]``; NaN for features left out by the mask or
            constant in training, of which the network knows nothing.

        Raises:
            InputError: If there are more or fewer values.
        """
        if values.shape[-1:] != (self.width,):
            raise InputError(
                f"Values of shape {values.shape} where {self.width} features were kept;"
                " use the scaler of the same fold."
            )
        known = np.where(self.constant, np.nan, values)
        full = np.full((*values.shape[:-1], *self.mask.shape), np.nan)
        full[..., self.mask] = known
        return full

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return plain arrays to store, as `from_arrays` takes them."""
        return {
            "mask": self.mask,
            "mean": self.mean,
            "sd": self.sd,
            "constant": self.constant,
            "shape": np.array(self.shape),
            "layout": np.array(self.layout),
            "order": np.array(self.order),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "FeatureScaler":
        """Rebuild a scaler from `to_arrays`.

        Raises:
            InputError: If an array is missing, or the layout is unknown.
        """
        names = ("mask", "mean", "sd", "constant")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise InputError(
                f"A stored scaler has {', '.join(names)}; missing here: "
                f"{', '.join(missing)}."
            )
        mask = np.asarray(arrays["mask"], dtype=bool)
        layout = str(arrays.get("layout", "vector"))
        if layout not in WORDS:
            raise InputError(
                f"A stored scaler has layout '{layout}': one of {', '.join(WORDS)}."
            )
        return cls(
            tuple(int(n) for n in arrays.get("shape", np.array(mask.shape))),
            mask,
            np.asarray(arrays["mean"], dtype=np.float64),
            np.asarray(arrays["sd"], dtype=np.float64),
            np.asarray(arrays["constant"], dtype=bool),
            cast(Layout, layout),
            "lower" if str(arrays.get("order")) == "lower" else "upper",
        )


def _there(
    features: NDArray[np.floating], lengths: NDArray[np.intp] | None
) -> NDArray[np.bool_]:
    """Tell time points from padding, ``[people, *, T]``."""
    axes = features.shape[:-1]
    if lengths is None:
        return np.ones(axes, dtype=bool)
    if len(axes) > 2:
        raise InputError("lengths are of time courses [people, T, C], not of windows.")
    return np.arange(axes[1]) < np.asarray(lengths)[:, None]
