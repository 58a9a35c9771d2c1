"""The line that builds a TensorRT engine of a file."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import onnx
import pytest

from autocomp.compress.apply import apply
from autocomp.export.to_onnx import export_onnx
from autocomp.hardware.trtexec import build_options, shapes_option, trtexec_script
from autocomp.plan import Plan
from tests.networks import eight_bits, inputs, prepared


def file_of(network: str, plan: Plan) -> bytes:
    return export_onnx(apply(prepared(network), plan, [inputs(network, 4)]), packed=False)


def test_eight_bits_are_allowed_where_the_file_rounds() -> None:
    assert build_options(onnx.load_from_string(file_of("plain", Plan()))) == ["--fp16"]
    assert build_options(onnx.load_from_string(file_of("plain", eight_bits("plain")))) == ["--fp16", "--int8"]


def test_sizes_that_the_file_leaves_open_are_told() -> None:
    shapes = [tuple(tensor.shape) for tensor in inputs("two_inputs", 2)]
    (option,) = shapes_option(onnx.load_from_string(file_of("two_inputs", Plan())), shapes)
    told = dict(part.split(":") for part in option.removeprefix("--shapes=").split(","))
    assert list(told.values()) == ["x".join(map(str, shape)) for shape in shapes]


@pytest.mark.parametrize("two_in_four", [False, True])
def test_the_script_runs_trtexec_beside_the_file(tmp_path: Path, two_in_four: bool) -> None:
    shapes = [tuple(tensor.shape) for tensor in inputs("plain", 1)]
    folder = tmp_path / "a folder"
    folder.mkdir()
    script, program = folder / "trtexec.sh", tmp_path / "trtexec"
    script.write_bytes(trtexec_script(file_of("plain", Plan()), shapes, two_in_four, "TensorRT 10.3 (JetPack 6.2)"))
    assert "# Builds the engine" in script.read_text()
    assert "TensorRT 10.3 (JetPack 6.2)" in script.read_text()
    program.write_text('#!/bin/sh\npwd\necho "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", str(script), "--verbose"], capture_output=True, text=True, env=path, check=True)
    where, line = done.stdout.splitlines()
    assert where == str(folder)
    options = shlex.split(line)
    assert options[0] == "--onnx=model.onnx"
    assert ("--sparsity=enable" in options) == two_in_four
    assert options[-1] == "--verbose"
