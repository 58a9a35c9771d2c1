"""Real networks: what people bring must work.

    python benchmarks/models.py coverage [NAME ...]    torchvision and timm classifiers with random weights
    python benchmarks/models.py baselines --data DIR   the built-in tasks uncompressed, and the runtime's own 8 bits
    python benchmarks/models.py searches --data DIR    a search of 40 trials on each built-in task, target cpu

Each prints a table and writes it to results/reference/models_*.csv. ``coverage`` goes on where an earlier run stopped.

Coverage of a network: its inventory is taken; random channels and heads of all groups at once are cut, and what is left
must compute what the whole network computes with the same ones masked; then three random joint plans (the first without
rounded activations) are applied, exported, and run in onnxruntime, which must give what the simulated model gives. Where
activations are rounded, one value on the border between two levels tips over with the last bit of a sum, so the yardstick
is how far the simulated model is from itself: computed in double precision, and with weights nudged by that last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tables import write_table
from torch import nn

import autocomp
from autocomp.compress.agreement import flat_output, shake
from autocomp.compress.apply import Compressed, apply
from autocomp.compress.attention import cut_heads, mask_heads
from autocomp.compress.channels import mask, prune
from autocomp.compress.prepare import prepare
from autocomp.compress.quantize import Numerics
from autocomp.compress.rebuild import Prepared
from autocomp.compress.structure import restructure
from autocomp.export.size import SizeModel
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.calibrate import narrow_products
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.onnxruntime import load
from autocomp.hardware.runtimes.runtime import batch_outputs, loaded_run, reference_run
from autocomp.hardware.timing import measure
from autocomp.inventory import Inventory
from autocomp.plan import Format, LayerPlan, Plan, Rank, Sparsity
from autocomp.search.verify import predictor
from autocomp.task import Metric, Task
from autocomp.tasks.load import builtin_tasks, load_task
from autocomp.tasks.zoo import import_torchvision
from autocomp.trace import copied, export_program, graph_module
from autocomp.trial import Trial

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"

#: Side of the images → library → names. Transformers have a fixed side; convolutional nets are tried on smaller images.
NAMES: Mapping[int, Mapping[str, str]] = {
    96: {
        "torchvision": "squeezenet1_0 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0 "
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 regnet_x_400mf regnet_y_400mf efficientnet_b0 googlenet resnet18 resnet50 "
        "resnext50_32x4d wide_resnet50_2 vgg11 vgg11_bn alexnet densenet121 convnext_tiny efficientnet_v2_s",
        "timm": "resnet10t ghostnet_100 convnextv2_atto repvgg_a0 dla34 hrnet_w18_small",
    },
    128: {"torchvision": "inception_v3"},
    224: {
        "timm": "vit_tiny_patch16_224 deit_tiny_patch16_224 mobilevit_xs levit_128s edgenext_xx_small poolformer_s12 "
        "mixer_s32_224 swin_tiny_patch4_window7_224",
        "torchvision": "vit_b_16 swin_t swin_v2_t maxvit_t",
    },
}
ZOO = tuple(
    (library, name, side)
    for side, by_library in NAMES.items()
    for library, names in by_library.items()
    for name in names.split()
)

#: A file may be this far from the simulated model, in float32, and so many times further than that is from itself.
FLOAT_ERROR, SELF_ERRORS = 1e-4, 2.0

#: Weight bits of random plans.
BITS = (8, 4, 2)

#: Copies of the simulated model with nudged weights, and by what share of its value each weight is nudged.
NUDGED, NUDGE = 3, float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Coverage:
    """One network. Errors are relative, of the whole output; ``size_error`` the largest of the three files'."""

    library: str
    name: str
    side: int
    layers: int
    groups: int
    groups_prunable: int
    heads_prunable: int
    blocks: int
    pruned_error: float
    file_errors: str
    self_errors: str
    size_error: float
    passed: bool
    seconds: float
    problem: str = ""


