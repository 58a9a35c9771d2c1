"""From a target's name to milliseconds that hold here."""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest

from autocomp import api
from autocomp.errors import MeasurementError, RequestError, TargetError
from autocomp.hardware import calibrated, profiles, resolve
from autocomp.hardware import gpu as gpu_module
from autocomp.hardware.calibrate import Calibration
from autocomp.hardware.fingerprint import Fingerprint, mismatch, this_machine
from autocomp.hardware.fitted import FittedModel
from autocomp.hardware.gains import Gain
from autocomp.hardware.kernels import Kernel
from autocomp.hardware.measurements import read_measurements
from autocomp.hardware.profiles import Profile, find_profile, read_profile, shipped_profiles
from autocomp.hardware.resolve import resolve_target
from autocomp.plan import WEIGHT_BITS, Pattern
from autocomp.progress import targets_document, targets_list

NAMES = [profile.file.name for profile in shipped_profiles() if profile.calibrated]


def fingerprint_of(name: str) -> Fingerprint:
    found = find_profile(name).fingerprint
    assert found is not None
    return found


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fingerprint:
    """As if this were another machine than the one that the cpu profile was measured on."""
    here = replace(fingerprint_of("cpu"), cpu="Motorola 68000", features=(), logical_cores=4)
    monkeypatch.setattr(profiles, "this_machine", lambda _: here)
    for module in (resolve, calibrated):
        monkeypatch.setattr(module, "this_machine", lambda _: here)
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "cache"))
    return here


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, float, int, int]]:
    """Measuring takes its time, and is tested of its own: here it finds what the shipped profile has."""
    shipped = find_profile("cpu")
    made: list[tuple[Path, float, int, int]] = []

    def calibrate(
        folder: Path,
        budget_s: float,
        threads: int,
        batch: int,
        here: Fingerprint,
        progress: object = None,
        elsewhere: object = None,
        packages: object = None,
    ) -> Calibration:
        made.append((folder, budget_s, threads, batch))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped.folder / "measurements.csv", folder / "measurements.csv")
        model = shipped.model()
        assert isinstance(model, FittedModel)
        return Calibration(
            model, read_measurements(folder / "measurements.csv").networks, 0, 3, (Gain("conv", "a8", 0.5),), None
        )

    monkeypatch.setattr(calibrated, "calibrate", calibrate)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_profiles_that_ship_read_and_say_what_they_are_worth(name: str) -> None:
    profile = find_profile(name)
    model = profile.model()
    assert profile.file.note
    assert profile.file.device
    assert model.held_out is not None
    assert model.held_out.networks > 0
    assert 0 < model.held_out.mean < 1
    assert len(profile.hash) == 16
    assert {"cpu", "jetson-orin-nano"} <= set(NAMES)


def test_a_profile_of_no_machine_here_cannot_be_measured_here() -> None:
    target = resolve_target("jetson-orin-nano")
    assert not target.reachable
    assert target.runtime == "tensorrt"
    assert find_profile("jetson-orin-nano").fingerprint is None


@pytest.mark.parametrize(("given", "near"), [("jetsn", "jetson"), ("cpuu", "cpu"), ("jetson-orin-nanu", "jetson-orin")])
def test_an_unknown_target_names_the_near_ones(given: str, near: str) -> None:
    with pytest.raises(TargetError, match=f"got '{given}'; did you mean .*{near}"):
        find_profile(given)


def test_a_target_like_none_lists_all() -> None:
    with pytest.raises(TargetError, match="known: cpu, cpu-openvino, cpu-openvino-bf16, cuda, cuda-bf16, jetson"):
        find_profile("zzzzzz")


def test_an_alias_says_what_it_stands_for() -> None:
    said: list[str] = []
    assert resolve_target("jetson", tell=said.append).name == "jetson-orin-nano"
    assert len(said) == 1
    assert said[0].startswith("jetson stands for jetson-orin-nano: NVIDIA Jetson Orin Nano")
    said.clear()
    resolve_target("jetson-orin-nano", tell=said.append)
    assert said == []


@pytest.mark.parametrize(("threads", "batch"), [(0, None), (None, 0), (-1, None)])
def test_threads_and_batch_are_at_least_one(threads: int | None, batch: int | None) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        resolve_target("jetson", threads, batch)


def test_a_board_has_no_threads_to_set() -> None:
    with pytest.raises(RequestError, match="leave --threads out"):
        resolve_target("jetson", threads=2)


