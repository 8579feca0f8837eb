"""Preprocessing fitted on training people only: mask, then z-scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

VOLUME_THRESHOLD = 0.1
"""Voxels of volumes are kept if their training mean exceeds this, unless set."""


@dataclass(frozen=True, eq=False)
class FeatureScaler:
    """Mean, spread and mask of training people, applied to anyone.

    A feature that was constant in training has told a network nothing: it comes
    out as zero for everyone, also where a later person differs (its ``sd`` is
    stored as 1).

    Attributes:
        shape: Shape of one person's features.
        mask: Kept features, shape ``shape``, bool.
        mean: Training mean of each kept feature, shape ``[kept]``.
        sd: Training SD (divided by n, as scikit-learn does), shape ``[kept]``.
        constant: Which kept features were constant, shape ``[kept]``, bool.
    """

    shape: tuple[int, ...]
    mask: NDArray[np.bool_]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    constant: NDArray[np.bool_]

    @classmethod
    def fit(
        cls, features: NDArray[np.floating], threshold: float | None = None
    ) -> "FeatureScaler":
        """Fit on training people.

        Args:
            features: Of training people only, ``[people, *shape]``.
            threshold: Keep voxels whose training mean exceeds it; volumes only,
                `VOLUME_THRESHOLD` if not given.

        Returns:
            The fitted scaler.

        Raises:
            InputError: If there is nobody to fit on, a threshold is given for
                vectors, or no voxel exceeds it.
        """
        if len(features) == 0:
            raise InputError("The scaler needs at least one training person.")
        shape = features.shape[1:]
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
        return cls(tuple(shape), mask.reshape(shape), mean[mask], sd, constant)

    @property
    def width(self) -> int:
        """Return the number of features kept."""
        return len(self.mean)

    def transform(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Mask, flatten and z-score anyone's features.

        Args:
            features: Shape ``[people, *shape]``.

        Returns:
            A new float32 array, shape ``[people, kept]``.

        Raises:
            InputError: If a person's features have another shape than in training.
        """
        if features.shape[1:] != self.shape:
            raise InputError(
                f"Features of shape {features.shape[1:]} where the scaler was fitted "
                f"on {self.shape}; use the same cohort settings."
            )
        kept = np.asarray(features)[:, self.mask].astype(np.float64)  # [people, kept]
        scaled = (kept - self.mean) / self.sd
        scaled[:, self.constant] = 0.0
        return scaled.astype(np.float32)

    def restore(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Put values over the kept features back where the features stood.

        Args:
            values: Loadings, weights, one per kept feature, shape ``[*, kept]``; in
                units of z-scored features, as a network saw them.

        Returns:
            Shape ``[*, *shape]``; NaN for features left out by the mask or constant
            in training, of which the network knows nothing.

        Raises:
            InputError: If there are more or fewer values.
        """
        if values.shape[-1:] != (self.width,):
            raise InputError(
                f"Values of shape {values.shape} where {self.width} features were kept;"
                " use the scaler of the same fold."
            )
        known = np.where(self.constant, np.nan, values)
        full = np.full((*values.shape[:-1], *self.shape), np.nan)
        full[..., self.mask] = known
        return full

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return plain arrays to store, as `from_arrays` takes them."""
        return {
            "mask": self.mask,
            "mean": self.mean,
            "sd": self.sd,
            "constant": self.constant,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "FeatureScaler":
        """Rebuild a scaler from `to_arrays`.

        Raises:
            InputError: If an array is missing.
        """
        names = ("mask", "mean", "sd", "constant")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise InputError(
                f"A stored scaler has {', '.join(names)}; missing here: "
                f"{', '.join(missing)}."
            )
        mask = np.asarray(arrays["mask"], dtype=bool)
        return cls(
            mask.shape,
            mask,
            np.asarray(arrays["mean"], dtype=np.float64),
            np.asarray(arrays["sd"], dtype=np.float64),
            np.asarray(arrays["constant"], dtype=bool),
        )
