"""The only place that touches autograd: rows of A and Δ, split by group."""

from spectral_mlops.hooks.context import GroupFactors, capture
from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.rows import Call, RowRule, Rows, VectorRows, register_rows

__all__ = [
    "Call",
    "CoverageRow",
    "GroupFactors",
    "RowRule",
    "Rows",
    "VectorRows",
    "capture",
    "register_rows",
]
