"""The command line: what is asked, what stands on stdout, and one line for everything that can be wrong."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch

from autocomp import cli
from autocomp.errors import WorkError
from autocomp.hardware.remote.connection import SSH_VARIABLE
from autocomp.plan import Plan
from tests.report.browser import Reader, chromium

pytestmark = pytest.mark.slow

TASK = str(Path(__file__).with_name("small_task.py"))
SEARCH = ("search", "--task", TASK, "--target", "jetson", "--trials", "4")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def autocomp(*arguments: str) -> Done:
    """The command in this process, as the console script calls it."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["autocomp", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    return Done(code, out.getvalue(), err.getvalue())


def refused(*arguments: str) -> str:
    """The last line of what a wrong request is answered with."""
    done = autocomp(*arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert sum(line.startswith("autocomp: ") for line in lines) == 1
    assert lines[-1].startswith("autocomp: ")
    return lines[-1].removeprefix("autocomp: ")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("cli") / "run"
    return folder, autocomp(*SEARCH, "--out", str(folder))


@pytest.fixture
def run(searched: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(searched[0], tmp_path / "run"))


class TestSearch:
    def test_stdout_is_the_reports_path(self, searched: tuple[Path, Done]) -> None:
        folder, done = searched
        assert done.code == 0, done.err
        assert done.out == f"{folder / 'report.html'}\n"
        assert (folder / "report.html").is_file()

    def test_progress_goes_to_stderr(self, searched: tuple[Path, Done]) -> None:
        _, done = searched
        assert "jetson stands for jetson-orin-nano" in done.err
        assert re.search(r"searching: 4 of 4", done.err)
        assert "front of" in done.err
        assert re.search(r"^ +0 +90\.00 .* ms +fitted ±\S+ % +uncompressed", done.err, flags=re.MULTILINE)
        assert "knee" in done.err

    def test_the_front_is_that_of_the_table(self, searched: tuple[Path, Done]) -> None:
        folder, _ = searched
        front = (folder / "front.csv").read_text().splitlines()
        assert len(front) > 2
        assert all((folder / "exports" / row.split(",")[0] / "model.onnx").is_file() for row in front[1:])

    def test_it_tells_where_time_and_bytes_go(self, searched: tuple[Path, Done]) -> None:
        folder, _ = searched
        told = json.loads((folder / "explanation.json").read_text())
        with (folder / "front.csv").open(newline="") as file:
            front = list(csv.DictReader(file))
        for row in front:
            spent = told["spent"][row["plan_hash"]]
            times = [*spent["latency_ms"].values(), *spent["other_latency_ms"].values()]
            assert sum(times) == pytest.approx(float(row["latency_ms"]))
            assert sum(spent["size_bytes"].values()) + spent["other_size_bytes"] == int(row["size_bytes"])
            assert spent["other_size_bytes"] > 0
        layers = {layer["name"] for layer in json.loads((folder / "layers.json").read_text())}
        assert {name for spent in told["spent"].values() for name in spent["size_bytes"]} == layers
        assert all(decision["options"][0] == "as it is" for decision in told["decisions"])
        assert told["held_out"]["networks"] > 0

    def test_every_trial_says_what_it_was(self, searched: tuple[Path, Done]) -> None:
        folder, _ = searched
        with (folder / "trials.csv").open(newline="") as file:
            first, *others = csv.DictReader(file)
        assert (first["plan"], first["uniform"]) == ("untouched", "")
        assert all(row["plan"] not in ("", "untouched") for row in others)
        assert all(int(row["peak_memory_bytes"]) > 0 for row in (first, *others))

    def test_another_run_in_out(self, searched: tuple[Path, Done]) -> None:
        line = refused(*SEARCH, "--out", str(searched[0]))
        assert line == (f"--out must not hold a run yet; {searched[0]} does; resume it with --resume, or name another")

    def test_resume_with_a_changed_request(self, searched: tuple[Path, Done]) -> None:
        line = refused(*SEARCH, "--out", str(searched[0]), "--resume", "--seed", "5")
        assert line == (
            "--resume must ask for the same search; seed was 0 and is now 5; name another --out for a new one"
        )

    @pytest.mark.exhaustive
    def test_resume_asks_for_more_trials(self, run: Path) -> None:
        done = autocomp(*SEARCH[:-1], "5", "--out", str(run), "--resume")
        assert done.code == 0, done.err
        assert len((run / "trials.csv").read_text().splitlines()) == 1 + 5


def test_verify_prints_one_document(run: Path) -> None:
    done = autocomp("verify", str(run), "--pick", "front", "--json")
    assert done.code == 0, done.err
    documents = json.loads(done.out)
    assert documents[0]["trial"] == 0
    for document in documents:
        bytes_ = document["measured"]["size_bytes"]  # one or two thousand
        assert document["predicted"]["size_bytes"] == pytest.approx(bytes_, rel=0.01, abs=64)
        assert document["measured"]["latency_ms"] is None  # no Jetson here
    assert documents == [
        json.loads((run / "exports" / str(document["trial"]) / "verification.json").read_text())
        for document in documents
    ]


def test_export_picks_the_knee(run: Path, tmp_path: Path) -> None:
    done = autocomp("export", str(run), "--pick", "knee", "--out", str(tmp_path / "shipped"))
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'shipped' / 'model.onnx'}\n"
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == {
        "model.onnx", "plan.json", "trtexec.sh", "MODEL_CARD.md",
    }  # fmt: skip
    card = (tmp_path / "shipped" / "MODEL_CARD.md").read_text()
    assert "the file that was verified" in card
    assert "No latency here was measured on the device" in card
    script = (tmp_path / "shipped" / "trtexec.sh").read_text()
    assert "Written for TensorRT 10.3" in script
    assert "trtexec --onnx=model.onnx --fp16" in script


