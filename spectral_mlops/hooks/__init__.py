"""The only place that touches autograd: rows of A and Δ, split by group."""

from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.directions import leading_directions
from spectral_mlops.hooks.factors import GroupFactors
from spectral_mlops.hooks.influence import InfluenceMeans, group_influence
from spectral_mlops.hooks.rows import Rows, VectorRows
from spectral_mlops.hooks.rules import Call, RowRule, register_rows

__all__ = [
    "Call",
    "CoverageRow",
    "GroupFactors",
    "InfluenceMeans",
    "RowRule",
    "Rows",
    "VectorRows",
    "capture",
    "group_influence",
    "leading_directions",
    "register_rows",
]
