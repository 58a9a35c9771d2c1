"""The Python API: what the command line does, without strings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest

import autocomp
from autocomp import Format, LayerPlan, Plan, Run
from autocomp.errors import (
    BoardError,
    ExportError,
    PlanError,
    RequestError,
    RunError,
    TargetError,
    TaskError,
    UncoveredKernelError,
)
from autocomp.hardware.remote.target import ConnectedBoard
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.runtime import LoadedFile
from autocomp.run import Json, RunFolder
from autocomp.search import flow, verify
from autocomp.search.evaluate import Workbench
from autocomp.search.points import VERIFIED, verifications
from autocomp.search.verify import Exported
from autocomp.watch import SILENT, Silent
from tests import small_task
from tests.targets import OPS, REQUEST, made_target, small_setup

pytestmark = pytest.mark.slow

PLAN = Plan({name: LayerPlan(format=Format(4)) for name in ("stem", "conv1", "conv2", "head")})


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Run:
    """A copy to change."""
    return Run.open(shutil.copytree(finished_run, tmp_path / "run"))


def test_what_is_offered_is_there() -> None:
    assert sorted(autocomp.__all__) == autocomp.__all__
    assert all(hasattr(autocomp, name) for name in autocomp.__all__)
    assert callable(autocomp.search)  # not the package of that name
    assert callable(autocomp.compress)
    assert callable(autocomp.export)


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "optuna", "onnx", "onnxruntime", "sklearn", "pandas", "matplotlib", "plotly", "ray")
    probe = f"import autocomp, sys; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(autocomp.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert done.stdout == "[]\n"


def test_a_folder_without_a_run_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold run\.json"):
        Run.open(tmp_path)
    (tmp_path / "front.csv").write_text("trial\n")
    with pytest.raises(RunError, match=r"must hold run\.json"):
        Run.open(tmp_path / "front.csv")


def test_the_front_is_a_table(finished_run: Path) -> None:
    run = Run.open(finished_run)
    assert run.front["trial"].iloc[0] == 0
    assert bool(run.front["is_baseline"].iloc[0])
    assert run.front["measured_latency_ms"].isna().all()
    assert (run.front["measured_size_bytes"] > 0).all()
    assert len(run.trials) == REQUEST.trials


def test_a_table_that_was_deleted_is_rebuilt(run: Run) -> None:
    before = run.front
    (run.folder.path / "front.csv").unlink()
    assert run.front.equals(before)


def test_reading_a_run_that_is_at_work_does_not_disturb_it(run: Run) -> None:
    journal = run.folder.journal.read_bytes()
    with run.folder.working():
        run.pick()
        assert len(run.front) > 1
    assert run.folder.journal.read_bytes() == journal


class TestPick:
    def test_the_knee_is_a_compressed_front_point(self, finished_run: Path) -> None:
        run = Run.open(finished_run)
        knee = run.pick()
        assert knee.number in set(run.front["trial"]) - {0}
        assert run.pick("knee") == knee
        assert run.pick(knee.number) == run.pick(str(knee.number)) == knee

    def test_within_a_limit_it_is_the_most_accurate(self, finished_run: Path) -> None:
        run = Run.open(finished_run)
        limit_ms = float(run.front["latency_ms"].median())
        fast = run.front[run.front["latency_ms"] <= limit_ms]
        assert run.pick(max_latency_ms=limit_ms).metric == fast["metric_search"].max()

    @pytest.mark.parametrize("which", ["knee", "fastest", 0])
    def test_a_limit_and_a_name_are_not_both_given(self, finished_run: Path, which: str | int) -> None:
        with pytest.raises(RequestError, match=f"picks the point itself; got --pick {which} as well"):
            Run.open(finished_run).pick(which, max_latency_ms=1.0)

    def test_what_was_timed_counts_also_where_that_never_settled(self, run: Run) -> None:
        limit_ms = float(run.front["latency_ms"].max())
        best = run.pick(max_latency_ms=limit_ms)
        document = verifications(run.folder)[best.key]
        slow: Json = {"latency_ms": 1.01 * limit_ms, "latency_spread": 0.1, "settled": False}
        measured: Json = {**cast("Json", document["measured"]), **slow}
        run.folder.append_event({"event": VERIFIED, "verification": {**document, "measured": measured}})
        assert run.pick(max_latency_ms=limit_ms).number != best.number

    def test_a_loose_limit_picks_no_uncompressed_model(self, finished_run: Path) -> None:
        assert Run.open(finished_run).pick(max_latency_ms=1e6).number != 0

    def test_a_limit_that_no_point_keeps_says_what_is_possible(self, finished_run: Path) -> None:
        run = Run.open(finished_run)
        fastest = f"{run.front['latency_ms'].min():.3f} ms"
        with pytest.raises(RunError, match=f"no front point keeps 1e-06 ms; the fastest takes {fastest}"):
            run.pick(max_latency_ms=1e-6)

    def test_a_trial_off_the_front_names_the_front(self, finished_run: Path) -> None:
        run = Run.open(finished_run)
        with pytest.raises(RunError, match=r"trial 99 is not on the front.*the front has 0, "):
            run.pick(99)

    def test_a_number_may_come_from_a_table(self, run: Run) -> None:
        assert run.pick(run.front["trial"].iloc[-1]).number == run.front["trial"].iloc[-1]

    @pytest.mark.parametrize("which", ["best", "-1", "", "3.5"])
    def test_anything_else_is_refused(self, finished_run: Path, which: str) -> None:
        with pytest.raises(RequestError, match="smallest or a trial number"):
            Run.open(finished_run).pick(which)


def test_a_point_is_exported_beside_its_plan(run: Run, tmp_path: Path) -> None:
    knee = run.pick()
    path = run.export(out=tmp_path / "shipped")
    assert path == tmp_path / "shipped" / "model.onnx"
    assert path.read_bytes() == (run.folder.exports / str(knee.number) / "model.onnx").read_bytes()
    assert Plan.from_json((tmp_path / "shipped" / "plan.json").read_text()) == knee.plan
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"is written into a folder; .*file is a file; name another by --out"):
        run.export(out=tmp_path / "file")


def test_a_file_that_is_not_the_verified_one_is_written_anew(run: Run, tmp_path: Path) -> None:
    path = run.folder.exports / str(run.pick().number) / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))  # as long as it was
    assert run.export(out=tmp_path / "shipped", task=small_task.task()).read_bytes() == whole


def test_the_report_is_rebuilt_from_the_truth(run: Run) -> None:
    for path in run.folder.path.rglob("*"):
        if path.is_file() and path.name not in {"run.json", "study.log", "events.jsonl", "model.onnx"}:
            path.unlink()
    page = run.report(small_task.task())
    assert page == run.folder.path / "report.html"
    assert "small" in page.read_text()
    assert (run.folder.path / "layers.json").is_file()
    assert len(run.front) > 1
    assert list((run.folder.path / "figures").iterdir())


def test_the_report_takes_no_other_model(run: Run) -> None:
    (run.folder.path / "layers.json").unlink()
    task = small_task.task()
    task.model.stem.bias.data.add_(1.0)  # type: ignore[union-attr,operator]
    with pytest.raises(RunError, match=r"is not the one that .* was searched with"):
        run.report(task)


def test_a_run_in_which_nothing_is_finished_has_nothing_to_report(run: Run) -> None:
    lines = run.folder.journal.read_bytes().splitlines(keepends=True)
    run.folder.journal.write_bytes(b"".join(lines[:4]))
    with pytest.raises(RunError, match="no finished trial to report"):
        run.report()
    with pytest.raises(RunError, match="no finished trial to pick"):
        run.pick()


def test_a_search_is_a_call(tmp_path: Path) -> None:
    def search(resume: bool) -> Run:
        return autocomp.search(
            small_task.task(),
            target=made_target(),
            out=tmp_path / "run",
            trials=2,
            seed=REQUEST.seed,
            max_size_kb=1.5,
            max_drop=0.0,
            resume=resume,
        )

    run = search(resume=False)
    assert isinstance(run, Run)
    assert run.folder.request() == replace(REQUEST, trials=2, max_size_kb=1.5, max_drop=0.0)
    assert list(run.front["trial"]) == [0]
    again = search(resume=True)
    assert again.trials.equals(run.trials)


@pytest.mark.exhaustive
def test_the_runs_data_are_remembered_and_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMP_DATA", raising=False)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "there").touch()
    (tmp_path / "mine.py").write_text(
        "from tests.small_task import task as made\n\n"
        "def task(data):\n    assert (data / 'there').exists()\n    return made()\n"
    )
    name, out = str(tmp_path / "mine.py"), tmp_path / "run"
    with pytest.raises(TaskError, match="name a folder by --data or AUTOCOMP_DATA"):
        autocomp.predict(name, target=made_target())
    assert autocomp.predict(name, target=made_target(), data=tmp_path / "before").latency_ms > 0
    run = autocomp.search(name, target=made_target(), out=out, trials=1, data=str(tmp_path / "before"))
    assert run.folder.request().data == str(tmp_path / "before")
    assert run._task().name == "small"
    autocomp.search(name, target=made_target(), out=out, trials=2, resume=True)
    shutil.rmtree(tmp_path / "before")
    autocomp.search(name, target=made_target(), out=out, trials=3, resume=True, data=tmp_path / "after")
    monkeypatch.setenv("AUTOCOMP_DATA", str(tmp_path / "after"))
    assert run._task().name == "small"
    assert len(run.trials) == 3


def test_data_are_for_a_task_that_has_a_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="got a Task and"):
        autocomp.predict(small_task.task(), target=made_target(), data=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "kind", "named"),
    [
        ({"sampler": "nsga"}, RequestError, "nsga2"),
        ({"goal": "quickest"}, RequestError, "fastest"),
        ({"goal": "fastest"}, RequestError, "wanted within a drop; got none; say which by --max-drop"),
        ({"space": "defualt"}, autocomp.AutocompError, "did you mean default"),
        ({"target": "jetsn"}, TargetError, "jetson"),
        ({"task": "digit"}, TaskError, "did you mean digits"),
    ],
)
def test_a_typo_does_not_wait_for_training(
    tmp_path: Path, wrong: dict[str, str], kind: type[Exception], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocomp.tasks.digits.digits", lambda **_: pytest.fail("trained"))
    asked: dict[str, str] = {"task": "digits", "target": "jetson", **wrong}
    with pytest.raises(kind, match=named):
        autocomp.search(**asked, out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("limit", ["max_latency_ms", "max_size_kb", "timeout_s"])
def test_a_limit_of_nothing_is_refused(tmp_path: Path, limit: str) -> None:
    with pytest.raises(RequestError, match=limit):
        autocomp.search(small_task.task(), target=made_target(), out=tmp_path / "run", **{limit: 0.0})  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_compress_leaves_the_model_as_it_is() -> None:
    task = small_task.task()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    found = autocomp.compress(task.model, PLAN, task.example_inputs, task.calibration)
    assert found.plan == PLAN
    assert not found.model(*task.example_inputs).equal(task.model(*task.example_inputs))
    assert all(tensor.equal(before[name]) for name, tensor in task.model.state_dict().items())


def test_a_plan_for_another_model_does_not_compress() -> None:
    task = small_task.task()
    with pytest.raises(PlanError, match="'conv9'; did you mean conv"):
        autocomp.compress(task.model, Plan({"conv9": PLAN["stem"]}), task.example_inputs, task.calibration)


def test_a_file_is_written_and_computes_what_the_model_computes(tmp_path: Path) -> None:
    from autocomp.hardware.runtimes.onnxruntime import load
    from autocomp.hardware.runtimes.runtime import batch_outputs

    task = small_task.task()
    path = autocomp.export(task, PLAN, tmp_path / "model.onnx", target=made_target())
    simulated = autocomp.compress(task.model, PLAN, task.example_inputs, task.calibration).model
    ((batch,),) = task.calibration
    (computed,) = batch_outputs(load(path, 1), batch.numpy())
    np.testing.assert_allclose(computed, simulated(batch).detach().numpy(), atol=0.05)


def test_a_prediction_falls_with_the_plan() -> None:
    task, target = small_task.task(), made_target()
    untouched = autocomp.predict(task, target=target)
    assert autocomp.predict(task, PLAN, target=target).latency_ms < untouched.latency_ms
    assert {source for share in untouched.kernels for source in share.kernel.sources} >= {"stem", "conv1", "conv2"}


def test_a_task_takes_no_shapes() -> None:
    with pytest.raises(RequestError, match="those of a task are its example inputs'"):
        autocomp.predict(small_task.task(), target=made_target(), input_shapes=[(3, 64, 64)])


def test_a_file_is_predicted_by_the_kernels_of_its_compiled_graph(tmp_path: Path) -> None:
    task, target = small_task.task(), replace(made_target(), reachable=True)
    path = autocomp.export(task, PLAN, tmp_path / "model.onnx", target=target)
    foreseen, found = autocomp.predict(task, PLAN, target=target), autocomp.predict(path, target=target)
    assert found.latency_ms == pytest.approx(foreseen.latency_ms, rel=0.25)
    assert len(found.kernels) > 5
    shape = tuple(task.example_inputs[0].shape[1:])
    assert autocomp.predict(path, target=target, input_shapes=[shape]).latency_ms == found.latency_ms


@pytest.mark.parametrize(
    ("name", "reachable", "message"),
    [("model.onnx", False, "on this machine"), ("nothing.onnx", True, "must exist; got")],
)
def test_a_file_that_cannot_be_predicted_is_refused(tmp_path: Path, name: str, reachable: bool, message: str) -> None:
    target = replace(made_target(), reachable=reachable)
    autocomp.export(small_task.task(), PLAN, tmp_path / "model.onnx", target=target)
    with pytest.raises(RequestError, match=message):
        autocomp.predict(tmp_path / name, target=target)


def test_a_file_takes_no_plan_no_data_and_only_its_own_shapes(tmp_path: Path) -> None:
    target = replace(made_target(), reachable=True)
    path = autocomp.export(small_task.task(), PLAN, tmp_path / "model.onnx", target=target)
    with pytest.raises(RequestError, match="leave the plan out"):
        autocomp.predict(path, PLAN, target=target)
    with pytest.raises(RequestError, match="leave --data out"):
        autocomp.predict(path, target=target, data=tmp_path)
    with pytest.raises(RequestError, match="for one example"):
        autocomp.predict(path, target=target, input_shapes=[(1, 2)])
    with pytest.raises(RequestError, match="one for each"):
        autocomp.predict(path, target=target, input_shapes=[(1, 2), (3,)])


def test_a_file_of_a_fixed_batch_is_predicted_at_no_other(tmp_path: Path) -> None:
    target = replace(made_target(), reachable=True)
    path = autocomp.export(small_task.task(), PLAN, tmp_path / "model.onnx", target=target)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, path)
    with pytest.raises(RequestError, match=r"has 8, got 1; say --batch 8$"):
        autocomp.predict(path, target=target)
    assert autocomp.predict(path, target=replace(target, batch=8)).latency_ms > 0


def test_a_kernel_that_the_target_does_not_know_names_the_layers() -> None:
    with pytest.raises(UncoveredKernelError) as caught:
        autocomp.predict(small_task.task(), target=made_target(frozenset({"conv_nchwc"})))
    assert "head" in caught.value.layers


def test_the_rest_is_predicted_where_that_is_asked_for() -> None:
    """A fully connected layer is not covered: what is foreseen of the others lacks it, and says so."""
    task, whole = small_task.task(), made_target()
    known = OPS - {"gemm", "qgemm"}
    for reachable in (False, True):
        forecast = autocomp.predict(task, target=replace(made_target(known), reachable=reachable), in_part=True)
        assert forecast.uncovered is not None
        assert forecast.uncovered.layers == ("head",)
        everything = autocomp.predict(task, target=replace(whole, reachable=reachable), in_part=True)
        assert everything.uncovered is None
        missing = [share for share in everything.kernels if share.kernel.op == "gemm"]
        assert len(missing) == 1
        assert forecast.latency_ms == pytest.approx(everything.latency_ms - missing[0].latency_ms)


def test_a_task_is_foreseen_by_the_kernels_that_its_runtime_compiles(tmp_path: Path) -> None:
    target = replace(made_target(), reachable=True)
    path = autocomp.export(small_task.task(), PLAN, tmp_path / "model.onnx", target=target)
    of_task, of_file = autocomp.predict(small_task.task(), PLAN, target=target), autocomp.predict(path, target=target)
    assert sorted(share.kernel.shape for share in of_task.kernels) == sorted(
        share.kernel.shape for share in of_file.kernels
    )
    assert {"head"} <= {source for share in of_task.kernels for source in share.kernel.sources}


def test_a_task_that_was_made_in_python_is_to_be_passed(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'small', was made in Python.* the same methods with task="):
        Run.open(finished_run).export(artifact="onnx", out=tmp_path / "shipped")
    with pytest.raises(RunError, match=r"'small', was made in Python.* by --task, or pass it as task"):
        autocomp.search(begin_from=finished_run, out=tmp_path / "new")


@pytest.mark.parametrize(
    ("reachable", "message"), [(True, "here is CPU .*; verify it there"), (False, "of cpu on another machine")]
)
def test_another_machine_is_not_calibrated_to_be_refused(
    reachable: bool, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = run.folder.read()
    document["request"] = {**cast("Json", document["request"]), "target": "cpu"}
    document["target"] = {**cast("Json", document["target"]), "reachable": reachable}
    document["fingerprint"] = {**cast("Json", document["fingerprint"]), "cpu": "a CPU that nobody has"}
    run.folder.write_json("run.json", document)
    monkeypatch.setattr("autocomp.hardware.resolve.resolve_target", None)
    with pytest.raises(RunError, match=message):
        run.verify(task=small_task.task())


def test_a_file_that_a_board_refuses_leaves_the_others_measured(run: Run) -> None:
    points = flow.front_of(run.folder)
    bad, said = points[-1], list[str]()
    refused = (run.folder.exports / str(bad.number) / "model.onnx").read_bytes()

    class OnBoard:
        files = "onnx"

        def load(self, model: bytes, threads: int) -> LoadedFile:
            if model == refused:
                raise BoardError("board must be able to load the file; it says: no kernel")
            return onnxruntime.load(model, threads)

    class Heard(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    board = ConnectedBoard(OnBoard(), "a board")  # type: ignore[arg-type]
    flow.verify(small_setup(), run.folder, points, Heard(), again=True, board=board)
    timed = {one["trial"]: one["timed_on"] for one in verifications(run.folder).values()}
    assert timed == {point.number: None if point is bad else "a board" for point in points}
    assert f"trial {bad.number} is not measured: board must be able to load the file; it says: no kernel" in said
    with pytest.raises(BoardError, match="no kernel"):
        flow.verify(small_setup(), run.folder, [bad], SILENT, again=True, board=board)


def test_drops_are_counted_from_the_baselines_own_file(finished_run: Path) -> None:
    """The untouched file against itself loses nothing, as far as a hundred images can tell."""
    baseline = Run.open(finished_run).front.iloc[0]
    assert baseline["measured_metric_low"] == -baseline["measured_metric_high"]
    assert 0 < baseline["measured_metric_high"] < 2.5


def test_points_are_verified_again_on_demand(run: Run) -> None:
    knee = run.pick()
    before = len(list(run.folder.events()))
    flow.verify(small_setup(), run.folder, [knee], SILENT, again=True)
    events = list(RunFolder(run.folder.path).events())[before:]
    assert [event["verification"]["trial"] for event in events] == [0, knee.number]  # type: ignore[index,call-overload]


def test_what_could_not_be_verified_is_not_told_as_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, knee, before = small_setup(), run.pick(), verify.export_and_score

    def export_and_score(bench: Workbench, plan: Plan, weights: Path | None) -> Exported:
        if plan == knee.plan:
            raise ExportError("the disk is full")
        return before(bench, plan, weights)

    monkeypatch.setattr(flow, "export_and_score", export_and_score)
    points = [trial.number for trial in flow.front_of(run.folder)]
    told = run.verify("front", task=setup.bench.task, target=setup.bench.target)
    assert [document["trial"] for document in told] == [number for number in points if number != knee.number]
