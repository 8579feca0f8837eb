"""The run-time proof: do the groups add up to the gradient itself?"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spectral_mlops.hooks.coverage import CoverageRow


def additivity(
    groupings: Mapping[str, Mapping[str, Mapping[str, Tensor]]],
    coverage: Iterable[CoverageRow],
    reaching: Mapping[str, Tensor],
) -> dict[str, float]:
    """Compare the sum over groups with what reached each parameter's own hook.

    A gap above rounding means that part of the gradient flowed outside the watched
    calls (a weight penalty, a functional use of the weight); 1 means all of it.

    Args:
        groupings: ``{grouping: {group: {parameter: gradient}}}``.
        coverage: Of every parameter; frozen and uncovered ones are left out.
        reaching: What the parameters' tensor hooks saw.

    Returns:
        ``{parameter: gap}``, relative to the largest norm among the gradient and its
        parts; the largest over groupings; 0 where everything is zero.
    """
    gaps: dict[str, float] = {}
    for row in coverage:
        if row.method not in ("rows", "replay", "unused"):
            continue
        name = row.parameter
        for groups in groupings.values():
            parts = [found[name] for found in groups.values() if name in found]
            gap = _relative_gap(parts, reaching.get(name))
            gaps[name] = max(gap, gaps.get(name, 0.0))
    return gaps


def _relative_gap(parts: list[Tensor], reaching: Tensor | None) -> float:
    """Norm of ``Σ parts − reaching`` over the largest norm among them.

    Parts that cancel (a bias before batch statistics) leave nothing but the rounding
    of the parts, which is judged by their size.
    """
    total = torch.stack(parts).double().sum(0) if parts else torch.tensor(0.0)
    whole = torch.zeros_like(total) if reaching is None else reaching.double()
    gap = float(torch.linalg.vector_norm(total - whole))
    size = max(float(torch.linalg.vector_norm(x)) for x in (whole, *parts))
    return gap / size if size else 0.0
