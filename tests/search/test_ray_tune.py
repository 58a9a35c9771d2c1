"""Searches on a real Ray cluster on loopback: a head and two more nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'autocomp[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from autocomp.errors import MeasurementError, RequestError, RunError, WorkError  # noqa: E402
from autocomp.hardware.timed_files import THIS_MACHINE, compiled_kernels, footprints, time_files  # noqa: E402
from autocomp.plan import Format, Plan  # noqa: E402
from autocomp.run import Request, RunFolder  # noqa: E402
from autocomp.search import flow, ray_tune  # noqa: E402
from autocomp.search.evaluate import evaluate  # noqa: E402
from autocomp.search.ledger import Knowledge, Ledger  # noqa: E402
from autocomp.search.ray_cluster import RETRIES, TargetNode  # noqa: E402
from autocomp.search.ray_sensitivity import _Crew, across  # noqa: E402
from autocomp.search.sensitivity import sensitivities  # noqa: E402
from autocomp.search.study import open_study, read_study, read_trials  # noqa: E402
from autocomp.search.workers import LABEL, Workers  # noqa: E402
from autocomp.space import Decision  # noqa: E402
from autocomp.task import Score  # noqa: E402
from autocomp.trial import Trial  # noqa: E402
from autocomp.watch import SILENT  # noqa: E402
from tests.hardware.test_timed_files import small_file  # noqa: E402
from tests.search.synthetic import (  # noqa: E402
    BASELINE,
    PaperBench,
    hashes,
    landscape_of,
    request,
    search_in,
    synthetic_space,
)
from tests.targets import REQUEST, small_setup  # noqa: E402

GUIDE = Knowledge(landscape_of(synthetic_space()))

if TYPE_CHECKING:
    from autocomp.search.evaluate import Workbench

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


ROOT = Path(__file__).parents[2]
more = partial(pytest.param, marks=pytest.mark.exhaustive)
#: For 127.0.0.1 Ray takes the machine's own address, which others reach.
LOOPBACK = "127.0.0.2"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head = {"node_ip_address": LOOPBACK, "num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(node_ip_address=LOOPBACK, num_cpus=1, object_store_memory=100_000_000)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class SlowBench(PaperBench):
    """Takes its time; with some plans it does worse."""

    seconds: float = 0.0
    dies: str | None = None
    hangs: str | None = None
    grows: str | None = None

    def score(self, plan: Plan) -> Score:
        if plan.hash == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.hash == self.hangs:
            time.sleep(600)
        if plan.hash == self.grows:
            held = bytearray(1_500_000_000)
            time.sleep(60 if held else 0)
        time.sleep(self.seconds)
        return super().score(plan)


def searched(journal: Path, asked: Request, workers: Workers, bench: PaperBench | None = None) -> tuple[Trial, ...]:
    bench = bench or PaperBench()
    ledger = Ledger(open_study(journal, "maximize"), synthetic_space(), asked, bench.task.metric, BASELINE, GUIDE)
    told: list[int] = []
    ray_tune.run_trials(
        ledger, cast("Workbench", bench), workers, asked.timeout_s, lambda trial, trials: told.append(trial.number)
    )
    trials = read_trials(open_study(journal, "maximize").study, asked.seed)
    assert sorted(told) == sorted(set(told)), "told twice"
    assert ledger.trials == trials
    return trials


def test_one_trial_at_a_time_it_is_the_local_search(cluster: Cluster, tmp_path: Path) -> None:
    asked = request("auto", trials=20, max_size_kb=60.0)
    trials = searched(tmp_path / "ray.log", asked, Workers(concurrent=1))
    local = search_in(tmp_path / "local.log", asked)
    assert hashes(trials) == hashes(local)
    assert [trial.metric for trial in trials] == [trial.metric for trial in local]


@pytest.mark.exhaustive
def test_with_many_at_a_time_every_value_is_that_of_a_serial_evaluation(cluster: Cluster, tmp_path: Path) -> None:
    asked = request("auto", trials=24)
    trials = searched(tmp_path / "ray.log", asked, Workers(), SlowBench(seconds=0.05))
    assert [trial.number for trial in trials] == list(range(24))
    for trial in trials:
        alone = evaluate(cast("Workbench", PaperBench()), trial.plan)
        assert (trial.state, trial.metric, trial.cost) == ("complete", alone.metric, alone.cost)


@pytest.mark.exhaustive
def test_a_real_search_ends_with_the_local_front(cluster: Cluster, tmp_path: Path) -> None:
    setup = replace(small_setup(), request=replace(REQUEST, trials=5))
    flow.search(setup, RunFolder(tmp_path / "ray"), False, SILENT, Workers(concurrent=1))
    flow.search(setup, RunFolder(tmp_path / "local"), False, SILENT)
    found, local = ((tmp_path / name / "front.csv").read_text() for name in ("ray", "local"))
    assert found == local


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
def test_what_each_choice_does_is_measured_on_all_workers(tmp_path: Path) -> None:
    setup, told = small_setup(), list[int]()
    folders = [RunFolder(tmp_path / name) for name in ("here", "there")]
    for folder in folders:
        folder.path.mkdir()
    here = sensitivities(setup.bench, setup.space, folders[0], None, lambda *_: None)
    there = sensitivities(
        setup.bench, setup.space, folders[1], None, lambda done, of, what: told.append(done), across(Workers())
    )
    assert there == here
    assert told == list(range(len(setup.space.decisions) + 1))
    lines = [(folder.path / "events.jsonl").read_text().splitlines() for folder in folders]
    assert sorted(lines[0]) == sorted(lines[1])


class Dying:
    """Measures; the first of all dies over the second decision."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> None:
        """It has a place."""

    def errors(self, decision: Decision) -> tuple[float, ...]:
        if decision.name.endswith("1") and not (self._folder / "died").exists():
            (self._folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0, float(decision.name[-1])


@pytest.mark.usefixtures("cluster")
def test_what_a_lost_worker_measured_others_measure_and_none_waits_for_room(tmp_path: Path) -> None:
    """Of six workers three have a place."""
    decisions = [Decision(f"format:layer{n}", "format", (f"layer{n}",), (None, Format(8))) for n in range(7)]
    remote = ray.remote(Dying)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    crew = _Crew(lambda: remote.remote(tmp_path), decisions)
    try:
        found = {decision.name: errors for decision, errors in crew.work(6)}
    finally:
        crew.dismiss()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert (tmp_path / "died").exists()
    assert found == {one.name: (0.0, float(n)) for n, one in enumerate(decisions)}


@pytest.mark.usefixtures("cluster")
def test_no_room_for_measuring_is_one_line(tmp_path: Path) -> None:
    setup = small_setup()
    with pytest.raises(WorkError, match="a node must have room for a trial of 64 CPUs"):
        sensitivities(setup.bench, setup.space, RunFolder(tmp_path), None, lambda *_: None, across(Workers(cpus=64.0)))


@pytest.mark.exhaustive
def test_a_plan_that_raises_fails_its_trial_alone(cluster: Cluster, tmp_path: Path) -> None:
    asked = request("random", trials=10)
    plans = hashes(search_in(tmp_path / "local.log", asked))
    trials = searched(tmp_path / "ray.log", asked, Workers(), PaperBench(fails=lambda plan: plan.hash == plans[3]))
    assert [trial.state for trial in trials] == ["complete"] * 3 + ["failed"] + ["complete"] * 6
    assert trials[3].error == "AssertionError: it broke"


@pytest.mark.parametrize(
    ("how", "workers", "error"),
    [
        more("dies", Workers(), "WorkError: its worker died 4 times; the last said: Actor"),
        more("dies", Workers(limit_s=60.0), "WorkError: its process died of signal 9"),
        more("hangs", Workers(limit_s=1.0), "TimeoutError: a trial must end within 1 s"),
        more("grows", Workers(limit_gb=1.2), "MemoryError: a trial must take at most 1.2 GB"),
    ],
)
def test_a_trial_that_takes_too_much_fails_by_name_and_the_search_goes_on(
    cluster: Cluster, tmp_path: Path, how: str, workers: Workers, error: str
) -> None:
    asked = request("random", trials=8)
    plan = hashes(search_in(tmp_path / "local.log", asked))[3]
    trials = searched(tmp_path / "ray.log", asked, workers, replace(SlowBench(), **{how: plan}))  # type: ignore[arg-type]
    assert [trial.state for trial in trials] == ["complete"] * 3 + ["failed"] + ["complete"] * 4
    assert trials[3].error is not None
    assert trials[3].error.startswith(error)


@pytest.mark.exhaustive
def test_a_node_killed_in_mid_run_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    extra = cluster.add_node(node_ip_address=LOOPBACK, num_cpus=2, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    killed: list[float] = []

    asked = request("random", trials=30)
    bench = SlowBench(seconds=0.4)
    ledger = Ledger(
        open_study(tmp_path / "study.log", "maximize"), synthetic_space(), asked, bench.task.metric, 90.0, GUIDE
    )
    numbers: list[int] = []

    def told(trial: Trial, trials: object) -> None:
        numbers.append(trial.number)
        if len(numbers) == 8 and not killed:
            killed.append(time.monotonic())
            cluster.remove_node(extra, allow_graceful=False)

    ray_tune.run_trials(ledger, cast("Workbench", bench), Workers(), None, told)
    assert killed
    assert sorted(numbers) == list(range(30))
    assert [trial.state for trial in ledger.trials] == ["complete"] * 30


def test_a_plan_answers_for_the_workers_that_began_it_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.log", "maximize")
    ledger = Ledger(study, synthetic_space(), request("random", trials=1), PaperBench().task.metric, BASELINE)
    told: list[Trial] = []
    room = 5
    proposals = ray_tune._Proposals(ledger, None, lambda trial, trials: told.append(trial), room)
    plan = proposals.suggest("0")
    gone = ray.exceptions.ActorUnavailableError("it does not answer", b"0" * 16)
    for number in range(room):  # one idle worker after the other, of a node that is there no more
        proposals.lost(str(number), gone)
        assert proposals.suggest(str(number + 1)) == plan
    for number in range(room, room + RETRIES):
        proposals.begun(str(number))
        proposals.lost(str(number), gone)
        assert proposals.suggest(str(number + 1)) == plan
    assert proposals.suggest("while it is out") is None
    proposals.begun(str(room + RETRIES))
    proposals.lost(str(room + RETRIES), gone)
    assert proposals.suggest("then") == cast("object", Searcher.FINISHED)
    assert [trial.state for trial in told] == ["failed"]
    said = told[0].error or ""
    assert said.startswith("WorkError: its worker died 4 times; the last said: ActorUnavailableError: ")


#: A driver that is killed.
DRIVER = """
import ray
from pathlib import Path
from autocomp.search.workers import Workers
from tests.search.test_ray_tune import SlowBench, request, searched
ray.init(address={address!r}, log_to_driver=False)
searched(Path({journal!r}), request("random", trials=30), Workers(), SlowBench(seconds=0.4))
"""


@pytest.mark.exhaustive
def test_a_driver_killed_in_mid_run_and_begun_again_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    journal, asked = tmp_path / "study.log", request("random", trials=30)
    script = DRIVER.format(address=cluster.address, journal=str(journal))
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while completed(journal, asked) < 5:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    before = {trial.number: trial for trial in read_trials(open_study(journal, "maximize").study, 0) if trial.metric}
    assert 5 <= len(before) < 30
    trials = searched(journal, asked, Workers(), SlowBench(seconds=0.05))
    assert [trial.number for trial in trials] == list(range(30))
    assert {trial.state for trial in trials} == {"complete"}
    assert all(trials[number] == trial for number, trial in before.items())


def completed(journal: Path, asked: Request) -> int:
    if not journal.is_file():
        return 0
    try:
        study = read_study(journal)  # writes nothing: another process is at work on it
    except RunError:  # half begun
        return 0
    return sum(trial.state == "complete" for trial in read_trials(study, asked.seed))


@pytest.mark.exhaustive
def test_latency_is_measured_alone_on_the_node_that_has_the_label(cluster: Cluster, tmp_path: Path) -> None:
    labelled = cluster.add_node(
        node_ip_address=LOOPBACK, num_cpus=2, object_store_memory=100_000_000, resources={f"{LABEL}cpu": 1}
    )
    cluster.wait_for_nodes()
    node = TargetNode("cpu")
    try:
        assert node.is_labelled()
        assert node.another_machine
        begun = tmp_path / "begun"
        busy = ray.remote(_sleeping).options(num_cpus=1, resources={f"{LABEL}cpu": 0.01}).remote(2.0, begun)
        until = time.monotonic() + 60
        while not begun.exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        where, began, niceness = node.there(_where)
        assert niceness == os.nice(0)  # Ray's workers let others go first
        assert where == labelled.node_id
        assert began >= ray.get(busy)  # it waited for what ran there
        found = node.there(
            partial(time_files, "onnxruntime", 1, [np.ones((1, 4), np.float32)], {3: small_file(), 5: small_file()})
        )
        assert found.keys() == {3, 5}
        assert all(timing.latency_ms > 0 for timing in found.values())
        given = [np.ones((1, 4), np.float32)], {3: small_file()}
        kernels = node.there(partial(compiled_kernels, "onnxruntime", 1, *given))
        assert kernels == THIS_MACHINE.there(partial(compiled_kernels, "onnxruntime", 1, *given))
        assert len(kernels[3]) > 0
        assert node.there(partial(footprints, "onnxruntime", 1, *given))[3] > 0
        with pytest.raises(MeasurementError) as caught:
            node.there(partial(time_files, "onnxruntime", 1, [], {0: b"no file"}))
        assert "\n" not in str(caught.value)
    finally:
        cluster.remove_node(labelled)
    until = time.monotonic() + 60
    while node.is_labelled():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert node.there(_where)[0] == ray.get_runtime_context().get_node_id()
    assert not node.another_machine


@pytest.mark.usefixtures("cluster")
def test_a_node_with_the_label_that_is_gone_has_no_other_in_its_place() -> None:
    with pytest.raises(WorkError, match=r"the node with .*cpu is gone; bring it back"):
        TargetNode("cpu", labelled=True).there(_where)


def _sleeping(seconds: float, begun: Path) -> float:
    begun.touch()
    time.sleep(seconds)
    return time.time()


def _where() -> tuple[str, float, int]:
    return ray.get_runtime_context().get_node_id(), time.time(), os.nice(0)


def test_an_address_where_nothing_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from autocomp.cli import main; main()"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, "search", "--target", "cpu", "--executor", "ray", "--out", "none"],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "RAY_ADDRESS is 127.0.0.1:9, where nothing answers" in done.stderr.splitlines()[-1]
    assert time.monotonic() - began < 60


def test_no_room_for_a_trial_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="room for a trial of 64 CPUs") as caught:
        searched(tmp_path / "study.log", request(trials=3), Workers(cpus=64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"concurrent": 0}, {"cpus": 0.0}, {"gpus": -1.0}, {"limit_s": 0.0}, {"limit_gb": -1.0}],
)
def test_workers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError):
        Workers(**wrong)  # type: ignore[arg-type]


@pytest.mark.exhaustive
def test_a_time_limit_stops_proposing(cluster: Cluster, tmp_path: Path) -> None:
    asked = request("random", trials=10_000, timeout_s=3.0)
    trials = searched(tmp_path / "study.log", asked, Workers(), SlowBench(seconds=0.2))
    assert 0 < len(trials) < 200
    assert {trial.state for trial in trials} == {"complete"}