def test_a_format_that_the_target_cannot_read_is_refused(run: Path, tmp_path: Path) -> None:
    line = refused("export", str(run), "--format", "onnx-packed", "--out", str(tmp_path / "shipped"))
    assert line == (
        f"a file that unpacks itself is for onnxruntime; {run} is of a search for tensorrt, which cannot read it; ask for "
        "--format onnx"
    )
    assert not (tmp_path / "shipped").exists()
    assert line.partition(";")[0] in refused(*SEARCH, "--format", "onnx-packed", "--out", str(tmp_path / "packed"))


def test_report_is_rebuilt(run: Path) -> None:
    for name in ("report.html", "front.csv", "layers.json"):
        (run / name).unlink()
    done = autocomp("report", str(run))
    assert done.code == 0, done.err
    assert done.out == f"{run / 'report.html'}\n"
    assert (run / "front.csv").is_file()


@pytest.mark.exhaustive
def test_the_line_that_the_report_gives_to_copy_exports_the_point(run: Path, tmp_path: Path) -> None:
    page = autocomp("report", str(run)).out.strip()
    with chromium() as browser:
        reader = Reader(browser)
        tab = reader.opens(Path(page))
        tab.locator("#pick").select_option(index=1)
        trial = tab.locator("#pick").input_value()
        tab.get_by_role("button", name="copy", exact=True).click()
        assert tab.locator("#copied").inner_text() == "command copied"
        program, *arguments = shlex.split(str(tab.evaluate("navigator.clipboard.readText()")))
        with tab.expect_download() as waited:
            tab.get_by_role("button", name="plan.json").click()
        plan = Plan.from_json(Path(waited.value.path()).read_text())
        assert (reader.said, reader.fetched) == ([], [])
    assert program == "autocomp"
    done = autocomp(*arguments, "--out", str(tmp_path / "shipped"))
    assert done.code == 0, done.err
    verified = run / "exports" / trial / "model.onnx"
    assert (tmp_path / "shipped" / "model.onnx").read_bytes() == verified.read_bytes()
    assert Plan.from_json((tmp_path / "shipped" / "plan.json").read_text()) == plan


def test_several_runs_have_one_page(run: Path, searched: tuple[Path, Done], tmp_path: Path) -> None:
    done = autocomp("report", str(run), str(searched[0]))
    assert done.code == 0, done.err
    assert done.out == f"{run / 'together.html'}\n"
    assert "value='2-0'" in (run / "together.html").read_text()
    page = tmp_path / "new" / "page.html"
    assert autocomp("report", str(run), str(searched[0]), "--out", str(page)).out == f"{page}\n"
    line = refused("report", str(run), "--out", str(page))
    assert line == f"--out is for a page of several runs; got {page} and one run, whose page lies in its folder"


