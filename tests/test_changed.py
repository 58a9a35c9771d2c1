"""A quick copy is what the standard one is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autocomp.changed import changed
from autocomp.compress.structure import LayerShape
from autocomp.graph import Node
from autocomp.hardware.kernels import Kernel

MADE = (
    Node("a", "conv2d", ("x",), (-1, 3, 4, 4), "layer", (3, 3, 1, 1)),
    Kernel("conv", ("a",), macs=5, in_elements=7),
    LayerShape((3, 4), has_bias=True, format=None, kept=None),
)


@given(st.sampled_from(MADE), st.data())
def test_it_is_what_replace_gives(value: Node | Kernel | LayerShape, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(value.__dataclass_fields__)))
    before = repr(value)
    copy = changed(value, **{name: "new"})
    assert copy == replace(value, **{name: "new"})  # type: ignore[arg-type]
    assert repr(value) == before
    assert (copy == value) == (getattr(value, name) == "new")


def test_those_that_are_copied_check_and_cache_nothing() -> None:
    for value in MADE:
        assert not hasattr(value, "__post_init__")
        assert set(vars(value)) == set(value.__dataclass_fields__)
