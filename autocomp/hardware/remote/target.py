"""Whether a board is the target of a run, and what times the target's files there."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from autocomp.errors import BoardError, RequestError
from autocomp.hardware.fingerprint import mismatch
from autocomp.hardware.profiles import Profile, find_profile, shipped_profiles
from autocomp.hardware.remote.connection import Board
from autocomp.hardware.remote.onnxruntime import OnnxruntimeOnBoard
from autocomp.hardware.remote.state import state_words
from autocomp.hardware.remote.tensorrt import TensorrtOnBoard
from autocomp.hardware.resolve import profile_here
from autocomp.hardware.runtimes.runtime import Loads
from autocomp.places import names_profile_folder


@dataclass(frozen=True)
class ConnectedBoard:
    """The target of a run, connected to. ``about``: what it is, with what, and in which state, in words."""

    runtime: Loads
    about: str


def board_of(target: str, threads: int, batch: int, board: Board) -> ConnectedBoard:
    """What times a target's files on a board.

    Raises:
        RequestError: files of this target are not timed over ssh.
        BoardError: the board is not the target, or has not its runtime.
    """
    profile = find_profile(target)
    if not names_profile_folder(target):
        profile = profile_here(profile, threads, batch)
    if profile.file.runtime not in {"onnxruntime", "tensorrt"}:
        raise RequestError(
            f"over ssh files are timed by onnxruntime or TensorRT, not by {profile.file.runtime}; leave --host out"
        )
    _check_same(profile, threads, board)
    if profile.file.runtime == "onnxruntime":
        return _connected(board, OnnxruntimeOnBoard(board), f"onnxruntime {board.facts['onnxruntime']}")
    tensorrt = TensorrtOnBoard(board)
    return _connected(board, tensorrt, f"TensorRT {tensorrt.version} (trtexec, the time of the GPU)")


def _connected(board: Board, runtime: Loads, what: str) -> ConnectedBoard:
    state, _ = board.ask({"do": "state"})
    called = str(board.facts["board"]) or str(board.facts["system"])
    return ConnectedBoard(runtime, f"{called}, by {what}; {state_words(board.facts, state)}")


def _check_same(profile: Profile, threads: int, board: Board) -> None:
    """Raises:
    BoardError: the profile is of another machine than the board.
    """
    if profile.fingerprint is not None:
        reasons = mismatch(profile.fingerprint, OnnxruntimeOnBoard(board).fingerprint, threads)
        if reasons:
            raise BoardError(
                f"a run is verified on the kind of machine that its target was calibrated on; {board.host} is "
                f"{'; '.join(reasons)}; name another host, or calibrate it and search for that: "
                f"autocomp calibrate {profile.file.name} --host {board.host}"
            )
        return
    called = str(board.facts["board"])
    own = _alike(called, profile)
    # A Super calls itself all that the plain one does, and that.
    others = {other.file.name: _alike(called, other) for other in shipped_profiles()}
    nearest = max(others, key=lambda name: others[name])
    if own == 0 or others[nearest] > own:
        instead = f", or search for {nearest}" if others[nearest] else ""
        raise BoardError(
            f"a run is verified on its target, {profile.file.device}; {board.host} calls itself {called or 'nothing'!r}; "
            f"name another host{instead}"
        )


def _alike(called: str, profile: Profile) -> int:
    """How many letters of what a board calls itself are those of a profile's boards; 0 where it is none of them."""
    name = called.lower()
    found = 0
    for words in map(str.lower, profile.file.boards):
        if words == name or fnmatchcase(name.replace("-", " "), f"*{words}*"):
            found = max(found, len(words))
    return found
