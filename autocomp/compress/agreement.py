"""What is cut out of a network must compute what the whole network computes with the same units masked. Nothing is
believed to be cuttable before that was tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from autocomp.trace import ModuleT, copied

if TYPE_CHECKING:
    import torch

#: From here on a number is a mask's.
MASKED = 1e6

Item = TypeVar("Item")


def shake(model: ModuleT) -> ModuleT:
    """A copy of ``model`` with noise on every parameter, for trials of what is coupled: a layer of zeros (a fresh head,
    the last norm of a residual branch) would hide what goes wrong before it."""
    import torch

    shaken = copied(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in shaken.parameters():
        if parameter.is_floating_point():
            size = max(0.02, 0.1 * float(parameter.square().mean().sqrt()))
            parameter.data = parameter.data + size * torch.randn(parameter.shape, generator=generator)
    return shaken


def failing(items: Sequence[Item], why_not: Callable[[Sequence[Item]], str | None]) -> dict[int, str]:
    """``id`` of an item → why it fails. Items are tried together; where that fails, by halves.

    Args:
        why_not: why some items fail together; None where they do not.
    """
    reason = why_not(items) if items else None
    if reason is None:
        return {}
    if len(items) == 1:
        return {id(items[0]): reason}
    middle = len(items) // 2
    found = failing(items[:middle], why_not) | failing(items[middle:], why_not)
    rest = [item for item in items if id(item) not in found]
    if rest and (reason := why_not(rest)) is not None:
        found |= dict.fromkeys(map(id, rest), reason)  # right alone, wrong together
    return found


def agree(output: object, other: object) -> bool:
    """Whether two outputs of a model hold the same tensors, but for what floats lose in another order of sums."""
    import torch

    pairs = [
        (one.float(), two.float())
        for one, two in zip(output_tensors(output), output_tensors(other), strict=False)
        if one.numel()
    ]
    # Where nothing is a number, nothing was tried.
    tried = not pairs or any(bool(one.isfinite().any()) for one, _ in pairs)
    return (
        tried
        and of_same_shapes(output, other)
        and all(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * _size(x) + 1e-12, equal_nan=True) for x, y in pairs)
    )


def of_same_shapes(output: object, other: object) -> bool:
    return [one.shape for one in output_tensors(output)] == [one.shape for one in output_tensors(other)]


def _size(values: torch.Tensor) -> float:
    """The largest of what was computed: what masks wrote, ``-inf`` or a very large number, says nothing of that."""
    sizes = values.abs()
    computed = sizes[sizes < MASKED]
    return float(computed.max()) if computed.numel() else 0.0


def computes_the_same(model: Callable[..., object], other: Callable[..., object], inputs: Sequence[object]) -> bool:
    """Whether a changed model gives what it gave before; not where it fails, as one that reaches into what was changed."""
    import torch

    try:
        with torch.no_grad():
            return agree(model(*inputs), other(*inputs))
    except (RuntimeError, AttributeError, TypeError):
        return False


def flat_output(output: object) -> torch.Tensor:
    """All tensors of a model's output in one vector per example; in a single one where some have no row per example."""
    import torch

    leaves = [leaf.float() for leaf in output_tensors(output)]
    if all(leaf.dim() and len(leaf) == leaves[0].shape[0] for leaf in leaves):
        return torch.cat([(leaf if leaf.dim() > 1 else leaf[:, None]).flatten(1) for leaf in leaves], dim=1)
    return torch.cat([leaf.flatten() for leaf in leaves])[None]


def output_tensors(output: object) -> list[torch.Tensor]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
