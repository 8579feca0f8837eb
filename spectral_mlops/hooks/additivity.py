"""The run-time proof: do the groups add up to the gradient itself?"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from spectral_mlops.hooks.coverage import CoverageRow
from spectral_mlops.hooks.replay import ByGroup

TOLERANCES = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
}
COARSE = 1e-2
"""Tolerance where ``.grad`` itself is rounded: half precision, autocast."""


def gaps(
    groupings: ByGroup,
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
    found: dict[str, float] = {}
    for row in coverage:
        if row.method not in ("rows", "replay", "unused"):
            continue
        name = row.parameter
        for groups in groupings.values():
            parts = [given[name] for given in groups.values() if name in given]
            gap = _relative_gap(parts, reaching.get(name))
            found[name] = max(gap, found.get(name, 0.0))
    return found


def disagreements(one: ByGroup, other: ByGroup) -> dict[str, float]:
    """Compare two ways to the same group gradients, where there are both.

    Args:
        one: ``{grouping: {group: {parameter: gradient}}}``, by rows.
        other: The same by replay.

    Returns:
        ``{parameter: gap}``, of the group that differs most, relative to the largest
        norm among the groups.
    """
    found: dict[str, float] = {}
    for grouping, groups in other.items():
        names = {name for gradients in groups.values() for name in gradients}
        for name in names:
            pairs = [
                (precise(one[grouping][group][name]), precise(gradients[name]))
                for group, gradients in groups.items()
                if name in gradients and name in one[grouping].get(group, {})
            ]
            size = max((float(x.norm()) for pair in pairs for x in pair), default=0.0)
            gap = max((float((a - b).norm()) for a, b in pairs), default=0.0)
            found[name] = max(gap / size if size else 0.0, found.get(name, 0.0))
    return found


def remainders(groupings: ByGroup, reaching: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what reached each parameter less the sum over groups, in float64."""
    groups = next(iter(groupings.values()))
    rest = {}
    for name, whole in reaching.items():
        parts = [precise(given[name]) for given in groups.values() if name in given]
        rest[name] = whole - sum(parts, torch.zeros_like(whole))
    return rest


def precise(x: Tensor) -> Tensor:
    """Return real numbers in float64, complex ones in complex128."""
    return x.to(torch.complex128) if x.is_complex() else x.double()


def tolerance(model: nn.Module, coarse: bool) -> float:
    """Return the gap that rounding explains, for a model's coarsest type.

    Args:
        model: Its trained parameters count.
        coarse: Whether a call was made under autocast.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    # Convolutions and products may round to TF32 on such devices.
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    if coarse or (tf32 and any(p.is_cuda for p in trained)):
        return COARSE
    types = {p.dtype for p in trained}
    return max((TOLERANCES.get(kind, COARSE) for kind in types), default=COARSE)


def _relative_gap(parts: list[Tensor], reaching: Tensor | None) -> float:
    """Norm of ``Σ parts − reaching`` over the largest norm among them.

    Parts that cancel (a bias before batch statistics) leave nothing but the rounding
    of the parts, which is judged by their size.
    """
    total = precise(torch.stack(parts)).sum(0) if parts else torch.tensor(0.0)
    whole = torch.zeros_like(total) if reaching is None else precise(reaching)
    gap = float(torch.linalg.vector_norm(total - whole))
    size = max(float(torch.linalg.vector_norm(x)) for x in (whole, *parts))
    return gap / size if size else 0.0
