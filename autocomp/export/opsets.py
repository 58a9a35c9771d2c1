"""What the ONNX standard says for itself: opsets and IR versions, and attributes that need not be written."""

from __future__ import annotations

from functools import lru_cache

from onnx import FunctionProto, ModelProto, NodeProto, defs, helper

from autocomp.errors import ExportError

#: From here up to opset 25, GroupNormalization is the only operator whose inputs change their meaning.
_OLDEST_RAISED_OPSET = 20


def raise_opset(model: ModelProto, opset: int) -> None:
    """Raise, in place, the model's opset to at least ``opset`` (at most 25) and its IR version to what that asks for.

    Only numbers change. From opset 20 on that is right for every operator but GroupNormalization, whose scale and bias
    opset 21 takes per channel instead of per group; ``onnx.version_converter`` leaves all others as they are, too.

    Raises:
        ExportError: the model's opset is below 20, or it holds a GroupNormalization from before 21.
    """
    current = opset_of(model)
    nodes = (node for holder in (model.graph, *model.functions) for node in holder.node)
    old_groups = any(node.op_type == "GroupNormalization" and not node.domain for node in nodes)
    oldest = 21 if old_groups else _OLDEST_RAISED_OPSET
    if current < min(oldest, opset):
        raise ExportError(f"this model's opset can be raised from {oldest} on; got {current}; export it with {oldest}")
    set_opset(model, max(current, opset))
    model.ir_version = max(model.ir_version, required_ir_version(opset))


def required_ir_version(opset: int) -> int:
    """The IR version that goes with an opset: 8 for 18 (functions), 10 for 21 (INT4), 13 for 25 (INT2)."""
    return int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


#: What the shape of a weight says as well.
_SEEN_IN_WEIGHTS = frozenset({("Conv", "kernel_shape"), ("ConvTranspose", "kernel_shape")})


def leave_out_defaults(node: NodeProto) -> None:
    """Take attributes out of a node, in place, that say what holds without them."""
    if node.domain:
        return
    usual = _defaults(node.op_type)
    kept = [
        one
        for one in node.attribute
        if (node.op_type, one.name) not in _SEEN_IN_WEIGHTS
        and not _is_default(one.name, helper.get_attribute_value(one), usual)
    ]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_default(name: str, value: object, usual: dict[str, object]) -> bool:
    if isinstance(value, list) and name in {"strides", "dilations", "pads"}:
        return all(number == (0 if name == "pads" else 1) for number in value)
    return name in usual and usual[name] == value


@lru_cache(maxsize=256)
def _defaults(op: str) -> dict[str, object]:
    try:
        schema = defs.get_schema(op)
    except defs.SchemaError:
        return {}
    written = {name: one.default_value for name, one in schema.attributes.items()}
    return {name: helper.get_attribute_value(one) for name, one in written.items() if one.name}


def opset_of(holder: ModelProto | FunctionProto) -> int:
    return next((entry.version for entry in holder.opset_import if entry.domain in ("", "ai.onnx")), 1)


def set_opset(model: ModelProto, opset: int) -> None:
    for holder in (model, *model.functions):  # a function's opset has to agree with its model's
        for entry in holder.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
