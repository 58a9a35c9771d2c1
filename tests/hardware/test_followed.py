"""What a runtime compiled of some plans puts the rules right for others."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from autocomp.compress.structure import Structure
from autocomp.hardware.followed import CompiledPlan, Followed, followed
from autocomp.hardware.kernels import Kernel, in_company


def conv(name: str, out: int) -> Kernel:
    return Kernel("conv", (name,), macs=9 * out, in_elements=64, out_elements=out, weight_elements=9 * 8)


def plan(size: int) -> tuple[Kernel, ...]:
    """What the rules foresee of a network at some width."""
    return (
        conv("a", size),
        Kernel("quantize", ("a",), in_elements=size, out_elements=size),
        Kernel("linear", ("b",), macs=10 * size, in_elements=size, out_elements=10, weight_elements=10 * size),
        Kernel("linear", ("c",), macs=50, in_elements=10, out_elements=5, weight_elements=50),
    )


def unnamed(*kernels: Kernel) -> tuple[Kernel, ...]:
    """As a runtime tells them: by names of its own."""
    return tuple(replace(kernel, sources=(f"node{place}",)) for place, kernel in enumerate(in_company(kernels)))


def joined(size: int) -> tuple[Kernel, ...]:
    """What the runtime makes of it: both linears in one kernel, and a conversion that nobody foresaw behind the first."""
    a, b, *_ = plan(size)
    extra = Kernel("elementwise", (), in_elements=size + 2, out_elements=size)
    both = Kernel(
        "perceptron", (), macs=10 * size + 50, in_elements=size, out_elements=5, weight_elements=10 * size + 50, inner=2
    )
    return unnamed(a, extra, b, both)


def never(_: Structure) -> tuple[Kernel, ...]:
    raise AssertionError


def learned(*plans: CompiledPlan, known: tuple[str, ...] = ()) -> Followed:
    return followed(never, plans, lambda kernel: not known or kernel.op in known)


def shapes(kernels: tuple[Kernel, ...]) -> list[object]:
    return [kernel.shape for kernel in kernels]


@given(st.integers(11, 500), st.integers(11, 500))
@example(62, 11)  # where a conversion happens to read as many values as a convolution
def test_what_was_compiled_of_one_plan_is_foreseen_of_another_in_its_sizes(here: int, there: int) -> None:
    found = learned(CompiledPlan(plan(here), joined(here))).put_right(plan(there))
    assert shapes(found) == shapes(joined(there))
    assert [kernel.sources for kernel in found] == [("a",), ("a",), ("a",), ("b", "c")]


def test_a_plan_that_is_as_foreseen_changes_nothing() -> None:
    made = learned(CompiledPlan(plan(64), unnamed(*plan(64))))
    assert made.passages == ()
    assert made.put_right(plan(32)) == in_company(plan(32))


def test_kernels_that_come_in_another_order_are_as_foreseen() -> None:
    a, b, c, d = plan(64)
    made = learned(CompiledPlan(plan(64), unnamed(b, c, a, d)))
    assert made.passages == ()


def test_what_the_latency_model_does_not_know_stays_as_the_rules_have_it() -> None:
    made = learned(CompiledPlan(plan(64), joined(64)), known=("conv", "quantize", "linear", "elementwise"))
    assert [kernel.op for kernel in made.put_right(plan(64))] == ["conv", "elementwise", "quantize", "linear", "linear"]


def test_most_plans_decide_where_they_disagree() -> None:
    as_foreseen = CompiledPlan(plan(64), unnamed(*plan(64)))
    other = CompiledPlan(plan(32), joined(32))
    assert learned(as_foreseen, as_foreseen, other).put_right(plan(48)) == in_company(plan(48))
    assert shapes(learned(as_foreseen, other, other).put_right(plan(48))) == shapes(joined(48))


def test_what_is_in_front_and_behind_tells_two_places_apart() -> None:
    """Behind a convolution that adds the quantization is another kernel than behind one that does not."""
    adding = (replace(conv("a", 64), fused_add=True), *plan(64)[1:])
    other = (adding[0], replace(adding[1], op="dequantize"), *adding[2:])
    made = learned(CompiledPlan(adding, unnamed(*other)), CompiledPlan(plan(64), unnamed(*plan(64))))
    assert shapes(made.put_right(plan(32))) == shapes(in_company(plan(32)))
    assert [kernel.op for kernel in made.put_right(adding)][:2] == ["conv", "dequantize"]


def test_a_kernel_that_the_runtime_leaves_out_is_left_out() -> None:
    a, _, c, d = plan(64)
    made = learned(CompiledPlan(plan(64), unnamed(a, c, d)))
    assert [kernel.op for kernel in made.put_right(plan(16))] == ["conv", "linear", "linear"]
