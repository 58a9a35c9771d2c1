"""Fingerprints: what is read from the system's own words, and what counts as another machine."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.errors import TargetError
from autocomp.hardware.fingerprint import KERNEL_FEATURES, Fingerprint, from_cpuinfo, mismatch, this_machine

INTEL = """processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 143
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse2 avx2 avx512f avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8 avx512_vnni

processor	: 1
vendor_id	: GenuineIntel
cpu family	: 6
model		: 143
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse2 avx2 avx512f avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8 avx512_vnni
"""

ARM = """processor	: 0
Features	: fp asimd evtstrm aes asimdhp asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU part	: 0xd42

processor	: 1
Features	: fp asimd evtstrm aes asimdhp asimddp i8mm bf16
CPU implementer	: 0x41
CPU part	: 0xd4d
"""

ORT = ("onnxruntime", "1.32.0")

fingerprints = st.builds(
    Fingerprint,
    cpu=st.text(min_size=1),
    family=st.text(),
    model=st.text(),
    architecture=st.text(),
    features=st.sets(st.sampled_from(sorted(set(KERNEL_FEATURES.values())))).map(lambda names: tuple(sorted(names))),
    logical_cores=st.integers(1, 512),
    runtime=st.sampled_from(["onnxruntime", "openvino"]),
    runtime_version=st.from_regex(r"1\.[0-9]{1,2}\.[0-9]", fullmatch=True),
)


def test_intel() -> None:
    found = from_cpuinfo(INTEL, "x86_64", 2, ORT)
    assert (found.family, found.model) == ("6", "143")
    assert found.cpu.startswith("Intel(R) Xeon(R) Platinum 8481C")
    assert set(found.features) == {
        "avx2", "avx512f", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx512_vnni",
    }  # fmt: skip


def test_arm_with_two_kinds_of_core_counts_on_what_both_can_do() -> None:
    found = from_cpuinfo(ARM, "aarch64", 8, ORT, board="Some Developer Kit")
    assert found.cpu == "Some Developer Kit"
    assert (found.family, found.model) == ("0x41", "0xd42+0xd4d")
    assert found.features == ("dotprod", "fp16", "neon")


def test_a_nameless_cpu_gets_a_name_from_its_numbers() -> None:
    assert from_cpuinfo(ARM, "aarch64", 8, ORT).cpu == "aarch64 0x41 0xd42+0xd4d"


def test_this_machine_is_itself() -> None:
    here = this_machine()
    assert here == this_machine()
    assert (here.runtime, here.runtime_version) == ("onnxruntime", onnxruntime.__version__)
    assert here.architecture == platform.machine()
    assert here.logical_cores >= 1
    assert here.cpu
    assert mismatch(here, this_machine()) == []


def test_without_cpuinfo_platform_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("autocomp.hardware.fingerprint._CPUINFO", tmp_path / "none")
    here = this_machine()
    assert here.cpu
    assert here.features == ()


@given(fingerprints)
def test_json_both_ways_and_the_hash_follows(fingerprint: Fingerprint) -> None:
    again = Fingerprint.from_json(fingerprint.to_json())
    assert again == fingerprint
    assert again.hash == fingerprint.hash
    assert mismatch(fingerprint, again) == []


@given(fingerprints, fingerprints)
def test_only_the_same_machine_has_the_same_hash(one: Fingerprint, other: Fingerprint) -> None:
    assert (one.hash == other.hash) == (one == other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpu": "AMD EPYC"}, ["AMD EPYC (family 6, model 143)", "instead of Intel"]),
        ({"family": "25"}, ["family 25, model 143", "instead of"]),
        ({"features": ("avx2",)}, ["without amx_bf16, amx_int8, avx512_bf16, avx512_vnni, avx512f, avx_vnni"]),
        ({"architecture": "aarch64"}, ["architecture aarch64 instead of x86_64"]),
        ({"runtime_version": "1.33.0"}, ["onnxruntime 1.33.0 instead of onnxruntime 1.32.0"]),
    ],
)
def test_what_is_another_machine(change: dict[str, object], words: list[str]) -> None:
    profile = from_cpuinfo(INTEL, "x86_64", 4, ORT)
    found = mismatch(profile, dataclasses.replace(profile, **change))  # type: ignore[arg-type]
    assert len(found) == 1
    assert all(word in found[0] for word in words)


def test_features_beside_those_of_the_profile_are_named_too() -> None:
    here = from_cpuinfo(INTEL, "x86_64", 4, ORT)
    profile = dataclasses.replace(here, features=("avx2",))
    assert mismatch(profile, here) == ["with amx_bf16, amx_int8, avx512_bf16, avx512_vnni, avx512f, avx_vnni besides"]


def test_what_is_the_same_machine() -> None:
    profile = from_cpuinfo(INTEL, "x86_64", 64, ORT)
    assert mismatch(profile, dataclasses.replace(profile, runtime_version="1.32.1")) == []
    fewer = dataclasses.replace(profile, logical_cores=2)
    assert mismatch(profile, fewer) == []
    assert mismatch(profile, fewer, threads=2) == []
    assert mismatch(profile, fewer, threads=4) == ["2 cores for 4 threads"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"cpu": "x", "features": 3}'])
def test_text_that_is_no_fingerprint(text: str) -> None:
    with pytest.raises(TargetError, match="a fingerprint must be the JSON") as caught:
        Fingerprint.from_json(text)
    assert "\n" not in str(caught.value)
