"""A plan as an attribute of a trial. That of a large network is written in few characters, and read quickly, since there may be
ten thousand of them: each kind of layer plan once, and which layer has which."""

from __future__ import annotations

import base64
import json
import zlib
from functools import lru_cache

from autocomp.plan import LayerPlan, Plan

#: Characters up to which a plan stands in the journal as it is, and what a shorter form begins with.
SHORT, PACKED = 8000, "zlib:"


def plan_text(plan: Plan) -> str:
    text = plan.to_json()
    if len(text) <= SHORT:
        return text
    document = json.loads(text)
    kinds: dict[str, int] = {}
    layers = {
        name: kinds.setdefault(json.dumps(layer, sort_keys=True), len(kinds))
        for name, layer in document["layers"].items()
    }
    short = json.dumps({**document, "layers": layers, "kinds": list(kinds)}, separators=(",", ":"))
    return PACKED + base64.b85encode(zlib.compress(short.encode(), 9)).decode()


def plan_of(text: str, plan_hash: str | None = None) -> Plan:
    """The other way round.

    Args:
        plan_hash: as it is known to be; None to have it worked out when it is asked for.
    """
    if not text.startswith(PACKED):
        plan = Plan.from_json(text)
    else:
        document = json.loads(zlib.decompress(base64.b85decode(text.removeprefix(PACKED))))
        kinds = [_kind(one) for one in document["kinds"]]
        layers = {name: kinds[place] for name, place in document["layers"].items()}
        plan = Plan(layers, tuple(document["dropped_blocks"]), tuple(document.get("adjustments", ())))
    if plan_hash is not None:
        vars(plan)["hash"] = plan_hash  # a cached property: what it would work out
    return plan


@lru_cache(maxsize=4096)
def _kind(text: str) -> LayerPlan:
    return Plan.from_json(f'{{"layers": {{"one": {text}}}}}')["one"]
