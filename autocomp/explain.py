"""Where the time and the bytes of front points go, layer by layer, and what the choices of a search are called: what a
report explains a run by, and what only the target's models and the search space know. Kept as ``explanation.json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace

from autocomp.compress.apply import origin
from autocomp.compress.structure import Structure
from autocomp.export.artifact import Sizes
from autocomp.plan import Drop, Plan
from autocomp.run import Json, JsonValue, RunFolder
from autocomp.search.begin import Setup
from autocomp.search.evaluate import Workbench
from autocomp.search.warm_start import warmed_up
from autocomp.space import Option, Spread
from autocomp.trial import Trial

FILE = "explanation.json"
#: What an inference takes beside its kernels.
CALL = "the call"


def write_explanation(setup: Setup, folder: RunFolder, points: Sequence[Trial]) -> None:
    """Write the run's ``explanation.json``. The target's models are as the search had them: what it was warmed up with is
    replayed, and nothing is measured."""
    request = setup.request
    bench = warmed_up(setup.bench, setup.space, request.trials, request.seed, folder, lambda *_: None)
    held_out = bench.target.model.held_out
    plans = {point.plan.hash: point.plan for point in points}
    spent: Json = {name: _spent(bench, plan) for name, plan in plans.items()}
    decisions: list[JsonValue] = [
        {
            "name": decision.name,
            "kind": decision.kind,
            "layers": [*decision.layers],
            "options": [_called(option) for option in decision.options],
        }
        for decision in setup.space.decisions
    ]
    document: Json = {
        "spent": spent,
        "decisions": decisions,
        "held_out": None if held_out is None else asdict(held_out),
    }
    folder.write_json(FILE, document)


def _called(option: Option | None) -> str:
    if option is None:
        return "as it is"
    if isinstance(option, Spread):
        return f"{next(iter(option.by_layer))[1].pattern}, one threshold" if option.by_layer else "one threshold"
    return "left out" if isinstance(option, Drop) else str(option)


def _spent(bench: Workbench, plan: Plan) -> Json:
    """Milliseconds and bytes by layer; what no layer is behind by the kind of kernel, and in one sum."""
    structure = bench.structure(plan)
    known = bench.prepared.inventory.by_name
    times: dict[str, float] = defaultdict(float)
    others: dict[str, float] = defaultdict(float)
    prediction = bench.target.predict(structure)
    for share in prediction.kernels:
        named = dict.fromkeys(origin(plan, source)[0] for source in share.kernel.sources)
        layers = [name for name in named if name in known]
        for name in layers:
            times[name] += share.latency_ms / len(layers)
        if not layers:
            others[share.kernel.op] += share.latency_ms
    rest = prediction.latency_ms - sum(times.values()) - sum(others.values())
    if abs(rest) > 1e-9 * prediction.latency_ms:
        others[CALL] = rest
    sizes: dict[str, int] = defaultdict(int)
    for node in structure.graph.layers:
        if node.layer is not None:
            sizes[origin(plan, node.layer)[0]] += _layer_bytes(bench.sizes, structure, node.name)
    return {
        "latency_ms": {**times},
        "other_latency_ms": {**others},
        "size_bytes": {**sizes},
        "other_size_bytes": bench.sizes.predict(structure) - sum(sizes.values()),
    }


def _layer_bytes(sizes: Sizes, structure: Structure, node: str) -> int:
    """What one layer adds to the file: its weight, bias and operators. A file says once how weights are unpacked, so a layer
    is counted as what a second one like it would add."""
    one = (structure.graph.by_name[node],)
    alone = replace(structure, graph=replace(structure.graph, nodes=one), rounded=frozenset())
    twice = replace(alone, graph=replace(structure.graph, nodes=one * 2))
    return sizes.predict(twice) - sizes.predict(alone)
