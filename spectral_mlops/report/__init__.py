"""Stored records in, tables out; never a live model."""

from spectral_mlops.report.tables import layer_table

__all__ = ["layer_table"]