def coverage(names: Sequence[str]) -> None:
    path = REFERENCE / "models_coverage.csv"
    before = csv.DictReader(path.open(encoding="utf-8")) if path.exists() else ()
    done = {row["name"] for row in before if row["passed"] == "True"}
    for library, name, side in ZOO:
        if (names and name not in names) or (not names and name in done):
            continue
        began = time.monotonic()
        try:
            row = cover(library, name, side)
        except Exception as error:  # noqa: BLE001  a table of what works is also one of what does not
            line = " ".join(str(error).split())[:200]
            row = Coverage(
                library, name, side, 0, 0, 0, 0, 0, -1.0, "", "", -1.0, False, 0.0, f"{type(error).__name__}: {line}"
            )
        row = replace(row, seconds=round(time.monotonic() - began, 1))
        print(row, flush=True)
        append(path, asdict(row))
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    passed = sum(row["passed"] == "True" for row in rows)
    print(f"{passed} of {len(rows)} networks pass")


def cover(library: str, name: str, side: int) -> Coverage:
    model, images = built(library, name, side)
    prepared = prepare(model, (images[:1],))
    inventory = prepared.inventory
    numerics = Numerics(narrow_products=narrow_products(this_machine()))
    calibration = [(images[2:4],)]
    untouched = len(export_onnx(apply(prepared, Plan(), calibration, numerics), packed=True))
    sizes = SizeModel.from_export(
        restructure(inventory, Plan(), numerics), untouched, True, numerics.integer_bias, numerics.attention_operator
    )
    file_errors, self_errors, size_errors = [], [], []
    for number in range(3):
        plan = random_plan(inventory, number, rounded=number > 0)
        compressed = apply(prepared, plan, calibration, numerics)
        file = export_onnx(compressed, packed=True)
        file_error, self_error = errors(compressed, file, images[:2])
        file_errors.append(file_error)
        self_errors.append(self_error)
        size_errors.append(abs(sizes.predict(restructure(inventory, plan, numerics)) / len(file) - 1))
    pruned_error = pruned_against_masked(prepared, images[:2])
    fine = all(one <= max(FLOAT_ERROR, SELF_ERRORS * own) for one, own in zip(file_errors, self_errors, strict=True))
    return Coverage(
        library=library,
        name=name,
        side=side,
        layers=len(inventory.layers),
        groups=sum(group.pattern == "channel" for group in inventory.groups),
        groups_prunable=sum(group.prunable and group.pattern == "channel" for group in inventory.groups),
        heads_prunable=sum(group.prunable and group.pattern == "head" for group in inventory.groups),
        blocks=len(inventory.blocks),
        pruned_error=pruned_error,
        file_errors=" ".join(f"{one:.1e}" for one in file_errors),
        self_errors=" ".join(f"{one:.1e}" for one in self_errors),
        size_error=round(max(size_errors), 5),
        passed=fine and pruned_error <= FLOAT_ERROR,
        seconds=0.0,
    )


def built(library: str, name: str, side: int) -> tuple[nn.Module, torch.Tensor]:
    """A network with seeded random weights, its batch norms with the statistics of random images. No weights are left
    at zero or next to it, as the last layer of a fresh network or of its branches often is: they would hide the rest.
    """
    torchvision = import_torchvision()
    torch.manual_seed(0)
    if library == "torchvision":
        more = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        model = torchvision.models.get_model(name, weights=None, **more)
    else:
        import timm

        model = timm.create_model(name, pretrained=False)
    model = shake(model)
    images = torch.randn(8, 3, side, side)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.train()
        elif isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        model(images)
    return model.eval(), images


