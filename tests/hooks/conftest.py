import torch
from torch import Tensor, nn

from tests.cases import Case, N

LABELS = ["b", "a", "b", "c", "a", "b", "b"]
assert len(LABELS) == N


def outputs_of(returned: object) -> list[Tensor]:
    if isinstance(returned, dict):
        return list(returned.values())
    return [returned]  # type: ignore[list-item]


def loss_of(returned: object, mask: Tensor | None = None, batch_dim: int = 0) -> Tensor:
    """A loss that mixes nothing between samples, reduced by a plain sum."""
    total = torch.zeros(())
    for outputs in outputs_of(returned):
        weight = torch.arange(1.0, 1 + outputs.numel(), dtype=outputs.dtype)
        terms = outputs.square() * weight.reshape(outputs.shape).cos()
        if mask is not None:
            shape = [1] * outputs.ndim
            shape[batch_dim] = N
            terms = terms * mask.to(outputs.dtype).reshape(shape)
        total = total + terms.sum()
    return total


def gradients_by_masking(case: Case, seed: int) -> dict[str, dict[str, Tensor]]:
    """One backward per group with the other samples' losses masked: slow, right."""
    found = {}
    for group in sorted(set(LABELS)):
        mask = torch.tensor([label == group for label in LABELS])
        torch.manual_seed(seed)
        loss = loss_of(case.model(case.x), mask, case.batch_dim)
        trained = [p for p in case.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained)
        names = [n for n, p in case.model.named_parameters() if p.requires_grad]
        found[group] = dict(zip(names, gradients, strict=True))
    return found


def hooks_on(model: nn.Module) -> int:
    """Count everything that is still hooked on a model and its parameters."""
    modules = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )
    return modules + sum(len(p._backward_hooks or {}) for p in model.parameters())
