"""The weights of a recovered network, apart from the plan that they belong to: what a run keeps of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autocomp.compress.apply import Compressed, requantized
from autocomp.compress.grids import QuantizedWeight
from autocomp.compress.quantize import ActivationQuantizer
from autocomp.compress.simulate import SimulatedQuantizer
from autocomp.errors import CompressionError
from autocomp.trace import copied

#: What a tensor is, in front of the name of its parameter or quantizer: floats, levels, their steps, the mask of what
#: stays, the step of an activation.
FLOAT, LEVELS, SCALE, KEPT, STEP = "float:", "levels:", "scale:", "kept:", "step:"

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Recovered:
    """A recovered network, and the weights that make it of the compressed one that it was recovered from."""

    compressed: Compressed
    weights: Weights


def with_weights(compressed: Compressed, weights: Weights) -> Compressed:
    """A compressed network, as its plan gives it, with the weights that recovery gave it.

    Args:
        compressed: left as it is.

    Raises:
        CompressionError: the weights are of another network or plan.
    """
    module = copied(compressed.model)
    stored: dict[str, QuantizedWeight] = {}
    masks: dict[str, torch.Tensor] = {}
    try:
        for key, tensor in weights.items():
            kind, _, name = key.partition(":")
            if f"{kind}:" == FLOAT:
                parameter = module.get_parameter(name)
                if parameter.shape != tensor.shape:
                    raise CompressionError(f"{name} must be {tuple(parameter.shape)}; got {tuple(tensor.shape)}")
                parameter.data = tensor.clone()
            elif f"{kind}:" == STEP:
                module.set_submodule(name, _with_step(module.get_submodule(name), float(tensor)))
            elif f"{kind}:" == KEPT:
                masks[name] = tensor.bool()
        for key in weights:
            if key.startswith(LEVELS):
                name = key.removeprefix(LEVELS)
                chosen = compressed.formats[name.removesuffix(".weight")]
                group, dtype = chosen.group, torch.float8_e4m3fn if chosen.in_float8 else torch.int8
                levels, scale = weights[key].to(dtype), weights[SCALE + name]
                stored[name] = QuantizedWeight(levels, scale, masks.get(name), group)
                module.get_parameter(name).data = stored[name].dequantized()
    except (AttributeError, KeyError, AssertionError) as error:
        raise CompressionError(f"recovered weights must be of this network and plan; {error} is not in it") from error
    return requantized(compressed, module, stored, masks)


def weights_of(compressed: Compressed) -> Weights:
    """The weights that make a compressed network of itself."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in compressed.model.named_parameters():
        stored = compressed.weights.get(name)
        if stored is None:
            found[FLOAT + name] = parameter.detach().clone()
        else:
            found |= {LEVELS + name: stored.levels, SCALE + name: stored.scale}
    found |= {KEPT + name: kept for name, kept in compressed.masks.items()}
    for name, module in compressed.model.named_modules():
        if isinstance(module, ActivationQuantizer):
            found[STEP + name] = torch.tensor(module.scale)
        elif isinstance(module, SimulatedQuantizer) and module.bits != 16:
            found[STEP + name] = torch.tensor(module.step)
    return found


def _with_step(quantizer: nn.Module, step: float) -> nn.Module:
    """The same quantizer with another step."""
    if isinstance(quantizer, SimulatedQuantizer):
        return SimulatedQuantizer(quantizer.bits, step, quantizer.zero_point)
    assert isinstance(quantizer, ActivationQuantizer)
    return ActivationQuantizer(step, quantizer.zero_point, quantizer.dtype == torch.int8)


def weights_hash(weights: Weights) -> str:
    """The first 16 hex digits of the SHA-256 of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        held = tensor.detach().cpu().contiguous()
        held = held.view(torch.uint8) if held.dtype == torch.float8_e4m3fn else held  # which numpy has not
        digest.update(held.numpy().tobytes())
    return digest.hexdigest()[:16]


def read_weights(path: Path) -> Weights:
    """Raises:
    CompressionError: there is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise CompressionError(
            f"the weights of a recovered point are a file that nothing but its training can make again; {path} is gone; bring "
            "it back, or recover anew in another run: autocomp search --from this run, with --recover"
        )
    try:
        found: Weights = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CompressionError(
            f"recovered weights must be a file that recovery wrote; {path} is not ({error})"
        ) from error
    return found
