"""Numbers that tell whether simulated people look like real ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.float64]

PERCENTILES = (1, 25, 50, 75, 99)
SPREADS = (50, 90, 99)
BANDS = (0.0, 0.01, 0.1, np.inf)  # Hz
STRENGTH = 10.0  # C times the number of features, as the package's own baseline


def cohens_d(values: Array, patients: NDArray[np.bool_]) -> Array:
    """Standardised difference of means, pooled SD, shape ``[features]``."""
    a, b = values[patients], values[~patients]
    pooled = (len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)
    return (a.mean(0) - b.mean(0)) / np.sqrt(pooled / (len(values) - 2))


def participation_ratio(values: Array) -> float:
    """``(Σλ)² / Σλ²`` of the people's covariance over features."""
    centred = values - values.mean(0)
    gram = centred @ centred.T
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def auc(values: Array, patients: NDArray[np.bool_], seeds: Sequence[int]) -> float:
    """Five-fold AUC of L2 logistic regression, mean over ways of making folds."""
    model = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=STRENGTH / values.shape[1], max_iter=5000),
    )
    areas = []
    for seed in seeds:
        folds = list(
            StratifiedKFold(5, shuffle=True, random_state=seed).split(values, patients)
        )
        said = cross_val_predict(
            model, values, patients, cv=folds, method="decision_function"
        )
        areas += [roc_auc_score(patients[held], said[held]) for _, held in folds]
    return float(np.mean(areas))


def connectivity(
    r: Array, patients: NDArray[np.bool_], seeds: Sequence[int]
) -> dict[str, float]:
    """Describe vectors of correlations.

    Args:
        r: Row-major upper triangles, shape ``[people, connections]``.
        patients: Shape ``[people]``.
        seeds: Of permutations and folds.
    """
    z = np.arctanh(np.clip(r, -0.999999, 0.999999))
    found = {
        "SD of z between people, median": float(np.median(z.std(0))),
        "mean z": float(z.mean()),
    }
    for percent, value in zip(PERCENTILES, np.percentile(r, PERCENTILES), strict=True):
        found[f"r, percentile {percent}"] = float(value)
    d = np.abs(cohens_d(z, patients))
    for percent, value in zip(SPREADS, np.percentile(d, SPREADS), strict=True):
        found[f"size of d, percentile {percent}"] = float(value)
    moved = [
        np.percentile(
            np.abs(cohens_d(z, np.random.default_rng(seed).permutation(patients))),
            SPREADS,
        )
        for seed in range(20)
    ]
    for percent, value in zip(SPREADS, np.mean(moved, axis=0), strict=True):
        found[f"size of d, groups permuted, percentile {percent}"] = float(value)
    found["participation ratio"] = participation_ratio(z)
    for name, chosen in (("controls", ~patients), ("patients", patients)):
        found[f"leading eigenvalue, mean of {name}"] = float(
            np.mean([leading(person) for person in r[chosen]])
        )
    found["AUC"] = auc(z, patients, seeds)
    return found


def leading(upper: Array) -> float:
    """Largest eigenvalue of a correlation matrix given by its upper triangle."""
    size = round((1 + np.sqrt(1 + 8 * len(upper))) / 2)
    matrix = np.eye(size)
    matrix[np.triu_indices(size, 1)] = upper
    return float(np.linalg.eigvalsh(matrix + np.triu(matrix, 1).T)[-1])


def signals(courses: Sequence[Array], seconds: float) -> dict[str, float]:
    """Describe time courses, each ``[T, C]``, but for components that never change."""
    lagged, shares = [], []
    for course in courses:
        x = course[:, course.std(0) > 0]
        x = (x - x.mean(0)) / x.std(0)
        lagged.append((x[1:] * x[:-1]).mean())
        power = np.abs(np.fft.rfft(x, axis=0)[1:]) ** 2
        hertz = np.fft.rfftfreq(len(x), seconds)[1:]
        place = np.digitize(hertz, BANDS[1:3], right=True)
        shares.append([power[place == k].sum() / power.sum() for k in range(3)])
    found = {"autocorrelation at lag 1": float(np.mean(lagged))}
    names = ("below 0.01 Hz", "0.01 to 0.1 Hz", "above 0.1 Hz")
    mean = np.mean(shares, axis=0)
    return found | {f"power {n}": float(x) for n, x in zip(names, mean, strict=True)}


def volumes(
    maps: NDArray[np.float32],
    voxel_mm: float,
    patients: NDArray[np.bool_],
    sites: NDArray[np.str_],
    seeds: Sequence[int],
) -> dict[str, float]:
    """Describe grey-matter maps, shape ``[people, x, y, z]``, in voxels above 0.2."""
    mask = maps.mean(0) > 0.2
    kept = maps[:, mask].astype(np.float64)
    totals = kept.sum(1)
    d = cohens_d(kept, patients)
    return {
        "grey matter, patients less controls, %": float(
            100 * (totals[patients].mean() / totals[~patients].mean() - 1)
        ),
        "d of a voxel, mean": float(d.mean()),
        "size of d, percentile 99": float(np.percentile(np.abs(d), 99)),
        "FWHM of residuals, mm": fwhm(maps, mask, patients, voxel_mm),
        "variance of a voxel between sites, median %": 100 * share(kept, sites),
        "AUC": auc(kept, patients, seeds),
    }


def fwhm(
    maps: NDArray[np.float32],
    mask: NDArray[np.bool_],
    patients: NDArray[np.bool_],
    voxel_mm: float,
) -> float:
    """Smoothness of what is left of each person beside the group's mean, scaled.

    ``h √(−2 ln 2 / ln(1 − v'/2v))`` with the variances of neighbours' differences and
    of values (Forman et al., 1995), mean over axes.
    """
    residual = maps.astype(np.float64).copy()
    for group in (patients, ~patients):
        mean = maps[group].mean(0)
        inside = mean[mask]
        for person in np.flatnonzero(group):
            scale = maps[person][mask] @ inside / (inside @ inside)
            residual[person] = maps[person] - scale * mean
    variance = residual[:, mask].var()
    widths = []
    for axis in range(3):
        both = np.moveaxis(mask, axis, 0)
        pairs = both[1:] & both[:-1]
        moved = np.moveaxis(residual, axis + 1, 1)
        steps = (moved[:, 1:] - moved[:, :-1])[:, pairs].var()
        widths.append(
            voxel_mm * np.sqrt(-2 * np.log(2) / np.log(1 - steps / (2 * variance)))
        )
    return float(np.mean(widths))


def share(values: Array, labels: NDArray[np.str_]) -> float:
    """Median over features of the variance between labels over all variance."""
    total = ((values - values.mean(0)) ** 2).sum(0)
    between = np.zeros(values.shape[1])
    for name in np.unique(labels):
        part = values[labels == name]
        between += len(part) * (part.mean(0) - values.mean(0)) ** 2
    return float(np.median(between / total))
