"""Connectivity computed from time courses, by nilearn, with its estimator named."""

from collections.abc import Mapping
from inspect import signature
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.series_files import Array
from spectral_mlops.cohorts.triangles import Order
from spectral_mlops.errors import InputError

Kind = Literal["correlation", "partial correlation"]
Estimator = Literal["empirical", "ledoit-wolf"]


def connectivity_of(
    series: Mapping[str, Array],
    kind: Kind,
    estimator: Estimator,
    fisher_z: bool,
    order: Order,
    where: object,
) -> tuple[NDArray[np.float32], str]:
    """Compute each person's connections from that person's time courses alone.

    ``empirical`` with ``correlation`` is Pearson's r. nilearn's own default is
    ``ledoit-wolf``, shrunk towards zero by an amount that depends on length.

    Args:
        series: Shape ``[T_i, C]`` by id, finite, nothing constant.
        kind: Of connectivity.
        estimator: Of the covariance of standardised time courses.
        fisher_z: Whether to take ``artanh``.
        order: Row-major triangle to write, without the diagonal.
        where: The files, for messages.

    Returns:
        Float32 ``[people, C(C-1)/2]`` and a note that names all of this.

    Raises:
        InputError: If there are fewer than two components, too few time points for
            the kind, or ``fisher_z`` meets a correlation of 1.
    """
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import EmpiricalCovariance, LedoitWolf

    components = next(iter(series.values())).shape[1]
    if components < 2:
        raise InputError(f"{where}: connectivity needs two components or more.")
    short = min(series, key=lambda who: len(series[who]))
    needed = components + 1 if kind != "correlation" and estimator == "empirical" else 2
    if len(series[short]) < needed:
        raise InputError(
            f"{where}: {short} has {len(series[short])} time points; {kind} of "
            f"{components} components needs {needed} or more with "
            f"estimator='{estimator}'."
        )
    covariance = (
        EmpiricalCovariance(store_precision=False)
        if estimator == "empirical"
        else LedoitWolf(store_precision=False)
    )
    option = {"standardize": "zscore_sample"}  # goes away in nilearn: done here
    accepted = signature(ConnectivityMeasure).parameters
    measure = ConnectivityMeasure(
        cov_estimator=covariance,
        kind=kind,
        **{name: value for name, value in option.items() if name in accepted},
    )
    rows, columns = (
        np.triu_indices(components, 1)
        if order == "upper"
        else np.tril_indices(components, -1)
    )
    values = np.empty((len(series), len(rows)))
    for row, one in enumerate(series.values()):
        scaled = (one - one.mean(axis=0)) / one.std(axis=0, ddof=1)
        matrix = measure.fit_transform([scaled])[0]  # nothing of the others in it
        values[row] = np.clip(matrix[rows, columns], -1.0, 1.0)
    if fisher_z:
        same = np.argwhere(np.abs(values) > 1 - 1e-12)
        if len(same):
            who, edge = list(series)[same[0, 0]], same[0, 1]
            raise InputError(
                f"{where}: components {rows[edge]} and {columns[edge]} of {who} are "
                "the same, so Fisher z is infinite; leave one out, or set "
                "fisher_z=false."
            )
        values = np.arctanh(values)
    name = "Pearson r" if (kind, estimator) == ("correlation", "empirical") else kind
    note = (
        f"connectivity: {name}, {estimator} covariance, "
        f"{'Fisher z' if fisher_z else 'no Fisher z'}, row-major {order} triangle of "
        f"{components} components"
    )
    return values.astype(np.float32), note
