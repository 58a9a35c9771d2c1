"""What is asked of a GPU, by an ``nvidia-smi`` that is a script here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autocomp.errors import TargetError
from autocomp.hardware import gpu
from autocomp.hardware.fingerprint import this_machine


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f'#!/bin/sh\n[ $3 = --id=GPU-unknown ] && exit 6\necho "{says}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="aa-bb"))


@pytest.mark.parametrize(("told", "card"), [({"uuid": "aa-bb"}, "GPU-aa-bb"), ({"uuid": "unknown"}, "0"), ({}, "0")])
def test_the_card_that_is_asked_about_is_the_one_that_torch_sees(
    told: dict[str, str], card: str, seen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older torch does not tell which it is, and nvidia-smi does not know parts of cards."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**told))
    smi(tmp_path, monkeypatch, "550.54, 1980, $3")
    assert this_machine("torch-cuda").features == ("clocks.max.sm 1980 MHz", f"power.limit --id={card} W")


def test_a_gpu_is_known_by_name_capability_driver_and_limits(
    seen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, "550.54, 1980, 700.00")
    found = this_machine("torch-cuda")
    assert (found.cpu, found.family, found.model) == ("NVIDIA Test", "9.0", "550.54")
    assert found.features == ("clocks.max.sm 1980 MHz", "power.limit 700.00 W")
    assert found.on_gpu
    assert found.runtime_version == torch.__version__.partition("+")[0] or found.runtime_version == torch.__version__


def test_what_a_driver_does_not_tell_is_left_out(seen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "550.54, [N/A], 700.00")
    assert this_machine("torch-cuda").features == ("power.limit 700.00 W",)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    found = this_machine("torch-cuda")
    assert (found.model, found.features) == ("", ())
    assert gpu.gpu_clock_words() == "GPU clocks not told by this system"


def test_clocks_are_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "1500, 1980, 210.5, 700.00")
    assert gpu.gpu_clock_words() == "GPU at 1500 of at most 1980 MHz, drawing 210.5 of 700.00 W at the time"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_way_out_is_told() -> None:
    with pytest.raises(TargetError, match=r"torch sees none here; run autocomp calibrate cuda --out DIR") as caught:
        this_machine("torch-cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_the_gpu_here_is_known() -> None:
    found = this_machine("torch-cuda")
    assert found.cpu
    assert "." in found.family