def random_plan(inventory: Inventory, seed: int, rounded: bool) -> Plan:
    """Every method in some layers: ranks, channels, heads and single weights cut, 8, 4 and 2 bits, blocks left out.

    Args:
        rounded: whether activations are rounded, too.
    """
    rng = random.Random(seed)
    sparsity = {
        name: Sparsity(group.pattern, level)
        for group in inventory.groups
        if group.prunable and (level := rng.choice([0.0, 0.25, 0.5])) and group.kept(level) < group.width
        for name in group.producers
    }
    layers = {}
    for layer in inventory.layers:
        cut = sparsity.get(layer.name)
        if cut is None and rng.random() < 0.3:
            cut = Sparsity("unstructured", rng.choice([0.3, 0.6, 0.9]))
        largest = layer.largest_paying_rank
        rank = Rank("svd", rng.randint(max(1, largest // 3), largest)) if largest and rng.random() < 0.15 else None
        bits, how = rng.choice(BITS), rng.random()
        chosen = None
        if rng.random() < 0.6:
            floats = not rounded or not layer.computes_integers or how < 0.2
            chosen = Format(bits, 32) if floats else Format(bits, 8, layer.kind == "linear" and how < 0.6)
        layers[layer.name] = LayerPlan(cut, rank, chosen)
    return Plan(layers, tuple(block.name for block in inventory.blocks if rng.random() < 0.15))


def errors(compressed: Compressed, file: bytes, images: torch.Tensor) -> tuple[float, float]:
    """How far the file is from the simulated model, and at most the simulated model from itself."""
    given = flat(batch_outputs(load(file, 1), images.numpy()))
    doubled = copied(compressed.model).double()
    with torch.no_grad():
        simulated = flat_output(compressed.model(images))
        selves = [flat_output(nudged(compressed.model, seed)(images)) for seed in range(NUDGED)]
        with contextlib.suppress(RuntimeError):  # a network that makes single-precision tensors of its own cannot
            selves.append(flat_output(doubled(images.double())).float())
    return relative(given, simulated), max(relative(one, simulated) for one in selves)


def nudged(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose sums differ in their last bits."""
    generator = torch.Generator().manual_seed(seed)
    copy = copied(model)
    for parameter in copy.parameters():
        parameter.data = parameter.data * (1 + NUDGE * torch.randn(parameter.shape, generator=generator))
    return copy


def flat(arrays: Iterable[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> torch.Tensor:
    return flat_output([torch.from_numpy(array) for array in arrays])


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


def pruned_against_masked(prepared: Prepared, images: torch.Tensor) -> float:
    """The relative error of the pruned network, half of all units of all groups cut at random."""
    rng = random.Random(1)
    cuts = [
        (one, rng.sample(range(one.group.width), one.group.width // 2))
        for one in prepared.couplings
        if one.group.prunable
    ]
    heads = [
        (one, rng.sample(range(one.group.width), one.group.width // 2)) for one in prepared.heads if one.group.prunable
    ]
    pruned = graph_module(export_program(prune(prepared.model, cuts), prepared.example))
    cut_heads(pruned, heads)
    masked = graph_module(export_program(mask(prepared.model, cuts), prepared.example))
    mask_heads(masked, heads)
    with torch.no_grad():
        return relative(flat_output(pruned(images)), flat_output(masked(images)))


@dataclass(frozen=True)
class Baseline:
    """One file of one task. ``metric_test`` in percent, of the file; latency at the task's own example, one thread."""

    task: str
    file: str
    metric_test: float
    size_bytes: int
    latency_ms: float
    latency_spread: float
    settled: bool


def baselines(data: Path, names: Sequence[str]) -> None:
    rows: list[Baseline] = []
    for name in names:
        print(name, flush=True)
        rows += baselines_of(load_task(name, print, None if name == "digits" else data))
        write_table(REFERENCE / "models_baselines.csv", [asdict(row) for row in rows])
    for row in rows:
        print(row)


def baselines_of(task: Task) -> list[Baseline]:
    """The uncompressed file, the runtime's own quantization of it, and ours, uniform, all timed side by side."""
    prepared = prepare(task.model, task.example_inputs, task.dynamic_dims)
    narrow = narrow_products(this_machine())
    numerics = Numerics(narrow_products=narrow)
    plain = export_onnx(
        apply(prepared, Plan(), task.calibration, replace(numerics, attention_operator=False)), packed=False
    )
    files = {
        "fp32 (plain export)": plain,
        "fp32 (autocomp)": export_onnx(apply(prepared, Plan(), task.calibration, numerics), packed=True),
        "8 bits, uniform (autocomp)": export_onnx(
            apply(prepared, eight_bits(prepared.inventory), task.calibration, numerics), packed=True
        ),
        **own_quantization(plain, task, reduce_range=narrow),
    }
    sessions = {name: load(file, 1) for name, file in files.items()}
    inputs = [tensor.numpy() for tensor in task.example_inputs]
    timings = measure(
        {name: partial(loaded_run, onnxruntime, file, 1, inputs) for name, file in files.items()},
        reference=reference_run(onnxruntime, 1),
    )
    return [
        Baseline(
            task.name,
            name,
            round(task.evaluate(predictor(sessions[name], prepared.outputs), "test").value, 3),
            len(file),
            round(timings[name].latency_ms, 4),
            round(timings[name].error, 4),
            timings[name].settled,
        )
        for name, file in files.items()
    ]


def eight_bits(inventory: Inventory) -> Plan:
    def chosen(kind: str, sequence: bool) -> Format:
        return Format(8, 32) if kind == "embedding" else Format(8, 8, kind == "linear" and sequence)

    return Plan(
        {
            layer.name: LayerPlan(format=chosen(layer.kind, len(layer.out_shape) > 1))
            for layer in inventory.layers
            if layer.kind != "conv_transpose2d"
        }
    )


def own_quantization(plain: bytes, task: Task, reduce_range: bool) -> Mapping[str, bytes]:
    """onnxruntime's quantization tools on the uncompressed file: dynamic for sequences, static for the rest."""
    import tempfile

    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = load(plain, 1).input_names

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(task.calibration)

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {n: x.numpy() for n, x in zip(names, batch, strict=True)}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder, name)) for name in ("a.onnx", "b.onnx", "c.onnx"))
        Path(source).write_bytes(plain)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        if task.dynamic_dims:
            quantize_dynamic(source, target, per_channel=True, reduce_range=reduce_range)
            kind = "dynamic"
        else:
            quantize_static(
                prepared,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=reduce_range,
            )
            kind = "static"
        return {f"8 bits, {kind} (onnxruntime's tool)": Path(target).read_bytes()}


def searches(data: Path, names: Sequence[str], trials: int, out: Path) -> None:
    path = REFERENCE / "models_searches.csv"
    for name in names:
        folder = out / name
        began = time.monotonic()
        run = autocomp.search(
            name,
            target="cpu",
            trials=trials,
            seed=0,
            out=folder,
            data=None if name == "digits" else data,
            resume=(folder / "run.json").exists(),
            watcher=Teller(),
        )
        run.report()
        row = search_row(name, run, time.monotonic() - began)
        print(row, flush=True)
        append(path, row)


class Teller:
    """Prints what a search says."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def trial(self, trial: Trial, _trials: Sequence[Trial], asked: int, _metric: Metric) -> None:
        print(
            f"trial {trial.number} of {asked}: {trial.metric} in {trial.seconds or 0:.1f} s {trial.error or ''}",
            flush=True,
        )

    def step(self, what: str, done: int, of: int, note: str = "") -> None:
        if done == of:
            print(f"{what}: {done} of {of} {note}", flush=True)


def search_row(name: str, run: autocomp.Run, seconds: float) -> dict[str, object]:
    front, trials = run.front, run.trials
    base, points = front[front["is_baseline"]].iloc[0], front[~front["is_baseline"]]
    near = points[points["measured_metric"] >= base["measured_metric"] - 1.0]
    off = points["measured_latency_ms"] / points["latency_ms"] - 1
    return {
        "task": name,
        "trials": len(trials),
        "failed": int((trials["state"] == "failed").sum()),
        "front_points": len(points),
        "verified": int(points["measured_metric"].notna().sum()),
        "metric_test": round(float(base["measured_metric"]), 3),
        "size_bytes": int(base["measured_size_bytes"]),
        "latency_ms": round(float(base["measured_latency_ms"]), 4),
        "within_1_point": len(near),
        "smallest_within_1_point": round(float(base["measured_size_bytes"] / near["measured_size_bytes"].min()), 2),
        "fastest_within_1_point": round(float(base["measured_latency_ms"] / near["measured_latency_ms"].min()), 2),
        "largest_size_error": round(float((points["measured_size_bytes"] / points["size_bytes"] - 1).abs().max()), 5),
        "file_minus_simulation": round(float((points["measured_metric"] - points["metric_test"]).abs().max()), 3),
        "latency_error_median": round(float(off.abs().median()), 3),
        "latency_error_mean_signed": round(float(off.mean()), 3),
        "seconds": round(seconds),
    }


def append(path: Path, row: Mapping[str, object]) -> None:
    """Add a row, or put it in the place of the one of the same name."""
    rows = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    key = next(name for name in ("name", "task") if name in row)
    write_table(path, [*(old for old in rows if old[key] != row[key]), row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "baselines", "searches"))
    parser.add_argument("names", nargs="*", help="networks, or tasks; default: all")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/models"))
    given = parser.parse_args()
    names = given.names or list(builtin_tasks())
    steps: dict[str, Callable[[], None]] = {
        "coverage": lambda: coverage(given.names),
        "baselines": lambda: baselines(given.data, names),
        "searches": lambda: searches(given.data, names, given.trials, given.out),
    }
    steps[given.what]()


if __name__ == "__main__":
    main()