def test_a_plain_file_is_offered_only_what_is_faster() -> None:
    machine = fingerprint_of("cpu")
    target = find_profile("cpu").target(1, 1, "onnx", reachable=False)
    assert target.artifact == "onnx"
    assert target.offer.weight_bits == (8,)
    assert target.offer.patterns == ("channel", "head")
    packed = find_profile("cpu").target(1, 1, "onnx-packed", reachable=False)
    assert set(packed.offer.weight_bits) == {*WEIGHT_BITS}
    assert set(packed.offer.patterns) == {*get_args(Pattern)}
    assert "a32" in packed.offer.activations["sequence"]
    assert "a32" not in target.offer.activations["conv"]
    assert machine.architecture


def test_a_profile_that_holds_here_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, calibrations: list[tuple[Path, float, int, int]], tmp_path: Path
) -> None:
    monkeypatch.setattr(profiles, "this_machine", lambda _: fingerprint_of("cpu"))
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path))  # this machine may have been calibrated before
    said: list[str] = []
    target = resolve_target("cpu", tell=said.append)
    assert target.reachable
    assert target.profile_hash == find_profile("cpu").hash
    assert said == []
    assert calibrations == []


def test_another_machine_is_calibrated_once_and_kept(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], tmp_path: Path
) -> None:
    said: list[str] = []
    target = resolve_target("cpu", tell=said.append)
    assert target.device == "Motorola 68000"
    assert target.reachable
    (line,) = said
    assert "the shipped profile does not hold here" in line
    assert "CPU Motorola 68000" in line  # what differs
    assert f"without {', '.join(fingerprint_of('cpu').features)}" in line
    assert "calibrating this machine first" in line
    ((folder, budget_s, threads, batch),) = calibrations
    assert folder.is_relative_to(tmp_path / "cache")
    assert str(folder) in line
    assert (budget_s, threads, batch) == (resolve.FIRST_BUDGET_S, 1, 1)
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "measurements.csv",
        "latency_model.json",
        "profile.yaml",
        "README.md",
    }
    kept = read_profile(folder)
    assert kept.fingerprint == elsewhere
    assert kept.file.name == "cpu"
    assert kept.file.offer == find_profile("cpu").file.offer

    said.clear()
    again = resolve_target("cpu", tell=said.append)
    assert len(calibrations) == 1
    assert said == [f"target cpu: using the calibration of this machine in {folder}"]
    assert again.profile_hash == target.profile_hash
    kernel = Kernel("gemm", ("head",), macs=640, in_elements=64, out_elements=10, weight_elements=640)
    assert again.model.predict([kernel]) == target.model.predict([kernel])


