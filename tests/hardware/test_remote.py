"""Measuring on a board, against a real sshd on the loopback interface."""

from __future__ import annotations

import ast
import gc
import hashlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autocomp.errors import BoardError, BoardLostError, RequestError
from autocomp.hardware import calibrate as module
from autocomp.hardware import gains
from autocomp.hardware.calibrate import Progress
from autocomp.hardware.calibrated import calibrate_profile
from autocomp.hardware.experiment import FILES_PER_NETWORK
from autocomp.hardware.fingerprint import this_machine
from autocomp.hardware.measurements import read_measurements
from autocomp.hardware.profiles import Profile, find_profile
from autocomp.hardware.remote import agent
from autocomp.hardware.remote.connection import Answer, Board, Request, _Line, checked_host
from autocomp.hardware.remote.onnxruntime import OnnxruntimeOnBoard
from autocomp.hardware.remote.state import state_words
from autocomp.hardware.runtimes import onnxruntime
from autocomp.hardware.runtimes.runtime import loaded_run, reference_run
from autocomp.hardware.timing import TimingSettings, measure
from tests.hardware.board import Loopback, loopback, with_runtime, without_runtime
from tests.hardware.test_calibrate import ANYTHING, patched
from tests.hardware.test_onnxruntime import float_file, linear_file, weights

pytestmark = pytest.mark.slow

__all__ = ["patched"]  # a fixture


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board"), with_runtime()) as found:
        yield found


def left_behind() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{agent.PREFIX}*"))


def cut(board: Board) -> None:
    """As when somebody pulls the cable."""
    assert board._line is not None
    board._line.process.kill()
    board._line.process.wait()