class TestJson:
    def test_targets(self) -> None:
        done = autocomp("targets", "--json")
        found = {entry["name"]: entry for entry in json.loads(done.out)}
        assert done.code == 0
        assert {"cpu", "jetson-orin-nano"} <= set(found)
        assert found["jetson-orin-nano"]["aliases"] == ["jetson"]
        calibrated = {name for name, entry in found.items() if entry["latency_source"] != "not calibrated"}
        assert all(0 < found[name]["held_out_error"] < 1 for name in calibrated)
        assert found.keys() - calibrated <= {"cuda", "cuda-bf16"}

    def test_tasks(self) -> None:
        done = autocomp("tasks", "--json")
        found = {entry["name"]: entry for entry in json.loads(done.out)}
        assert (done.code, done.err) == (0, "")
        assert {"digits", "mnist-lenet5", "cifar10-resnet20", "stsb-minilm"} <= set(found)
        assert found["digits"].keys() == {"name", "description", "needs_data", "data_found"}
        assert [name for name, entry in found.items() if not entry["needs_data"]] == ["digits"]

    def test_predict(self) -> None:
        done = autocomp("predict", TASK, "--target", "jetson", "--json")
        found = json.loads(done.out)
        assert done.code == 0
        assert found["target"] == "jetson-orin-nano"
        assert found["latency_ms"] >= sum(kernel["latency_ms"] for kernel in found["kernels"]) * 0.999
        assert found["peak_memory_bytes"] > 0
        assert found["memory_source"] == "counted"
        assert (found["threads"], found["batch"]) == (1, 1)
        assert "jetson stands for" in done.err
        more = json.loads(autocomp("predict", TASK, "--target", "jetson", "--batch", "8", "--json").out)
        assert more["batch"] == 8
        assert more["latency_ms"] > found["latency_ms"]
        assert more["peak_memory_bytes"] > found["peak_memory_bytes"]
        assert found["not_covered"] == []

    def test_what_a_task_prints_is_no_part_of_it(self, tmp_path: Path) -> None:
        file = tmp_path / "noisy.py"
        file.write_text(
            "from tests.small_task import task as small\n\n\ndef task():\n    print('data are there')\n    return small()\n"
        )
        done = autocomp("predict", str(file), "--target", "jetson", "--json")
        assert json.loads(done.out)["target"] == "jetson-orin-nano"
        assert "data are there" in done.err

    def test_predict_what_is_covered(self, tmp_path: Path) -> None:
        """Beside the rest, the command fails by one line that names what is missing."""
        file = tmp_path / "running_sum.py"
        file.write_text(RUNNING_SUM, encoding="utf-8")
        done = autocomp("predict", str(file), "--target", "jetson", "--json")
        found = json.loads(done.out)
        assert done.code == 1
        assert found["not_covered"] == ["cumsum"]
        assert found["latency_ms"] > 0
        assert "was given cumsum (needed by cumsum); replace these operations" in done.err.splitlines()[-1]
        table = autocomp("predict", str(file), "--target", "jetson")
        assert table.code == 1
        assert "without what is not covered" in table.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_target_on_cuda_is_refused_in_one_line_where_there_is_no_gpu(tmp_path: Path) -> None:
    assert "ms: not calibrated; autocomp calibrate cuda, on" in " ".join(autocomp("targets").out.split())
    for words in (("search", "--target", "cuda", "--out", str(tmp_path / "run")), ("calibrate", "cuda")):
        done = autocomp(*words)
        assert done.code == 2
        (line,) = done.err.splitlines()
        assert "torch sees none here; run autocomp calibrate cuda --out DIR on a machine with one" in line
    assert not (tmp_path / "run").exists()


def test_without_json_there_are_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert "jetson-orin-nano" in autocomp("targets").out
    listed = autocomp("tasks", "--data", str(Path(__file__).parent)).out
    assert re.search(r"^digits +handwritten digits .*; needs no data$", listed, re.MULTILINE)
    assert re.search(r"^stsb-minilm .*; data not found, name their folder by --data", listed, re.MULTILINE)
    assert "ms" in autocomp("predict", TASK, "--target", "jetson").out


RUNNING_SUM = """
import torch
from torch import nn
import autocomp


class RunningSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(torch.cumsum(self.body(images), dim=2).mean(dim=(2, 3)))


def task():
    parts = {name: (torch.randn(8, 3, 8, 8) + n, torch.arange(8) % 3) for n, name in enumerate(("search", "test", "train"))}
    return autocomp.classification(RunningSum(), **parts)
"""