def test_a_calibration_holds_with_other_cores_and_on_no_other_cpu(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a process was pinned, or a container given fewer."""
    target = resolve_target("cpu")
    for cores, cpu, expected in (
        (elsewhere.logical_cores + 3, elsewhere.cpu, 1),
        (elsewhere.logical_cores, "Other", 2),
    ):
        here = replace(elsewhere, logical_cores=cores, cpu=cpu)
        for module in (profiles, resolve, calibrated):
            monkeypatch.setattr(module, "this_machine", lambda _="", here=here: here)
        again = resolve_target("cpu")
        assert len(calibrations) == expected
        assert (again.profile_hash == target.profile_hash) == (expected == 1)


def test_other_threads_or_batches_are_calibrated_of_their_own(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]]
) -> None:
    said: list[str] = []
    one, two = (resolve_target("cpu", threads, batch, tell=said.append) for threads, batch in ((2, 1), (1, 4)))
    assert (one.threads, two.batch) == (2, 4)
    assert len({folder for folder, *_ in calibrations}) == 2
    assert "asked for 2" in said[0]
    assert "asked for 4" in said[1]


def test_an_interrupted_calibration_is_not_taken_for_a_finished_one(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(calibrated, "_readme", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resolve_target("cpu")
    resolve_target("cpu")
    assert len(calibrations) == 2


@pytest.mark.parametrize("text", ["name: x", "name: cpu\nofer: {}"])
def test_a_calibration_of_another_version_is_made_anew(
    text: str, elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]]
) -> None:
    resolve_target("cpu")
    ((folder, *_),) = calibrations
    (folder / "profile.yaml").write_text(text)
    (folder / "measurements.csv").write_text("of another machine, for all we know")
    (told,) = [entry for entry in targets_document() if entry["name"] == "cpu"]
    assert told["holds_here"] is False
    assert resolve_target("cpu").device == "Motorola 68000"
    assert len(calibrations) == 2
    assert (folder / "measurements.csv.earlier").read_text() == "of another machine, for all we know"
    assert not (folder / calibrated.BEGUN).exists()


def test_measurements_with_other_columns_are_set_aside(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]]
) -> None:
    resolve_target("cpu")
    ((folder, *_),) = calibrations
    like = find_profile("cpu")
    (folder / "memory.csv").write_text("kept")
    calibrated.calibrate_profile(like, folder, 1.0, 1, 1)
    assert not list(folder.glob("*.earlier"))  # of this version: they are added to
    (folder / "measurements.csv").write_text("network,row,op\na,file,b\n")
    calibrated.calibrate_profile(like, folder, 1.0, 1, 1)
    assert (folder / "measurements.csv.earlier").read_text() == "network,row,op\na,file,b\n"
    assert (folder / "memory.csv.earlier").read_text() == "kept"


def test_a_cache_that_cannot_be_written_is_one_line(
    elsewhere: Fingerprint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "file"))
    with pytest.raises(TargetError, match=r"must be writable; .* is not \(Not a directory\); .* AUTOCOMP_CACHE$"):
        resolve_target("cpu")


@pytest.mark.parametrize("text", [None, "name: x", "a: [", "name: cpu\ndevice: 3\nclock: odd"])
def test_a_damaged_profile_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(TargetError, match="calibrate again") as caught:
        read_profile(tmp_path)
    assert "\n" not in str(caught.value)


def test_this_machine_is_somewhere() -> None:
    assert this_machine().logical_cores >= 1


def test_a_memory_model_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cpu"
    shutil.copytree(find_profile("cpu").folder, folder)
    (folder / "memory_model.json").write_text('{"bytes_for": {"process": 1.0}}')
    with pytest.raises(TargetError, match="calibrate again"):
        read_profile(folder).memory()


def test_the_memory_of_a_cpu_is_that_of_its_calibration() -> None:
    for name in ("cpu", "cpu-openvino"):
        memory = find_profile(name).memory()
        assert memory is not None
        assert memory.files > 0
        assert 0 < memory.held_out_mean < 1
    assert find_profile("jetson-orin-nano").memory() is None


def test_a_cpu_without_bfloat16_is_sent_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = replace(this_machine("openvino"), features=("avx2",))
    for module in (resolve, calibrated):
        monkeypatch.setattr(module, "this_machine", lambda runtime: replace(here, runtime=runtime))
    refused = r"computes in bfloat16 .* has avx2; choose --target cpu-openvino$"
    with pytest.raises(TargetError, match=refused):
        resolve_target("cpu-openvino-bf16")
    loaded: list[object] = []
    monkeypatch.setattr(api, "_loaded", lambda *asked: loaded.append(asked))
    with pytest.raises(TargetError, match=refused):
        api.search(target="cpu-openvino-bf16", out=tmp_path / "run")
    assert loaded == []
    (told,) = [entry for entry in targets_document() if entry["name"] == "cpu-openvino-bf16"]
    assert told["holds_here"] is None
    assert re.search(refused, str(told["why_not"]))


def test_a_runtime_that_is_not_installed_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_openvino(package: str) -> str:
        if package == "openvino":
            raise metadata.PackageNotFoundError
        return "1.31.0"

    monkeypatch.setattr("autocomp.hardware.fingerprint.metadata.version", without_openvino)
    targets_list(targets_document())
    said = " ".join(capsys.readouterr().out.split())
    assert "not measurable here: the target's runtime must be installed; openvino is not" in said


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fingerprint:
    """As if torch saw a GPU here."""
    here = Fingerprint("NVIDIA Test", "9.0", "550.1", "x86_64", ("power.limit 700 W",), 8, "torch-cuda", "2.13.0")
    for module in (profiles, resolve, calibrated):
        monkeypatch.setattr(module, "this_machine", lambda _: here)
    for module in (profiles, resolve):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "cache"))
    return here


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (profiles, resolve, gpu_module):
        monkeypatch.setattr(module, "has_gpu", lambda: False)


@pytest.mark.parametrize("name", ["cuda", "cuda-bf16"])
def test_a_target_that_was_never_calibrated_says_so(name: str, no_gpu: None) -> None:
    profile = find_profile(name)
    assert not profile.calibrated
    assert profile.measurable
    assert profile.floats == ("fp16" if name == "cuda" else "bf16")
    with pytest.raises(TargetError, match=f"{name} is not; run autocomp calibrate {name}"):
        profile.model()
    with pytest.raises(TargetError, match="torch sees none here; run autocomp calibrate cuda") as caught:
        resolve_target(name)
    assert "\n" not in str(caught.value)
    (told,) = [entry for entry in targets_document() if entry["name"] == name]
    assert told["latency_source"] == "not calibrated"
    assert told["held_out_error"] is None
    assert told["holds_here"] is None
    assert "torch sees none here" in str(told["why_not"])


def test_a_gpu_at_hand_is_calibrated_first_and_kept(
    gpu: Fingerprint, calibrations: list[tuple[Path, float, int, int]], tmp_path: Path
) -> None:
    said: list[str] = []
    target = resolve_target("cuda", batch=8, tell=said.append)
    assert "the shipped profile is none yet (it was never calibrated)" in said[0]
    assert target.reachable
    assert (target.device, target.runtime, target.artifact, target.batch) == ("NVIDIA Test", "torch-cuda", "torch", 8)
    assert target.numerics.floats == "fp16"
    (made,) = calibrations
    assert made[2:] == (1, 8)
    assert resolve_target("cuda", batch=8, tell=said.append).profile_hash == target.profile_hash
    assert "using the calibration of this machine" in said[-1]
    assert len(calibrations) == 1
    readme = (made[0] / "README.md").read_text()
    assert "| GPU | NVIDIA Test, compute capability 9.0, driver 550.1; host x86_64 |" in readme


@pytest.mark.parametrize(("capability", "offered"), [("8.6", False), ("8.9", True), ("10.0", True)])
def test_floats_of_eight_bits_are_offered_where_the_gpu_multiplies_them(
    capability: str,
    offered: bool,
    gpu: Fingerprint,
    calibrations: list[tuple[Path, float, int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (resolve, calibrated):
        monkeypatch.setattr(module, "this_machine", lambda _: replace(gpu, family=capability))
    assert ("f8" in resolve_target("cuda").offer.activations["linear"]) == offered


@pytest.mark.parametrize(("capability", "sparse"), [("7.5", False), ("8.0", True), ("8.9", True), ("9.0", False)])
def test_products_without_zeros_are_for_gpus_whose_kernel_torch_has(
    capability: str,
    sparse: bool,
    gpu: Fingerprint,
    calibrations: list[tuple[Path, float, int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (resolve, calibrated):
        monkeypatch.setattr(module, "this_machine", lambda _: replace(gpu, family=capability))
    target = resolve_target("cuda")
    assert target.numerics.sparse_products == sparse
    profile = find_profile(str(calibrations[0][0]))
    assert ("2:4" in profile.file.offer.patterns) == sparse
    assert "2:4" not in target.offer.patterns  # nothing was measured to be faster


def test_a_calibration_of_a_gpu_elsewhere_is_a_target_out_of_reach(
    gpu: Fingerprint,
    calibrations: list[tuple[Path, float, int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "mine"
    calibrated.calibrate_profile(find_profile("cuda"), folder, 1.0, 1, 1)
    for module in (profiles, resolve):
        monkeypatch.setattr(module, "has_gpu", lambda: False)
    said: list[str] = []
    target = resolve_target(str(folder), tell=said.append)
    assert not target.reachable
    assert "which is not this machine" in said[0]


def test_a_target_whose_name_begins_with_anothers_is_not_taken_for_it(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (profiles, resolve, calibrated):
        monkeypatch.setattr(module, "this_machine", lambda runtime: replace(elsewhere, runtime=runtime))
    assert resolve_target("cpu-openvino").runtime == "openvino"
    target = resolve_target("cpu")
    assert (target.name, target.runtime) == ("cpu", "onnxruntime")
    assert len(calibrations) == 2
    names = [entry["name"] for entry in targets_document()]
    assert len(names) == len(set(names))


def waited_for(folder: Path, threads: int, elsewhere: Fingerprint) -> Future[Profile]:
    """A calibration with so many threads that began while another one, with one thread, was at work in the folder."""
    said = list[str]()

    def other() -> Profile:
        like = find_profile("cpu")
        return calibrated.calibrate_profile(like, folder, 1.0, threads, 1, lambda _, what: said.append(what))

    with ThreadPoolExecutor() as pool, calibrated._alone_in(folder, None):
        waiting = pool.submit(other)
        while not said:
            time.sleep(0.01)
        calibrated._calibrated(find_profile("cpu"), folder, 1.0, 1, 1, None, None, elsewhere)
        assert not waiting.done()
    assert said == ["another process calibrates this machine; waiting for it"]
    return waiting


def test_a_calibration_that_another_process_makes_is_waited_for(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], tmp_path: Path
) -> None:
    assert waited_for(tmp_path / "mine", 1, elsewhere).result().file.device == "Motorola 68000"
    assert len(calibrations) == 1


def test_who_waited_for_a_calibration_with_other_threads_is_told(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="was begun with others; name another --out"):
        waited_for(tmp_path / "mine", 2, elsewhere).result()
    assert len(calibrations) == 1


def test_more_threads_than_cores_are_refused_before_anything_is_measured(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]]
) -> None:
    with pytest.raises(RequestError, match=rf"at most the cores that there are, {elsewhere.logical_cores}; got 99$"):
        resolve_target("cpu", threads=99)
    assert calibrations == []


def test_a_profile_stays_until_another_takes_its_place(
    elsewhere: Fingerprint,
    calibrations: list[tuple[Path, float, int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "mine"
    before = calibrated.calibrate_profile(find_profile("cpu"), folder, 1.0, 1, 1)
    (folder / "memory_model.json").write_text("{}")  # of a calibration that measured memory

    def lost(*_: object, **__: object) -> None:
        raise MeasurementError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(calibrated, "calibrate", lost)
        with pytest.raises(MeasurementError):
            calibrated.calibrate_profile(find_profile("cpu"), folder, 1.0, 1, 1)
    assert read_profile(folder).file == before.file
    assert read_profile(folder).model() is not None
    calibrated.calibrate_profile(find_profile("cpu"), folder, 1.0, 1, 1)
    assert read_profile(folder).memory() is None


def test_a_damaged_latency_model_is_said_in_one_line(
    elsewhere: Fingerprint, calibrations: list[tuple[Path, float, int, int]], tmp_path: Path
) -> None:
    profile = calibrated.calibrate_profile(find_profile("cpu"), tmp_path / "mine", 1.0, 1, 1)
    for text in ("", '{"model": ', "{}", "[]"):
        (tmp_path / "mine" / "latency_model.json").write_text(text)
        with pytest.raises(
            TargetError, match=r"latency_model.json must hold .*; calibrate again|is of another version"
        ):
            profile.model()


def test_a_folder_is_told_by_a_path(
    elsewhere: Fingerprint,
    calibrations: list[tuple[Path, float, int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cpu", "mine"):
        calibrated.calibrate_profile(find_profile("cpu"), Path(name), 1.0, 3, 1)
    assert resolve_target("./cpu").threads == 3
    said: list[str] = []
    assert resolve_target("cpu", tell=said.append).threads == 1  # not that of the folder: it is calibrated
    assert said[0] == "cpu is the target of that name, not the profile in the folder cpu here; that is ./cpu"
    with pytest.raises(TargetError, match=r"told by a path; got 'mine'; write \./mine$"):
        resolve_target("mine")


def test_a_runtime_takes_its_own_files_only(no_gpu: None) -> None:
    with pytest.raises(RequestError, match=r"tensorrt takes no torch; leave it out, or .* export RUN --format torch"):
        resolve_target("jetson", artifact="torch")


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-orin-nano", "cpu-openvino", "cpu-openvino-bf16"])
def test_files_that_unpack_themselves_are_for_onnxruntime(name: str) -> None:
    with pytest.raises(RequestError, match=r"which cannot read it; ask for --format onnx$"):
        find_profile(name).target(1, 1, "onnx-packed", reachable=False)


def test_two_gpus_are_told_apart_in_their_own_words(gpu: Fingerprint) -> None:
    other = replace(gpu, model="560.2", features=("power.limit 300 W",))
    assert mismatch(gpu, other) == [
        "GPU NVIDIA Test (compute capability 9.0, driver 560.2) instead of NVIDIA Test (compute capability 9.0, driver 550.1)",
        "without power.limit 700 W",
        "with power.limit 300 W besides",
    ]
