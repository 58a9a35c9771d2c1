"""Points of a run, timed on the run's target over ssh: the board is this machine, behind a real sshd."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import cast

import pytest
import yaml

from autocomp import api
from autocomp.errors import BoardError, RequestError, TargetError
from autocomp.finished import Run
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.profiles import find_profile
from autocomp.hardware.remote.connection import Board
from autocomp.hardware.remote.target import board_of
from autocomp.hardware.remote.tensorrt import TensorrtOnBoard
from autocomp.hardware.resolve import resolve_target
from autocomp.hardware.runtimes.runtime import loaded_run
from autocomp.hardware.timing import TimingSettings, measure
from autocomp.run import Json
from autocomp.search.points import verifications
from tests.hardware.board import Loopback, loopback, with_runtime
from tests.hardware.test_onnxruntime import linear_file, weights
from tests.hardware.test_remote import cut

pytestmark = pytest.mark.slow

#: What TensorRT's own does, as far as it matters here: it takes options, writes engines and times, those of warming up in front
#: as versions up to 8.4 have it, and fails on a word.
TRTEXEC = """
import json, pathlib, sys
said = dict(one.lstrip("-").partition("=")[::2] for one in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec")
if "help" in said:
    pass
elif "onnx" in said:
    log = pathlib.Path(sys.argv[0]).with_name("built")
    log.write_text(str(int(log.read_text()) + 1 if log.exists() else 1))
    model = pathlib.Path(said["onnx"]).read_bytes()
    assert "shapes" in said or "fp16" in said
    if b"unbuildable" in model:
        print("[E] Error[9]: no kernel for this"); sys.exit(1)
    pathlib.Path(said["saveEngine"]).write_bytes(b"engine of " + model)
else:
    assert pathlib.Path(said["loadEngine"]).read_bytes().startswith(b"engine of ")
    times = [{"computeMs": 7.0, "latencyMs": 9.0} for _ in range(3)]
    times += [{"computeMs": 0.5 + 0.001 * i, "latencyMs": 9.0} for i in range(int(said["iterations"]))]
    pathlib.Path(said["exportTimes"]).write_text(json.dumps(times))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board"), with_runtime()) as found:
        yield found


@pytest.fixture
def jetson(host: Loopback) -> Iterator[Loopback]:
    """The same host, with a program called trtexec."""
    program = host.folder / "bin" / "trtexec"
    program.write_text(f"#!{sys.executable}\n{TRTEXEC}")
    program.chmod(0o755)
    yield host
    program.unlink()
    program.with_name("built").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile's folder that says it was measured on this machine."""
    shipped, folder = find_profile("cpu").folder, tmp_path_factory.mktemp("profiles") / "board"
    folder.mkdir()
    for name in ("latency_model.json", "memory_model.json"):
        (folder / name).write_bytes((shipped / name).read_bytes())
    document = yaml.safe_load((shipped / "profile.yaml").read_text(encoding="utf-8"))
    document["fingerprint"] = json.loads(json.dumps(asdict(this_machine())))
    (folder / "profile.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder


def another_machines(folder: Path, there: Path) -> Path:
    """The same profile, of a CPU that nobody has."""
    there.mkdir()
    for path in folder.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    document = yaml.safe_load((there / "profile.yaml").read_text(encoding="utf-8"))
    document["fingerprint"]["cpu"] = "a CPU that nobody has"
    (there / "profile.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return there


class TestFolderAsTarget:
    def test_it_is_within_reach_on_its_own_machine_only(self, calibrated: Path, tmp_path: Path) -> None:
        assert resolve_target(str(calibrated)).reachable
        said: list[str] = []
        away = another_machines(calibrated, tmp_path / "away")
        assert not resolve_target(str(away), tell=said.append).reachable
        assert "which is not this machine; latency is predicted" in said[0]

    def test_it_holds_for_the_threads_and_batch_that_it_was_measured_with(self, calibrated: Path) -> None:
        with pytest.raises(RequestError, match="measured with 1 threads at batch 1; got 1 and 8"):
            resolve_target(str(calibrated), batch=8)

    def test_a_folder_without_a_profile_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(TargetError, match=r"must hold profile\.yaml"):
            resolve_target(str(tmp_path))


class TestVerify:
    @pytest.mark.exhaustive
    def test_the_front_is_timed_on_the_board(
        self, host: Loopback, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The search is begun where the target is out of reach: nothing is measured before the board is there."""
        monkeypatch.setenv("AUTOCOMP_SSH", f"ssh -F {host.folder / 'config'}")
        folder = another_machines(calibrated, tmp_path / "away")
        run = api.search(None, target=str(folder), trials=3, sampler="random", out=tmp_path / "run")
        assert run.front["measured_latency_ms"].isna().all()
        with pytest.raises(
            BoardError, match=r"board is CPU .* instead of a CPU that nobody has.*calibrate cpu --host board"
        ):
            run.verify(host="board")
        (folder / "profile.yaml").write_bytes((calibrated / "profile.yaml").read_bytes())
        document = json.loads((run.folder.path / "run.json").read_text())
        document["profile_hash"] = find_profile(str(folder)).hash
        (run.folder.path / "run.json").write_text(json.dumps(document))
        (point, *_) = Run.open(run.folder.path).verify("0", host="board")
        assert isinstance(point, dict)
        assert isinstance(point["measured"], dict)
        assert 0 < float(str(point["measured"]["latency_ms"])) < 100
        assert "by onnxruntime" in str(point["timed_on"])
        assert run.folder.request().target == str(folder.resolve())

    def test_another_board_than_the_target_is_refused(self, host: Loopback) -> None:
        with host.board() as board:
            for target in ("jetson", "jetson-nano"):
                with pytest.raises(BoardError, match=r"verified on its target, NVIDIA Jetson.* calls itself 'nothing'"):
                    board_of(target, 1, 1, board)
            with pytest.raises(RequestError, match="timed by onnxruntime or TensorRT, not by openvino"):
                board_of("cpu-openvino", 1, 1, board)

    @pytest.mark.parametrize(
        ("target", "called", "same"),
        [
            ("jetson-agx-xavier", "Jetson-AGX", True),
            ("jetson-agx-xavier", "NVIDIA Jetson AGX Xavier Developer Kit", True),
            ("jetson-agx-xavier", "NVIDIA Jetson AGX Orin Developer Kit", False),
            ("jetson-agx-orin", "NVIDIA Jetson AGX Orin Developer Kit", True),
            ("jetson-agx-orin", "Jetson-AGX", False),
            ("jetson-xavier-nx", "NVIDIA Jetson Xavier NX Developer Kit", True),
            ("jetson-nano", "NVIDIA Jetson Orin Nano Developer Kit", False),
            ("jetson-tx2", "quill", True),
            ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Developer Kit", True),
            ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", False),
            ("jetson-orin-nano-super", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", True),
            ("jetson-orin-nano-super", "NVIDIA Jetson Orin Nano Developer Kit", False),
            ("jetson-orin-nx", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super", True),
        ],
    )
    def test_boards_are_told_apart_by_what_they_call_themselves(self, target: str, called: str, same: bool) -> None:
        board = Board("unconnected")
        board.facts = {"board": called, "trtexec": "", "providers": []}
        with pytest.raises(BoardError, match="must have trtexec" if same else "verified on its target"):
            board_of(target, 1, 1, board)

    def test_a_jetson_is_measured_by_trtexec(self, jetson: Loopback) -> None:
        with jetson.board() as board:
            board.facts = {**board.facts, "board": "NVIDIA Jetson Orin Nano Developer Kit"}
            found = board_of("jetson", 1, 1, board)
        assert isinstance(found.runtime, TensorrtOnBoard)
        assert found.about.startswith("NVIDIA Jetson Orin Nano Developer Kit, by TensorRT 10.3.0 (trtexec")

    @pytest.mark.exhaustive
    def test_what_a_board_measured_stays_where_it_is_verified_without_one(
        self, jetson: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = api.search(None, target="jetson", trials=3, sampler="random", out=tmp_path / "run")
        connect = Board._connect

        def as_jetson(board: Board) -> dict[str, object]:
            return {**connect(board), "board": "NVIDIA Jetson Orin Nano Developer Kit"}

        monkeypatch.setattr(Board, "_connect", as_jetson)
        monkeypatch.setenv("AUTOCOMP_SSH", f"ssh -F {jetson.folder / 'config'}")
        before = run.verify(host="board")
        run.verify()
        after = {one["key"]: one["measured"] for one in verifications(run.folder).values()}
        assert len(before) > 1
        for one in before:
            assert (
                cast("Json", after[one["key"]])["latency_ms"] == cast("Json", one["measured"])["latency_ms"] is not None
            )


class TestTensorrt:
    def test_engines_are_built_and_timed_there(self, jetson: Loopback) -> None:
        settings = TimingSettings(repeats=5, max_rounds=6, patience_s=0.1)
        with jetson.board() as board:
            runtime = TensorrtOnBoard(board)
            loads: list[int] = []

            def load() -> object:
                loads.append(1)
                run = loaded_run(runtime, linear_file(), 1, [weights(1, 6)])
                if len(loads) == 2:
                    cut(board)
                return run

            timing = measure({"one": load}, settings, reference=loaded_run(runtime, linear_file(), 1, [weights(1, 6)]))  # type: ignore[dict-item]
            engine = runtime.load(linear_file(), 1).bound(weights(1, 6))
            assert engine.block(0, 2, 3) == pytest.approx([1.001e-3, 1.005e-3, 1.009e-3])
        assert timing["one"].settled
        assert (jetson.folder / "bin" / "built").read_text() == "1"  # though it is loaded in every round
        assert timing["one"].latency_ms == pytest.approx(0.5, rel=0.01)

    def test_what_trtexec_says_is_told_in_one_line(self, jetson: Loopback) -> None:
        with jetson.board() as board:
            name = board.put(b"unbuildable")
            with pytest.raises(BoardError, match=r"must be able to engine the file.*no kernel for this") as caught:
                board.ask({"do": "engine", "name": "engine1", "model": name, "options": ["--fp16"]})
            assert "\n" not in str(caught.value)
            with pytest.raises(BoardError, match="letters and digits"):
                board.ask({"do": "engine", "name": "../x", "model": name, "options": []})

    def test_a_board_without_it_is_named(self, host: Loopback) -> None:
        with host.board() as board, pytest.raises(BoardError, match=r"must have trtexec.*libnvinfer-bin"):
            TensorrtOnBoard(board)


@pytest.mark.exhaustive
def test_a_host_that_is_not_there_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = api.search(None, target="jetson-orin-nano", trials=2, sampler="random", out=tmp_path / "run")
    before = (run.folder.path / "events.jsonl").read_bytes()
    with pytest.raises(BoardError, match="reach nowhere"):
        run.verify(host="nowhere.invalid")
    assert (run.folder.path / "events.jsonl").read_bytes() == before


def test_boards_know_how_versions_are_written() -> None:
    from autocomp.hardware.remote.agent import _tensorrt_version

    assert [_tensorrt_version(f"[TensorRT v{word}]") for word in ("8201", "8502", "100300")] == [
        "8.2.1",
        "8.5.2",
        "10.3.0",
    ]
    assert _tensorrt_version("nothing") == ""
