import torch
from torch import Tensor, nn

from tests.cases import Case, N

LABELS = ["b", "a", "b", "c", "a", "b", "b"]
assert len(LABELS) == N


def loss_of(outputs: Tensor) -> Tensor:
    """A loss that mixes nothing between samples, reduced by a plain sum."""
    weight = torch.arange(1.0, 1 + outputs.numel(), dtype=outputs.dtype)
    return (outputs.square() * weight.reshape(outputs.shape).cos()).sum()


def gradients_by_masking(case: Case, seed: int) -> dict[str, dict[str, Tensor]]:
    """One backward per group with the other samples' outputs masked: slow, right."""
    found = {}
    for group in sorted(set(LABELS)):
        mask = torch.tensor([label == group for label in LABELS], dtype=case.x.dtype)
        torch.manual_seed(seed)
        outputs = case.model(case.x)
        shape = [1] * outputs.ndim
        shape[case.batch_dim] = N
        weight = torch.arange(1.0, 1 + outputs.numel(), dtype=outputs.dtype)
        weight = weight.reshape(outputs.shape).cos() * mask.reshape(shape)
        trained = [p for p in case.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad((outputs.square() * weight).sum(), trained)
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