class TestRefused:
    def test_unknown_target(self) -> None:
        line = refused("search", "--task", TASK, "--target", "jetsn")
        assert line.startswith("a target must be a known one; got 'jetsn'; did you mean jetson")

    def test_no_target(self) -> None:
        line = "a search is for a target; got none; name one by --target, see `autocomp targets`"
        assert refused("search") == line
        assert refused("submit", "--address", "http://127.0.0.1:1", "--", "search") == line

    def test_a_goal_without_a_limit(self, tmp_path: Path) -> None:
        asked = ("search", "--task", TASK, "--target", "jetson", "--out", str(tmp_path / "run"))
        assert "the fastest plan is wanted within a drop; got none" in refused(*asked, "--goal", "fastest")
        line = refused(*asked, "--goal", "most-accurate", "--max-latency-ms", "0.0001")
        assert "no plan of this space is foreseen to take less than" in line
        assert "got --max-latency-ms 0.0001; ask for that or more" in line
        assert not (tmp_path / "run").exists()

    def test_a_run_to_begin_from(self, tmp_path: Path) -> None:
        assert "a run folder must hold run.json" in refused("search", "--from", str(tmp_path))
        job = ("submit", "--address", "http://127.0.0.1:1", "--", "search", "--target", "cpu", "--from", str(tmp_path))
        assert "a run folder must hold run.json" in refused(*job)  # before the cluster is asked

    def test_unknown_task(self) -> None:
        line = refused("search", "--task", "digts", "--target", "jetson")
        assert line == (
            "a task must be a built-in name, FILE.py[:function], torchvision:NAME, timm:NAME or hf:FOLDER; "
            "got 'digts'; did you mean digits?"
        )

    def test_data_for_a_task_that_takes_none(self, tmp_path: Path) -> None:
        line = refused("predict", "--target", "jetson", "--data", str(tmp_path))
        assert line == "--data must be for a task that takes data; digits takes none; leave --data out"

    def test_data_that_are_not_there(self, tmp_path: Path) -> None:
        line = refused("predict", "stsb-minilm", "--target", "jetson", "--data", str(tmp_path / "nowhere"))
        assert line.startswith(f"--data must name a folder; {str(tmp_path / 'nowhere')!r} is none")

    def test_unknown_function_of_a_task_file(self) -> None:
        assert "did you mean nan_task" in refused("predict", f"{TASK}:nantask", "--target", "jetson")

    def test_a_space_with_a_typo(self, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text("name: own\nrules: [{layers: '*', formats: [w8a8]}]")
        line = refused("search", "--target", "jetson", "--space", str(tmp_path / "own.yaml"))
        assert line == f"{tmp_path / 'own.yaml'}: rules.0.formats: no such setting 'formats'; did you mean format?"

    def test_a_level_outside_its_range(self, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(
            "name: own\nrules: [{layers: '*', sparsity: [{pattern: channel, level: 1.5}]}]"
        )
        line = refused("search", "--target", "jetson", "--space", str(tmp_path / "own.yaml"))
        assert line == (
            f"{tmp_path / 'own.yaml'}: rules.0.sparsity.0.level: "
            "a sparsity level must lie between 0 and 1, both exclusive; got 1.5"
        )

    def test_an_untouched_model_that_scores_nan(self, tmp_path: Path) -> None:
        line = refused("search", "--task", f"{TASK}:nan_task", "--target", "jetson", "--out", str(tmp_path / "run"))
        assert line.startswith(
            "task 'nan': the untouched model must score a finite number on the search split; got nan"
        )
        assert not (tmp_path / "run").exists()

    def test_resume_without_a_run(self, tmp_path: Path) -> None:
        line = refused(*SEARCH, "--out", str(tmp_path / "run"), "--resume")
        assert line == f"--resume needs a run to resume; {tmp_path / 'run'} holds none; leave --resume out"

    @pytest.mark.parametrize("timeout", ["soon", "0", "-5m", "10 m", "5d", ""])
    def test_a_bad_timeout(self, timeout: str) -> None:
        line = refused("search", "--target", "jetson", f"--timeout={timeout}")
        assert line == f"a duration is written like 90s, 10m or 2h; got {timeout!r}"

    @pytest.mark.parametrize("limit", ["--max-latency-ms", "--max-size-kb"])
    def test_a_limit_of_nothing(self, limit: str, tmp_path: Path) -> None:
        line = refused(*SEARCH, limit, "0", "--out", str(tmp_path / "run"))
        assert line.startswith(f"a limit must be positive; got {limit[2:].replace('-', '_')} 0.0")

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("search",), "--target"),
            (("search", "--target", "cpu", "--trials", "0"), "--trials"),
            (("search", "--target", "cpu", "--trials", "many"), "--trials"),
            (("search", "--target", "cpu", "--sampler", "nsga3"), "nsga3"),
            (("search", "--target", "cpu", "--tsk", "digits"), "--tsk"),
            (("search", "--target", "cpu", "--executor", "dask"), "dask"),
            (("search", "--target", "cpu", "--max-concurrent", "2"), "--executor ray"),
            (("search", "--target", "cpu", "--executor", "ray", "--trial-cpus", "0"), "got 0.0 and 0.0"),
            (("serch",), "serch"),
            (("export", "nowhere"), "nowhere"),
            (("verify", "nowhere", "--json"), "nowhere"),
            (("report", "nowhere"), "nowhere"),
            (("calibrate", "jetson"), "use cpu"),
            (("calibrate", "cpu", "--budget", "long"), "got 'long'"),
            (("calibrate", "cpu", "--host", "-oProxyCommand=true"), "got '-oProxyCommand=true'"),
            (("calibrate", "cpu-openvino", "--host", "board"), "not openvino"),
            (("predict", "model.onnx", "--input-shape", "3,32"), "got '3,32'"),
            (("predict", "model.onnx", "--target", "jetson"), "give a task"),
        ],
    )
    def test_other_mistakes(self, arguments: tuple[str, ...], named: str) -> None:
        assert named in refused(*arguments)

    def test_a_pick_off_the_front(self, searched: tuple[Path, Done]) -> None:
        assert "trial 77 is not on the front" in refused("export", str(searched[0]), "--pick", "77")
        for pick in ("best", "²"):
            assert f"smallest or a trial number; got '{pick}'" in refused("verify", str(searched[0]), "--pick", pick)


