"""What runs on the board: this one file, sent over ssh and started by the board's own Python, 3.6 or later.

It needs nothing but the standard library and, to run a file, the board's onnxruntime (and the numpy that comes with it)
or TensorRT's own ``trtexec``.
Requests come as lines of JSON on standard input, each followed by as many bytes as it says; answers go out the same way,
behind a mark that no login message bears. Files lie in a folder of the session, under their hashes, so that one who comes
back after a lost connection finds them there; it is removed at the end, and what sessions of days ago left behind as well.
"""

# No `from __future__ import annotations`, no list[str]: boards of 2019 have Python 3.6.

import fcntl
import gc
import glob
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, Sequence, Tuple

MARK = b"@autocomp "
PREFIX = "autocomp-board-"
#: Folders of sessions that never came to their end are removed after so long.
ABANDONED_S = 2 * 24 * 3600.0

Request = Dict[str, Any]
Answer = Dict[str, Any]


class RefusedError(Exception):
    """The request cannot be met; the message is for the user."""


class Agent:
    """One session: its folder, and the files that are loaded."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._folder = ""
        self._loaded = {}  # type: Dict[str, Tuple[Any, List[str], Dict[str, Any]]]

    def answer(self, request: Request) -> Tuple[Answer, bytes]:
        """What is said to a request, and the bytes behind it."""
        payload = self._read(int(request.get("bytes", 0)))
        work = getattr(self, "do_" + str(request.get("do")), None)
        if work is None:
            raise RefusedError("the agent does not know the request %r" % request.get("do"))
        found = work(request, payload)
        return found if isinstance(found, tuple) else (found, b"")

    def do_hello(self, request: Request, payload: bytes) -> Answer:
        """Begin a session, or go on with it."""
        session = str(request["session"])
        if not session.isalnum():
            raise RefusedError("a session must be letters and digits")
        for path in glob.glob(os.path.join(tempfile.gettempdir(), PREFIX + "*")):
            try:
                if _is_own(path) and time.time() - os.stat(path).st_mtime > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                pass  # its session ended meanwhile
        self._folder = os.path.join(tempfile.gettempdir(), PREFIX + session)
        try:
            os.mkdir(self._folder, 0o700)
        except FileExistsError:
            if not _is_own(self._folder):
                raise RefusedError("%s belongs to somebody else" % self._folder)
        return facts()

    def do_has(self, request: Request, payload: bytes) -> Answer:
        return {"has": [name for name in request["hashes"] if os.path.isfile(self._path(name))]}

    def do_put(self, request: Request, payload: bytes) -> Answer:
        """A file, under its hash."""
        name = str(request["sha256"])
        if hashlib.sha256(payload).hexdigest() != name:
            raise RefusedError("a file arrived damaged: its hash is not %s" % name[:12])
        part = self._path(name) + ".part"
        with open(part, "wb") as file:
            file.write(payload)
        os.replace(part, self._path(name))
        return {}

    def do_load(self, request: Request, payload: bytes) -> Answer:
        """A file in a session of its own."""
        session = self._session(request, self._options(request))
        inputs = [
            {"name": one.name, "type": one.type, "shape": [n if isinstance(n, int) else None for n in one.shape]}
            for one in session.get_inputs()
        ]
        self._loaded[str(request["name"])] = session, [one["name"] for one in inputs], {}
        return {"inputs": inputs}

    def do_unload(self, request: Request, payload: bytes) -> Answer:
        self._loaded.pop(str(request["name"]), None)
        gc.collect()
        return {}

    def do_forget(self, request: Request, payload: bytes) -> Answer:
        """Files that are not needed any more: a board's folder for such may be memory."""
        for name in request["hashes"]:
            for path in glob.glob(glob.escape(self._path(name)) + "*"):
                os.remove(path)
        return {}

    def do_feed(self, request: Request, payload: bytes) -> Answer:
        """The inputs that a loaded file is run with from now on."""
        _, names, feed = self._loaded[str(request["name"])]
        feed.clear()
        feed.update(zip(names, received(request["inputs"], payload)))
        return {}

    def do_block(self, request: Request, payload: bytes) -> Answer:
        """Samples of so many calls each, in seconds, after some that are not timed."""
        session, _, feed = self._loaded[str(request["name"])]
        calls, seconds = int(request["calls"]), []  # type: Tuple[int, List[float]]
        clock, run = time.perf_counter, session.run
        gc.disable()
        try:
            for _ in range(int(request["warmup"])):
                run(None, feed)
            for _ in range(int(request["samples"])):
                start = clock()
                for _ in range(calls):
                    run(None, feed)
                seconds.append(clock() - start)
        finally:
            gc.enable()
        return {"seconds": seconds}

    def do_engine(self, request: Request, payload: bytes) -> Answer:
        """Have trtexec build an engine of a file, which is timed under a name from now on."""
        path = os.path.join(self._folder, str(request["name"]) + ".engine")
        if not str(request["name"]).isalnum():
            raise RefusedError("an engine's name must be letters and digits")
        with open(path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # an agent whose line was cut may be at it still
            if not os.path.isfile(path):
                part = path + ".part"
                once = ["--iterations=1", "--duration=0", "--warmUp=0"]
                _trtexec(["--onnx=" + self._path(request["model"]), "--saveEngine=" + part] + once + request["options"])
                os.replace(part, path)
        return {}

    def do_time_engine(self, request: Request, payload: bytes) -> Answer:
        """The seconds that the GPU took for so many inferences in a row."""
        written = os.path.join(self._folder, "times.json")
        engine = os.path.join(self._folder, str(request["name"]) + ".engine")
        wanted = int(request["samples"])
        _trtexec(
            ["--loadEngine=" + engine, "--exportTimes=" + written, "--iterations=%d" % wanted, "--duration=0"]
            + request["options"]
        )
        with open(written) as file:
            times = json.load(file)
        os.remove(written)
        # Up to 8.4 those of warming up stand in front.
        return {"seconds": [one["computeMs"] / 1e3 for one in times][-wanted:]}

    def do_tensorrt_version(self, request: Request, payload: bytes) -> Answer:
        return {"version": _tensorrt_version(_trtexec(["--help"]))}

    def do_run(self, request: Request, payload: bytes) -> Tuple[Answer, bytes]:
        """All outputs."""
        session, names, _ = self._loaded[str(request["name"])]
        outputs = session.run(None, dict(zip(names, received(request["inputs"], payload))))
        described, data = sent(outputs)
        return {"outputs": described, "bytes": len(data)}, data

    def do_optimize(self, request: Request, payload: bytes) -> Tuple[Answer, bytes]:
        """The graph that onnxruntime makes of a file."""
        options = self._options(request)
        path = os.path.join(self._folder, "optimized.onnx")
        options.optimized_model_filepath = path
        self._session(request, options)
        with open(path, "rb") as file:
            data = file.read()
        os.remove(path)
        return {"bytes": len(data)}, data

    def do_profile(self, request: Request, payload: bytes) -> Tuple[Answer, bytes]:
        """onnxruntime's profile of a graph that was optimized before, whose nodes all have names."""
        import onnxruntime

        options = self._options(request)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(self._folder, "profile")
        session = self._session(request, options)
        feed = dict(zip([one.name for one in session.get_inputs()], received(request["inputs"], payload)))
        for _ in range(int(request["runs"])):
            session.run(None, feed)
        written = session.end_profiling()
        with open(written, "rb") as file:
            data = file.read()
        os.remove(written)
        return {"bytes": len(data)}, data

    def do_state(self, request: Request, payload: bytes) -> Answer:
        return state()

    def do_bye(self, request: Request, payload: bytes) -> Answer:
        """Leave nothing behind."""
        self._loaded.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        return {}

    def _path(self, name: str) -> str:
        if not str(name).isalnum():
            raise RefusedError("a file is named by its hash")
        return os.path.join(self._folder, str(name))

    def _options(self, request: Request) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise RefusedError("the board's python3 has no onnxruntime: %s" % error)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(request["threads"])
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _session(self, request: Request, options: Any) -> Any:
        import onnxruntime

        wanted = str(request["provider"])
        if wanted not in onnxruntime.get_available_providers():
            has = ", ".join(onnxruntime.get_available_providers())
            raise RefusedError("the board's onnxruntime has no %s, only %s" % (wanted, has))
        # What the provider cannot run is run on the CPU, as for any user of it.
        providers = [wanted] if wanted == "CPUExecutionProvider" else [wanted, "CPUExecutionProvider"]
        return onnxruntime.InferenceSession(self._path(request["model"]), options, providers=providers)


def trtexec_path() -> str:
    """Empty where there is none."""
    beside = "/usr/src/tensorrt/bin/trtexec"
    return shutil.which("trtexec") or (beside if os.access(beside, os.X_OK) else "")


def _trtexec(options: List[str]) -> str:
    """What it says; the last lines of it where it fails."""
    program = trtexec_path()
    if not program:
        raise RefusedError("the board has no trtexec: it comes with JetPack's package libnvinfer-bin")
    done = subprocess.run([program, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        errors = [line for line in said.splitlines() if "[E]" in line] or said.splitlines()
        raise RuntimeError("trtexec: " + " / ".join(errors[-3:]))
    return said


def _tensorrt_version(said: str) -> str:
    """``[TensorRT v8502]`` and ``[TensorRT v100300]`` are 8.5.2 and 10.3.0."""
    word = said.partition("[TensorRT v")[2].partition("]")[0]
    if not word.isdigit():
        return ""
    number = int(word)
    major = number // (10000 if number >= 100000 else 1000)
    return "%d.%d.%d" % (major, number // 100 % (100 if major >= 10 else 10), number % 100)


def sent(arrays: Sequence[Any]) -> Tuple[List[Dict[str, Any]], bytes]:
    """Arrays as they go over the line: what they are, and their bytes one behind the other."""
    described = [{"dtype": one.dtype.name, "shape": list(one.shape)} for one in arrays]
    return described, b"".join(one.tobytes() for one in arrays)


def received(described: List[Dict[str, Any]], payload: bytes) -> List[Any]:
    """The arrays that :func:`sent` took apart."""
    import numpy

    found, start = [], 0
    for one in described:
        dtype = numpy.dtype(one["dtype"])
        count = int(numpy.prod(one["shape"], dtype=numpy.int64))
        found.append(numpy.frombuffer(payload, dtype, count, start).reshape(one["shape"]))
        start += count * dtype.itemsize
    return found


def facts() -> Answer:
    """What the board is and has."""
    found = {
        "python": platform.python_version(),
        "system": platform.system() + " " + platform.release(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpuinfo": _text("/proc/cpuinfo"),
        "board": _text("/proc/device-tree/model").strip("\0\n "),
        "tegra": _text("/etc/nv_tegra_release").splitlines()[:1],
        "trtexec": trtexec_path(),
        "onnxruntime": None,
        "providers": [],
    }  # type: Answer
    try:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
        found["providers"] = onnxruntime.get_available_providers()
    except ImportError:
        pass
    found.update(state())
    return found


def state() -> Answer:
    """Clocks, power mode, heat and throttling, as far as the system tells."""
    cores = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
    zones = sorted(glob.glob("/sys/class/thermal/thermal_zone[0-9]*"))
    return {
        "governors": sorted({_text(path).strip() for path in glob.glob(cores + "scaling_governor")} - {""}),
        "cpu_khz": _numbers(cores + "scaling_cur_freq"),
        "cpu_max_khz": _numbers(cores + "scaling_max_freq"),
        # 57000000.gpu, 17000000.gp10b, .gv11b or .ga10b, from the Nano to the Orins.
        "gpu_hz": _numbers("/sys/class/devfreq/*.g[apv]*/cur_freq"),
        "celsius": {
            _text(zone + "/type").strip(): number / 1e3 for zone in zones for number in _numbers(zone + "/temp")
        },
        "power_mode": " ".join(_said(["nvpmodel", "-q"]).split()),
        "throttled": _said(["vcgencmd", "get_throttled"]).strip(),
    }


def _said(command: List[str]) -> str:
    """What a program says; nothing where there is none, or it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _numbers(pattern: str) -> List[int]:
    """Of files that hold one number each."""
    words = [_text(path).strip() for path in sorted(glob.glob(pattern))]
    return [int(word) for word in words if word.lstrip("-").isdigit()]


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _is_own(path: str) -> bool:
    about = os.lstat(path)
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()


def main() -> None:
    """Answer requests until there are no more."""
    # What libraries print must not come among the answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    source = sys.stdin.buffer
    agent = Agent(source.read)
    for line in iter(source.readline, b""):
        request = json.loads(line.decode("utf-8"))
        try:
            said, data = agent.answer(request)
        except RefusedError as error:
            said, data = {"refused": str(error)}, b""
        except Exception as error:  # noqa: BLE001  a runtime raises kinds of its own
            said, data = {"failed": type(error).__name__ + ": " + " ".join(str(error).split())[:500]}, b""
        out.write(MARK + json.dumps(said).encode("utf-8") + b"\n" + data)
        out.flush()
        if request.get("do") == "bye":
            break


if __name__ == "__main__":
    main()
