"""A search whose files are torch packages, run by torch on the CPU: what a search for a GPU does, but for the device."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from autocomp.compress.quantize import Numerics
from autocomp.errors import RequestError
from autocomp.finished import Run
from autocomp.formats import WORKS
from autocomp.hardware import lowering_torch
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.target import Offer, Target
from autocomp.hardware.timed_files import THIS_MACHINE
from autocomp.plan import Plan
from autocomp.run import RunFolder
from autocomp.search import flow
from autocomp.search.points import verifications
from autocomp.search.verify import export_and_score
from autocomp.watch import SILENT
from tests import small_task
from tests.targets import REQUEST, ArithmeticLatency, made_target, small_setup

NUMERICS = Numerics(
    symmetric_activations=True,
    integer_bias=False,
    rounded_outputs=False,
    floats="bf16",
    sparse_products=True,
)


class Everything(frozenset[str]):
    """All kinds of kernels."""

    def __contains__(self, kind: object) -> bool:
        return True


def torch_target(reachable: bool) -> Target:
    return replace(
        made_target(),
        name="torch-cpu",
        runtime="torch-cpu",
        artifact="torch",
        offer=Offer((8,), ("channel", "2:4"), ranks=True, activations=dict.fromkeys(WORKS, ("a8", "a32"))),
        numerics=NUMERICS,
        model=ArithmeticLatency(Everything()),
        lower=partial(lowering_torch.lower, batch=1, floats="bf16", symmetric_activations=True),
        reachable=reachable,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Out of reach: files are scored by torch on the CPU, and not timed."""
    request = replace(REQUEST, target="torch-cpu", artifact="torch", trials=3, sampler="random")
    setup = flow.set_up(request, small_task.task(), torch_target(reachable=False))
    folder = RunFolder(tmp_path_factory.mktemp("torch") / "run")
    flow.search(setup, folder, resume=False, watcher=SILENT)
    return Run(folder)


def test_every_point_is_a_package_that_stock_torch_runs(run: Run) -> None:
    points = sorted(run.folder.exports.iterdir())
    assert points
    for point in points:
        assert not (point / "model.onnx").exists()
        loaded = torch.export.load(point / "model.pt2").module()
        with torch.no_grad():
            output = loaded(*small_task.task().example_inputs)
        assert output.dtype == torch.float32


def test_files_of_another_machines_gpu_are_scored_without_one() -> None:
    """As with the search's own node of a cluster whose GPU is elsewhere: this machine's torch has no CUDA."""
    target = replace(torch_target(reachable=True), runtime="torch-cuda")
    bench = replace(small_setup().bench, target=target, place=replace(THIS_MACHINE, another_machine=True))
    found = export_and_score(bench, Plan())
    assert found.measured.value == pytest.approx(found.simulated.value, abs=2.0)


def test_its_numbers_are_those_of_the_file(run: Run) -> None:
    front = run.front
    for row in front.to_dict("records"):
        file = run.folder.exports / str(row["trial"]) / "model.pt2"
        assert row["measured_size_bytes"] == file.stat().st_size
        assert abs(row["size_bytes"] - row["measured_size_bytes"]) < max(400, 0.01 * row["measured_size_bytes"])
        assert row["measured_metric"] == pytest.approx(row["metric_search"], abs=20)
    documents = verifications(run.folder).values()
    assert {document["runtime"] for document in documents} == {"torch-cpu (metric only)"}
    assert {document["format"] for document in documents} == {"torch"}


def test_a_verified_file_is_given_out_as_it_is_and_others_are_written_beside_it(run: Run, tmp_path: Path) -> None:
    task = small_task.task()
    exported = run.export(0, out=tmp_path / "same")
    assert exported.name == "model.pt2"
    assert exported.read_bytes() == (run.folder.exports / "0" / "model.pt2").read_bytes()
    onnx = run.export(0, artifact="onnx", task=task)
    assert onnx == run.folder.exports / "0" / "onnx" / "model.onnx"
    (run.folder.exports / "0" / "model.pt2").rename(tmp_path / "moved.pt2")
    try:
        again = run.export(0, out=tmp_path / "again", task=task)
    finally:
        (tmp_path / "moved.pt2").rename(run.folder.exports / "0" / "model.pt2")
    assert again.read_bytes() == exported.read_bytes()


def test_points_of_an_onnx_run_are_written_as_packages(finished_run: Path, tmp_path: Path) -> None:
    task = small_task.task()
    path = Run.open(finished_run).export(0, artifact="torch", out=tmp_path, task=task)
    assert path.name == "model.pt2"
    loaded = torch.export.load(io.BytesIO(path.read_bytes())).module()
    with torch.no_grad():
        torch.testing.assert_close(loaded(*task.example_inputs), task.model(*task.example_inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.exhaustive
def test_in_reach_files_are_timed_and_the_search_is_warmed_up(tmp_path: Path) -> None:
    request = replace(REQUEST, target="torch-cpu", artifact="torch", trials=4, sampler="random")
    setup = flow.set_up(request, small_task.task(), torch_target(reachable=True))
    folder = RunFolder(tmp_path / "run")
    points = flow.search(setup, folder, resume=False, watcher=SILENT)
    verified = verifications(folder)
    assert points
    for point in points:
        measured = verified[point.key]["measured"]
        assert isinstance(measured, dict)
        assert isinstance(measured["latency_ms"], float)
        assert measured["latency_ms"] > 0
        assert verified[point.key]["runtime"] == "torch-cpu"
    assert any(event["event"] == "warm-start" for event in folder.events())


def test_a_file_of_another_kind_is_not_predicted_for_torch(tmp_path: Path) -> None:
    from autocomp.forecast import forecast_file

    with pytest.raises(RequestError, match="runs torch packages; give a task"):
        forecast_file(tmp_path / "model.onnx", torch_target(reachable=True), (), in_part=False)


def test_a_kernel_has_a_name_of_its_precision() -> None:
    structure = flow.set_up(
        replace(REQUEST, target="torch-cpu", artifact="torch"), small_task.task(), torch_target(reachable=False)
    )
    kernels: tuple[Kernel, ...] = structure.bench.target.lower(structure.bench.structure(Plan()))
    assert {kernel.op.rpartition("_")[2] for kernel in kernels} <= {"bf16", "fp32"}
