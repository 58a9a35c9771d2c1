"""Lowering by rules, put right where a runtime's own graphs say otherwise.

Rules follow a runtime only so far: what it fuses changes with its version and with what a machine multiplies with. So some
plans of the network at hand are compiled, and where their graphs differ from what the rules foresee, the kernels that are
there instead are kept. They take the place of the same stretch of foreseen kernels in every other plan, in its sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property

from autocomp.changed import changed
from autocomp.compress.structure import Structure
from autocomp.hardware.kernels import Kernel, Shape, in_company

#: What a foreseen kernel is known by in another plan: its kind, what it computes, and whether it adds.
Key = tuple[str, tuple[str, ...], bool]
#: A kernel that multiplies nothing and reads a few values more than it writes reads constants, however much it writes.
MOST_CONSTANTS = 8
Lower = Callable[[Structure], tuple[Kernel, ...]]


@dataclass(frozen=True)
class CompiledPlan:
    """One plan's kernels, as the rules foresee them and as the runtime compiled them, each in its order."""

    foreseen: tuple[Kernel, ...]
    compiled: tuple[Kernel, ...]

    @property
    def differs(self) -> bool:
        return Counter(map(_shape, self.foreseen)) != Counter(map(_shape, self.compiled))


@dataclass(frozen=True)
class Place:
    """Where a stretch of foreseen kernels is known again: by itself, and by what is foreseen in front of it and behind;
    ``between`` is None where it is known wherever it is."""

    keys: tuple[Key, ...]
    between: tuple[Key | None, Key | None] | None

    def is_at(self, all_keys: Sequence[Key], start: int) -> bool:
        end = start + len(self.keys)
        if tuple(all_keys[start:end]) != self.keys:
            return False
        return self.between in (None, _around(all_keys, start, end))


@dataclass(frozen=True)
class Passage:
    """A stretch of kernels that the rules foresee, and what a runtime makes of it."""

    place: Place
    foreseen: tuple[Kernel, ...]
    compiled: tuple[Kernel, ...]

    def in_sizes_of(self, there: Sequence[Kernel]) -> Iterator[Kernel]:
        """What the runtime makes of the same stretch of another plan."""
        pairs = [*zip(self.foreseen, there, strict=True)]
        paired = len(self.foreseen) == len(self.compiled)
        for place, after in enumerate(self.compiled):
            # Its own counterpart tells most of it.
            yield _resized(
                after, [pairs[place], *pairs] if paired else pairs, pairs[place : place + 1] if paired else pairs
            )


@dataclass(frozen=True)
class Followed:
    """``rules``, with every one of the ``passages`` put in the place of what they foresee."""

    rules: Lower
    passages: tuple[Passage, ...]

    def __call__(self, structure: Structure) -> tuple[Kernel, ...]:
        """The kernel calls of one inference, in order."""
        return self.put_right(self.rules(structure))

    def put_right(self, foreseen: Sequence[Kernel]) -> tuple[Kernel, ...]:
        """The kernels that are there in place of those that the rules foresee."""
        keys, found, start = [*map(_key, foreseen)], list[Kernel](), 0
        while start < len(foreseen):
            here = (one for one in self._by_first.get(keys[start], ()) if one.place.is_at(keys, start))
            passage = next(here, None)
            if passage is None:
                found.append(foreseen[start])
                start += 1
            else:
                end = start + len(passage.foreseen)
                found += passage.in_sizes_of(foreseen[start:end])
                start = end
        return in_company(found)

    @cached_property
    def _by_first(self) -> dict[Key, list[Passage]]:
        """Passages by the kernel that they begin with, long ones and those of one place first."""
        found: dict[Key, list[Passage]] = {}
        for passage in sorted(self.passages, key=lambda one: (-len(one.foreseen), one.place.between is None)):
            found.setdefault(passage.place.keys[0], []).append(passage)
        return found


def followed(rules: Lower, plans: Sequence[CompiledPlan], covers: Callable[[Kernel], bool]) -> Followed:
    """The rules put right by some compiled plans of the network.

    Where plans disagree on a stretch, because the runtime looks at more than the rules do, most of them decide; what is to be
    put right wherever it is foreseen has to be seen twice.

    Args:
        covers: whether the latency model knows a kernel. What it does not know stays as the rules have it: another model of
            the same runtime's kernels would have to be calibrated.
    """
    found: dict[Place, Passage] = {}
    votes: Counter[Place] = Counter()
    differing = [[*_differences(plan)] for plan in plans]
    for _, passage in (each for one in differing for each in one):
        if all(map(covers, passage.compiled)):
            for place in (passage.place, replace(passage.place, between=None)):
                found.setdefault(place, replace(passage, place=place))
                votes[place] += 1
    by_first: dict[Key, list[Place]] = {}
    for place in found:
        by_first.setdefault(place.keys[0], []).append(place)
    for plan, different in zip(plans, differing, strict=True):
        put_right = {start + step for start, passage in different for step in range(len(passage.foreseen))}
        keys = [*map(_key, plan.foreseen)]
        for start, first in enumerate(keys):
            for place in by_first.get(first, ()):
                as_foreseen = put_right.isdisjoint(range(start, start + len(place.keys)))
                votes[place] -= as_foreseen and place.is_at(keys, start)
    return Followed(rules, tuple(passage for place, passage in found.items() if votes[place] > (place.between is None)))


