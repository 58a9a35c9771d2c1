"""Which layer gets how many bits: what each loses alone in every choice, and the least sum of it for so many bytes.

    python benchmarks/allocation.py [--data FOLDER] [--bytes N]

prints ResNet-20's plan of the ``small`` benchmark. What a layer loses is the divergence of the outputs for calibration
inputs when it alone is compressed; a Lagrangian over the layers follows, as in Y. Shoham & A. Gersho, "Efficient bit
allocation for an arbitrary set of quantizers", 1988. It takes two minutes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from compression import low_bits
from compression_bench import Bench
from torch.func import functional_call
from torch.nn import functional

from autocomp.inventory import LayerInfo
from autocomp.plan import Plan

#: Bits of a codebook, and the share of the weights that is cut; 0 bits for ternary.
Choice = tuple[int, float]
CHOICES: tuple[Choice, ...] = (
    *((2, level) for level in (0.0, 0.3, 0.4, 0.5, 0.56, 0.61, 0.66, 0.7, 0.75)),
    *((3, level) for level in (0.0, 0.3, 0.4, 0.5, 0.6, 0.66, 0.72)),
    (0, 0.0),
)
IMAGES, BATCH = 1024, 128
#: Of what the file has for weights of inner layers; the rest is 18 kB.
WEIGHT_BYTES = 60_600


def weight_bytes(layer: LayerInfo, choice: Choice) -> float:
    """What weights and mask take: five trits a byte, or a bit of mask for each and the bits of those that stay."""
    bits, level = choice
    return math.prod(layer.weight_shape) * (bits * (1 - level) + (level > 0) if bits else 1.6) / 8


def losses(bench: Bench) -> Mapping[str, Mapping[Choice, float]]:
    """Inner layer → choice → mean divergence of the classes' probabilities when that layer alone is compressed."""
    images = torch.split(torch.cat([batch[0] for batch in bench.task.calibration])[:IMAGES], BATCH)
    inner = [layer.name for layer in bench.prepared.inventory.layers[1:-1]]
    whole = bench.compress(Plan()).model

    def probabilities(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            outputs = [functional_call(whole, dict(weights), (batch,)) for batch in images]
        return functional.log_softmax(torch.cat(outputs), dim=1)

    reference = probabilities({})
    found: dict[str, dict[Choice, float]] = {name: {} for name in inner}
    for choice in CHOICES:
        compressed = bench.compress(Plan({name: low_bits(*choice) for name in inner})).model
        for name in inner:
            weight = f"{name}.weight"
            given = probabilities({weight: compressed.get_parameter(weight).detach()})
            found[name][choice] = float(functional.kl_div(given, reference, reduction="batchmean", log_target=True))
        print(choice, [round(found[name][choice], 4) for name in inner], flush=True)
    return found


def allocated(bench: Bench, limit_bytes: float) -> Mapping[str, Choice]:
    """Of the plans that some price of a byte leads to, the one of least loss within the limit."""
    lost = losses(bench)
    layers = {layer.name: layer for layer in bench.prepared.inventory.layers[1:-1]}
    plans = []
    for price in np.geomspace(1e-3, 1e-12, 1800):
        plan = {name: cheapest(lost[name], layer, float(price)) for name, layer in layers.items()}
        if sum(weight_bytes(layers[name], choice) for name, choice in plan.items()) <= limit_bytes:
            plans.append(plan)
    return min(plans, key=lambda plan: sum(lost[name][choice] for name, choice in plan.items()))


def cheapest(lost: Mapping[Choice, float], layer: LayerInfo, price: float) -> Choice:
    return min(CHOICES, key=lambda choice: lost[choice] + price * weight_bytes(layer, choice))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--bytes", type=int, default=WEIGHT_BYTES, help="of the inner layers' weights")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name, choice in allocated(Bench.of("cifar10-resnet20", asked.data), asked.bytes).items():
        print(f'    "{name}": {choice},', flush=True)


if __name__ == "__main__":
    main()
