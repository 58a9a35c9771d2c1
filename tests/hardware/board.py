"""A board for tests: this machine, behind a real sshd of its own on the loopback interface."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from autocomp.hardware.remote.connection import SSH_OPTIONS, Board

#: Debian keeps it off the path of ordinary users.
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class Loopback:
    """A host called ``board`` in an ssh configuration of its own."""

    folder: Path
    port: int

    @property
    def ssh(self) -> tuple[str, ...]:
        return ("ssh", *SSH_OPTIONS, "-F", str(self.folder / "config"))

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def board(self, host: str = "board") -> Board:
        return Board(host, self.ssh)


@contextmanager
def loopback(folder: Path, python: str) -> Iterator[Loopback]:
    """Args:
    python: what ``python3`` is there, a line of a shell.
    """
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no sshd on this machine: install openssh-server to test what is measured over ssh")
    folder.mkdir(mode=0o700, exist_ok=True)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (bin_folder / "python3").chmod(0o755)
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f'ForceCommand PATH={bin_folder}:/usr/bin:/bin exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\nMaxStartups 100\n'
    )
    (folder / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
    )
    public = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it where it runs as root
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _await(port)
        yield Loopback(folder, port)
    finally:
        server.terminate()
        server.wait(timeout=10)


def _await(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd did not come up within 20 s")


def with_runtime() -> str:
    return sys.executable


def without_runtime() -> str:
    """A Python that finds no packages."""
    return f"{sys.executable} -I -S"
