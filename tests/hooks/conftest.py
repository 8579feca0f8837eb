from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tests.cases import Case, N

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# What is exact is compared exactly.
torch.backends.cudnn.allow_tf32 = False
LABELS = ["b", "a", "b", "c", "a", "b", "b"]
assert len(LABELS) == N


def outputs_of(returned: object) -> list[Tensor]:
    if isinstance(returned, dict):
        return list(returned.values())
    return list(returned) if isinstance(returned, tuple) else [returned]


def loss_of(
    returned: object,
    mask: Tensor | None = None,
    batch_dim: int = 0,
    sample: int | None = None,
) -> Tensor:
    """A loss that mixes nothing between samples, reduced by a plain sum.

    Every number of the output has a weight of its own; ``sample`` says which sample
    the only one of a batch of one is.
    """
    total: Tensor | float = 0.0
    for outputs in outputs_of(returned):
        shape = list(outputs.shape)
        shape[batch_dim] = N
        weight = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=outputs.dtype)
        weight = weight.reshape(shape).cos().to(outputs.device)
        if sample is not None:
            weight = weight.narrow(batch_dim, sample, 1)
        if mask is not None:
            mask = mask.to(outputs.device)
            around = [1] * outputs.ndim
            around[batch_dim] = N
            weight = weight * mask.to(outputs.dtype).reshape(around)
        total = total + (outputs.square() * weight).sum()
    assert isinstance(total, Tensor)
    return total


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def gradients_by_masking(case: Case, seed: int) -> dict[str, dict[str, Tensor]]:
    """One backward per group with the other samples' losses masked: slow, right."""
    found = {}
    for group in sorted(set(LABELS)):
        mask = torch.tensor([label == group for label in LABELS])
        torch.manual_seed(seed)
        loss = loss_of(case.model(*case.inputs), mask, case.batch_dim)
        found[group] = _gradients(loss, case.model)
    return found


def gradients_one_by_one(case: Case) -> dict[str, dict[str, Tensor]]:
    """A batch of one for every sample, summed by group: nothing shared at all."""
    found: dict[str, dict[str, Tensor]] = {}
    for i, label in enumerate(LABELS):
        alone = [x.narrow(_batch_axis(case, x), i, 1) for x in case.inputs]
        loss = loss_of(case.model(*alone), None, case.batch_dim, sample=i)
        for name, gradient in _gradients(loss, case.model).items():
            group = found.setdefault(label, {})
            group[name] = group.get(name, 0) + gradient
    return dict(sorted(found.items()))


def _batch_axis(case: Case, x: Tensor) -> int:
    return case.batch_dim if x.ndim > 1 else 0


def _gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    parameters = trained(model)
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def hooks_on(model: nn.Module) -> int:
    """Count everything hooked on a model, its parameters, and all modules there are."""
    modules = sum(
        len(m._forward_hooks)
        + len(m._forward_pre_hooks)
        + len(m._forward_hooks_with_kwargs)
        + len(m._forward_pre_hooks_with_kwargs)
        + len(m._backward_hooks)
        + len(m._backward_pre_hooks)
        for m in model.modules()
    )
    everywhere = sum(
        len(hooks)
        for name, hooks in vars(torch_module).items()
        if name.startswith("_global_") and "hook" in name and isinstance(hooks, dict)
    )
    on_parameters = sum(len(p._backward_hooks or {}) for p in model.parameters())
    return modules + everywhere + on_parameters


def random_states() -> list[Tensor]:
    """Where the random number generators stand."""
    on_device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *on_device]


def everything_in(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield each thing that watching could have changed, with a name."""
    for name, tensor in model.state_dict().items():
        yield f"state {name}", tensor
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", buffer
    for name, parameter in model.named_parameters():
        yield f"gradient {name}", parameter.grad
    for name, module in model.named_modules():
        yield f"keys of {name}", sorted(module.__dict__)