def test_failed_work_is_one_line_and_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise WorkError("the file could not be written")

    monkeypatch.setattr("autocomp.api.predict", fail)
    done = autocomp("predict", TASK, "--target", "jetson-orin-nano")
    assert (done.code, done.out, done.err) == (1, "", "autocomp: the file could not be written\n")


def test_a_board_out_of_reach_is_failed_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SSH_VARIABLE, "sh -c 'echo no route >&2; exit 255' --")
    done = autocomp("calibrate", "cpu", "--host", "pi@board")
    assert done.code == 1
    assert done.out == ""
    assert done.err.splitlines()[-1] == (
        "autocomp: ssh must be able to reach pi@board; it says: no route; try it by hand: ssh pi@board"
    )


def test_what_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("autocomp.api.predict", fail)
    done = autocomp("predict", TASK, "--target", "jetson-orin-nano")
    assert (done.code, done.out) == (1, "")
    assert done.err == "autocomp: unforeseen ZeroDivisionError: by zero; --debug shows where\n"


@pytest.mark.parametrize(
    ("function", "command", "said"),
    [
        ("autocomp.api.search", ("search", "--target", "jetson"), "with --resume goes on with it"),
        ("autocomp.hardware.calibrated.calibrate_profile", ("calibrate", "cpu"), "the same command goes on with it"),
        ("autocomp.api.predict", ("predict", "--target", "jetson"), "autocomp: stopped\n"),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    function: str, command: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(function, stop)
    done = autocomp(*command)
    assert done.code == 130
    assert said in done.err
    assert ("--resume" in done.err) == (command[0] == "search")
    assert "Traceback" not in done.err


def test_a_search_that_begins_from_another_goes_on_in_its_own_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs: list[object] = []

    def stop(*_: object, out: Path, **__: object) -> None:
        outs.append(out.name)
        raise KeyboardInterrupt

    monkeypatch.setattr("autocomp.api.search", stop)
    resumed = ("search", "--from", str(run), "--resume")
    autocomp(*resumed)
    for _ in range(2):
        autocomp(*resumed[:-1])
        (run.parent / str(outs[-1])).mkdir()
        autocomp(*resumed)
    assert outs == ["run-jetson-orin-nano", *["run-jetson-orin-nano"] * 2, *["run-jetson-orin-nano-2"] * 2]


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        mock.patch.object(sys, "argv", ["autocomp", "--debug", "export", "nowhere"]),
        pytest.raises(Exception, match="nowhere"),
    ):
        cli.main()


def test_the_console_script_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-c", "from autocomp.cli import main; main()", "predict", "--target", "jetsn"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("autocomp: a target must be a known one; got 'jetsn'; did you mean jetson")
    assert len(done.stderr.splitlines()) == 1


def test_help_is_not_an_error() -> None:
    done = autocomp("--help")
    assert done.code == 0
    for command in ("search", "report", "export", "verify", "calibrate", "predict", "targets", "tasks"):
        assert command in done.out


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (None, None)])
def test_durations(text: str | None, seconds: float | None) -> None:
    assert cli._seconds(text) == seconds