def _around(keys: Sequence[Key], start: int, end: int) -> tuple[Key | None, Key | None]:
    return keys[start - 1] if start else None, keys[end] if end < len(keys) else None


def _key(kernel: Kernel) -> Key:
    return kernel.op, kernel.sources, kernel.fused_add


def _shape(kernel: Kernel) -> Shape:
    """The footprint aside, which follows from all kernels."""
    return changed(kernel, footprint_bytes=0).shape


def _differences(plan: CompiledPlan) -> Iterator[tuple[int, Passage]]:
    """What differs, and where in the foreseen kernels it begins. A kernel that only comes at another time does not differ."""
    before, after = ([*map(_shape, kernels)] for kernels in (plan.foreseen, plan.compiled))
    keys = [*map(_key, plan.foreseen)]
    opcodes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    blocks = [block[1:] for block in opcodes if block[0] != "equal"]
    stay = Counter(shape for start, end, _, _ in blocks for shape in before[start:end])
    stay &= Counter(shape for _, _, first, last in blocks for shape in after[first:last])
    moved = stay.copy()
    for start, end, first, last in blocks:
        stretch = plan.foreseen[start:end]
        # Where the rules have a kernel that comes at another time it stays, and where it comes it is left out.
        compiled = [*_taken(stretch, stay), *_left(plan.compiled[first:last], moved)]
        if Counter(before[start:end]) == Counter(map(_shape, compiled)):
            continue
        if not stretch:  # kernels that nothing was foreseen for: told with the one in front, or behind
            compiled = [*plan.foreseen[max(0, start - 1) : start], *compiled, *plan.foreseen[: start == 0]]
            start = max(0, start - 1)
            stretch = plan.foreseen[start : start + 1]
        if stretch:
            end = start + len(stretch)
            place = Place(tuple(keys[start:end]), _around(keys, start, end))
            yield start, Passage(place, stretch, tuple(compiled))


def _taken(kernels: Sequence[Kernel], among: Counter[Shape]) -> Iterator[Kernel]:
    """Those that are among some shapes, each of which is taken once."""
    for kernel in kernels:
        if among[_shape(kernel)] > 0:
            among[_shape(kernel)] -= 1
            yield kernel


def _left(kernels: Sequence[Kernel], without: Counter[Shape]) -> Iterator[Kernel]:
    """Those that are not, each shape counting once."""
    for kernel in kernels:
        if without[_shape(kernel)] > 0:
            without[_shape(kernel)] -= 1
        else:
            yield kernel


#: A foreseen kernel in the plan that was compiled, and in another one.
Pair = tuple[Kernel, Kernel]


def _resized(kernel: Kernel, pairs: Sequence[Pair], of: Sequence[Pair]) -> Kernel:
    """A compiled kernel in the sizes of another plan: what of it is as large as something foreseen is that large there,
    and the rest grows as all that was foreseen together.

    Args:
        pairs: of the whole stretch. ``of``: those that it computes.
    """

    def same(field: str, *like: str) -> int | None:
        value = getattr(kernel, field)
        return next((getattr(now, one) for then, now in pairs for one in like if getattr(then, one) == value), None)

    def grown(field: str) -> int:
        value: int = getattr(kernel, field)
        before, here = (sum(getattr(pair[which], field) for pair in of) for which in (0, 1))
        return round(value * here / before) if before else value

    def sized(field: str, *like: str) -> int:
        found = same(field, field, *like)
        return grown(field) if found is None else found

    out = sized("out_elements", "in_elements")
    constants = kernel.in_elements - kernel.out_elements
    read = (
        out + constants
        if not kernel.macs and 0 <= constants <= MOST_CONSTANTS
        else sized("in_elements", "out_elements")
    )
    return changed(
        kernel,
        sources=tuple(dict.fromkeys(source for _, now in of for source in now.sources)),
        macs=sized("macs"),
        in_elements=read,
        out_elements=out,
        weight_elements=sized("weight_elements"),
        groups=sized("groups") if kernel.groups > 1 else 1,
        inner=next((now.inner for then, now in pairs if then.inner == kernel.inner), kernel.inner),
    )