class TestBoard:
    def test_it_says_what_it_is_and_keeps_nothing(self, host: Loopback) -> None:
        before = left_behind()
        with host.board() as board:
            assert board.facts["python"]
            assert OnnxruntimeOnBoard(board).fingerprint == this_machine("onnxruntime")
            board.put(b"a file")
            assert left_behind() > before
        assert left_behind() == before

    def test_a_file_is_sent_once_and_checked_by_its_hash(self, host: Loopback) -> None:
        with host.board() as board:
            name = board.put(b"a file")
            assert name == hashlib.sha256(b"a file").hexdigest()
            assert board.put(b"a file") == name
            with pytest.raises(BoardError, match="arrived damaged"):
                board.ask({"do": "put", "sha256": name}, b"another")

    def test_what_was_there_is_there_after_the_line_was_cut(self, host: Loopback) -> None:
        said: list[str] = []
        with Board("board", host.ssh, said.append) as board:
            runtime = OnnxruntimeOnBoard(board)
            file = runtime.load(linear_file(), 1)
            run = file.bound(weights(1, 6))
            expected = file.run(weights(1, 6))
            for _ in range(2):
                cut(board)
                assert len(run.block(1, 2, 3)) == 3
            cut(board)
            np.testing.assert_array_equal(file.run(weights(1, 6)), expected)
            assert len(said) == 3
            assert all("connecting again" in line for line in said)

    def test_a_board_that_was_started_anew_is_not_measured_on(self, host: Loopback) -> None:
        with host.board() as board:
            run = OnnxruntimeOnBoard(board).load(linear_file(), 1).bound(weights(1, 6))
            folder = Path(tempfile.gettempdir(), agent.PREFIX + board._session)
            cut(board)
            shutil.rmtree(folder)
            for _ in range(2):
                with pytest.raises(
                    BoardError, match=r"board has lost them, as by a restart; run the same command again"
                ):
                    run.block(1, 2, 3)
        assert not folder.exists()

    def test_what_is_not_taken_again_is_named(self, host: Loopback) -> None:
        with host.board() as board:
            file = OnnxruntimeOnBoard(board).load(linear_file(), 1)
            request, payload = board._held[file.name][0]
            board._held[file.name] = [({**request, "provider": "NoneExecutionProvider"}, payload)]
            cut(board)
            with pytest.raises(BoardError, match=r"board: .* has no NoneExecutionProvider"):
                file.run(weights(1, 6))

    def test_nobody_waits_for_a_board_that_was_given_up(self, host: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("autocomp.hardware.remote.connection.WAITS_S", (0.01,))
        said: list[str] = []
        with Board("board", host.ssh, said.append) as board:
            board._ssh = ("false",)
            cut(board)
            with pytest.raises(BoardError, match="could not be had again"):
                board.put(b"a file")
            tries = len(said)
        assert len(said) == tries

    def test_a_file_that_ends_the_agent_is_given_up_and_the_board_is_not(
        self, host: Loopback, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("autocomp.hardware.remote.connection.WAITS_S", (0.01,) * 5)
        said: list[str] = []
        with Board("board", host.ssh, said.append) as board:
            run = OnnxruntimeOnBoard(board).load(linear_file(), 1).bound(weights(1, 6))
            send = _Line.send

            def deadly(line: _Line, request: Request, payload: bytes) -> tuple[Answer, bytes]:
                if request["do"] == "block":
                    cut(board)
                return send(line, request, payload)

            with monkeypatch.context() as patched:
                patched.setattr(_Line, "send", deadly)
                with pytest.raises(BoardError, match="able to block the file; its agent ends whenever") as caught:
                    run.block(1, 2, 3)
            assert not isinstance(caught.value, BoardLostError)
            assert len(said) == 2
            assert len(run.block(1, 2, 3)) == 3

    def test_an_interrupted_request_is_not_waited_for_at_the_end(self, host: Loopback) -> None:
        """What says goodbye would be taken for the rest of the file that was being sent."""
        before = left_behind()
        with host.board() as board:
            assert board._line is not None
            board._line.busy = True
            board._line.to_board.write(b'{"do": "put", "sha256": "0", "bytes": 1000000}\n')
            board._line.to_board.flush()
        assert left_behind() == before

    def test_a_board_whose_line_is_cut_at_the_end_keeps_nothing(self, host: Loopback) -> None:
        before = left_behind()
        with host.board() as board:
            board.put(b"a file")
            cut(board)
        assert left_behind() == before

    def test_a_board_that_does_not_come_back_is_named(self, host: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("autocomp.hardware.remote.connection.WAITS_S", (0.01,))
        with host.board() as board:
            board._ssh = ("false",)
            cut(board)
            with pytest.raises(BoardError, match=r"board was lost.*what was measured is kept"):
                board.put(b"a file")

    @pytest.mark.parametrize("message", ["Welcome", "Welcome\n", "Welcome\nto a board"])
    def test_a_login_message_is_no_answer(self, message: str) -> None:
        """Here a shell is what ssh comes out at."""
        with Board("board", ("sh", "-c", f'printf "{message}"; eval "$2"')) as board:
            assert board.facts["python"]
            assert board.put(b"a file")

    def test_a_session_that_cannot_begin_is_named(self) -> None:
        board = Board("board", ("sh", "-c", 'eval "$2"'))
        taken = Path(tempfile.gettempdir(), agent.PREFIX + board._session)
        taken.write_text("a file, not a folder")
        try:
            with (
                pytest.raises(BoardError, match=r"board must be able to begin a session; it says: .*somebody else"),
                board,
            ):
                pass
        finally:
            taken.unlink()

    def test_another_host_key_is_refused(self, host: Loopback) -> None:
        true = host.known_hosts.read_text()
        other = (host.folder / "user_key.pub").read_text().split()
        try:
            host.known_hosts.write_text(f"[127.0.0.1]:{host.port} {other[0]} {other[1]}\n")
            with pytest.raises(BoardError, match=r"IDENTIFICATION HAS CHANGED.*find out why"), host.board():
                pass
            host.known_hosts.write_text("")
            with pytest.raises(BoardError, match=r"Host key verification failed.*by hand"), host.board():
                pass
        finally:
            host.known_hosts.write_text(true)

    def test_a_key_that_is_not_let_in_is_said(self, host: Loopback) -> None:
        refused = (*host.ssh, "-oIdentityFile=none", "-oIdentityAgent=none")
        config = host.folder / "config"
        text = config.read_text()
        try:
            config.write_text(text.replace("user_key", "host_key"))
            with pytest.raises(BoardError, match=r"Permission denied.*ssh-copy-id"), Board("board", refused):
                pass
        finally:
            config.write_text(text)

    def test_a_host_that_is_not_there_is_said(self, host: Loopback) -> None:
        with pytest.raises(BoardError, match=r"reach nowhere\.invalid"), host.board("nowhere.invalid"):
            pass

    @pytest.mark.parametrize(
        "hostile",
        ["-oProxyCommand=touch /tmp/x", "board;touch x", "$(touch x)", "`x`", "a b", "", "@board", "u@-oX", "b\nc"],
    )
    def test_a_hostile_name_is_no_host(self, hostile: str) -> None:
        with pytest.raises(RequestError, match="a host must be a name"):
            checked_host(hostile)

    @pytest.mark.parametrize("name", ["board", "user@board", "u-1@10.0.0.7", "fe80::1%eth0", "a.b-c_d"])
    def test_names_and_addresses_are(self, name: str) -> None:
        assert checked_host(name) == name

    def test_one_without_a_runtime_is_named(self, tmp_path: Path) -> None:
        with loopback(tmp_path / "bare", without_runtime()) as bare, bare.board() as board:
            with pytest.raises(BoardError, match=r"must have onnxruntime.*it has none.*pip install onnxruntime"):
                OnnxruntimeOnBoard(board)
            with pytest.raises(BoardError, match="no onnxruntime"):
                board.ask({"do": "load", "name": "x", "model": "0", "threads": 1, "provider": "CPUExecutionProvider"})

    def test_one_without_python_is_named(self, tmp_path: Path) -> None:
        with (
            loopback(tmp_path / "bare", "/nowhere/python3") as bare,
            pytest.raises(BoardError, match="python3"),
            bare.board(),
        ):
            pass


class TestRuntimeOnBoard:
    def test_it_computes_what_this_machine_does(self, host: Loopback) -> None:
        with host.board() as board:
            there = OnnxruntimeOnBoard(board).load(linear_file(), threads=1)
            here = onnxruntime.load(linear_file(), threads=1)
            assert there.input_names == here.input_names
            assert there.input_shapes == here.input_shapes
            assert there.input_dtypes == here.input_dtypes
            np.testing.assert_array_equal(there.run(weights(1, 6)), here.run(weights(1, 6)))

    def test_it_sees_the_kernels_that_this_machine_does(self, host: Loopback) -> None:
        shape = onnxruntime.load(float_file(), 1).input_shapes[0]
        given = np.zeros([size or 1 for size in shape], np.float32)
        with host.board() as board:
            there = OnnxruntimeOnBoard(board).kernel_samples(float_file(), [given], threads=1, runs=3)
        here = onnxruntime.kernel_samples(float_file(), [given], threads=1, runs=3)
        assert [one.kernel for one in there] == [one.kernel for one in here]
        assert all(one.time_us > 0 for one in there)

    def test_a_provider_that_is_not_there_is_named(self, host: Loopback) -> None:
        with (
            host.board() as board,
            pytest.raises(BoardError, match=r"have TensorrtExecutionProvider; it has .*CPUExecutionProvider"),
        ):
            OnnxruntimeOnBoard(board, "TensorrtExecutionProvider")

    def test_a_broken_file_is_refused_in_one_line(self, host: Loopback) -> None:
        with (
            host.board() as board,
            pytest.raises(BoardError, match=r"board must be able to load the file; it says: .+") as e,
        ):
            OnnxruntimeOnBoard(board).load(b"not a network", 1)
        assert "\n" not in str(e.value)

    def test_the_instrument_times_by_the_clock_that_is_there(self, host: Loopback) -> None:
        """In spite of a line that is cut in the middle."""
        settings = TimingSettings(repeats=5, max_rounds=6, patience_s=1.0)
        with host.board() as board:
            runtime = OnnxruntimeOnBoard(board)
            loads: list[int] = []

            def load() -> object:
                loads.append(1)
                if len(loads) == 3:
                    cut(board)
                return loaded_run(runtime, linear_file(), 1, [weights(1, 6)])

            timing = measure({"one": load}, settings, reference=reference_run(runtime, 1))["one"]  # type: ignore[dict-item]
        assert timing.rounds >= 5
        assert 0 < timing.latency_ms < 1  # of a round trip through ssh it would be several

    def test_files_that_are_not_needed_any_more_are_let_go(self, host: Loopback) -> None:
        with host.board() as board:
            runtime = OnnxruntimeOnBoard(board)
            for _ in range(3):
                file = runtime.load(linear_file(), 1)
                assert list(board._held) == [file.name]
                del file
                gc.collect()

    @pytest.mark.exhaustive
    def test_a_calibration_goes_on_where_it_was_stopped(
        self, host: Loopback, patched: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        seen, others = list[str](), left_behind()

        def calibrated(budget: float, progress: Progress | None = None) -> Profile:
            """The clock goes forward by a second a look, so that the budget is a number of networks."""
            clock = itertools.count()
            with host.board() as board, patched.context() as patch:
                patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
                patch.setattr(gains, "SETTINGS", ANYTHING)
                lines.append(board)
                runtime = OnnxruntimeOnBoard(board)
                return calibrate_profile(find_profile("cpu"), tmp_path, budget, 1, 1, progress, runtime)

        def stop(share: float, said: str) -> None:
            seen.append(said)
            cut(lines[-1])
            if len(seen) == 2:
                raise KeyboardInterrupt

        lines: list[Board] = []
        with pytest.raises(KeyboardInterrupt):
            calibrated(9.5, stop)
        path = tmp_path / "measurements.csv"
        begun, before = path.read_text(), read_measurements(path)
        assert len(before.networks) == 2 * FILES_PER_NETWORK
        profile = calibrated(1.5)
        assert path.read_text().startswith(begun)
        assert len(read_measurements(path).networks) == 3 * FILES_PER_NETWORK
        assert profile.fingerprint == this_machine()
        assert profile.file.gains
        assert profile.model().held_out is not None
        assert profile.memory() is None
        assert "over ssh" in (tmp_path / "README.md").read_text()
        assert not left_behind() - others


def test_what_a_board_says_of_itself_is_one_line() -> None:
    nothing: dict[str, object] = {"governors": [], "cpu_khz": [], "cpu_max_khz": [], "gpu_hz": [], "celsius": {}}
    nothing |= {"power_mode": "", "throttled": ""}
    assert state_words(nothing, nothing) == "not told by this system"
    pi = nothing | {"governors": ["ondemand"], "cpu_khz": [600000], "cpu_max_khz": [2400000], "celsius": {"cpu": 48.2}}
    cool, hot = pi | {"throttled": "throttled=0x0"}, pi | {"throttled": "throttled=0x50000", "celsius": {"cpu": 84.9}}
    assert state_words(cool, cool) == (
        "governor ondemand, at most 2400 MHz; cores at 600 to 600 MHz when looked at; 48 to 48 °C; not throttled"
    )
    assert state_words(cool, hot).endswith("48 to 85 °C; throttled=0x50000 (0x0 is never)")
    jetson = nothing | {"power_mode": "NV Power Mode: 15W 0", "gpu_hz": [624750000]}
    assert state_words(jetson, jetson) == "GPU at 625 to 625 MHz when looked at; NV Power Mode: 15W 0"


def test_the_agent_is_for_the_pythons_that_boards_have() -> None:
    """JetPack 4 has 3.6, and nothing is installed for it but the runtime."""
    tree = ast.parse(Path(agent.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))
    outside = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name not in sys.stdlib_module_names
    }
    assert outside == {"numpy", "onnxruntime"}
    assert not any(isinstance(node, ast.NamedExpr | ast.JoinedStr) for node in ast.walk(tree))
    arguments = [node.args for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not any(one.posonlyargs for one in arguments)
