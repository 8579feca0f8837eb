"""What a batch must not leave open: parameters, gaps, axes taken for the batch."""

import warnings
from collections.abc import Iterable, Sequence

from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.hooks.additivity import disagreements, tolerance
from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.findings import Findings
from spectral_mlops.hooks.layers.normalization import uses_batch_statistics
from spectral_mlops.hooks.survey import Site, Survey


def warn_of_mixing(sites: Sequence[Site], findings: Findings) -> None:
    """Say so where batch statistics make rows and losses different things."""
    mixing = [site.name for site in sites if uses_batch_statistics(site.module)]
    by = {"rows": [], "replay": []}  # type: dict[str, list[str]]
    for row in findings.coverage() if mixing else ():
        by.setdefault(row.method, []).append(row.parameter)
    if by["rows"] and by["replay"]:
        warnings.warn(
            f"Batch statistics ('{mixing[0]}') mix the samples of a batch. The "
            "groups of every parameter add up to its gradient, but "
            f"{', '.join(by['replay'])} are split by whose loss a gradient comes "
            "from, the others by whose row.",
            stacklevel=3,
        )


def refuse_uncovered(table: Iterable[CoverageRow]) -> None:
    """Refuse a model with parameters that no rule covers.

    Raises:
        InputError: Naming them.
    """
    bare = [row for row in table if row.method == "none"]
    if bare:
        raise InputError(
            f"strict=True and {len(bare)} parameters are not covered: "
            + "; ".join(f"{row.parameter} ({row.why})" for row in bare)
            + ". Register a rule with register_rows, or pass strict=False."
        )


def refuse_gaps(survey: Survey, findings: Findings, size: int, coarse: bool) -> None:
    """Turn a parameter that is not accounted for into an exception.

    Args:
        survey: Of the model.
        findings: Of a batch that has come to its end.
        size: Number of samples.
        coarse: Whether a call was made under autocast.

    Raises:
        CaptureError: Naming the parameters.
    """
    lost = [row for row in findings.coverage() if row.method == "none"]
    if lost:
        words = "; ".join(f"{row.parameter} ({row.why})" for row in lost)
        raise CaptureError(f"strict=True and not covered: {words}.")
    allowed = tolerance(survey.model, coarse)
    wrong = {k: gap for k, gap in findings.gaps().items() if not gap <= allowed}
    if wrong:
        words = "; ".join(f"{name}: {gap:.1e}" for name, gap in wrong.items())
        raise CaptureError(
            f"strict=True and the groups do not add up to the gradient within "
            f"{allowed:.0e} ({words}): part of it flows past the watched calls, "
            "see captured.unattributed()."
        )
    differ: dict[str, float] = {}
    if not any(uses_batch_statistics(site.module) for site in survey.sites):
        differ = disagreements(findings.group_gradients(), findings.second())
    wrong = {k: gap for k, gap in differ.items() if not gap <= 10 * allowed}
    if wrong:
        words = "; ".join(f"{name}: {gap:.1e}" for name, gap in wrong.items())
        raise CaptureError(
            f"strict=True and a replay of the batch splits other groups than the "
            f"rows of the layers ({words}): an axis of "
            f"{size} is taken for the batch and is another "
            "one, or the model mixes its samples. Bring the batch to the axis that "
            "batch_dim= names, or try a batch of another size: calls without "
            "batch axis are then seen as such."
        )
