"""The target's machine: its hardware and system, programs run on it, its servers."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16
_TICK_S = 0.2
_ANSWER_S = 2.0


def facts(root: Path) -> dict[str, Any]:
    """Processor, system, Python, free disk and memory, clock, and which machine this is."""
    folder = next(path for path in (root, *root.parents) if path.is_dir())
    return {
        "root": str(root),
        "machine": platform.machine(),
        "bits": struct.calcsize("P") * 8,
        "libc": list(platform.libc_ver()),
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "time_s": time.time(),
        "boot": _boot_id(),
    }


def _boot_id() -> str:
    """The boot id, which differs between machines; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def run(root: Path, command: list[str], timeout_s: float, alone: bool = False) -> dict[str, Any]:
    """Run a program in the root; returns its exit code (negative: a signal) and last output.

    It is killed after the time limit and, unless `alone`, when the deployer disconnects.
    """
    try:
        child = subprocess.Popen(
            command,
            cwd=root if root.is_dir() else None,
            env={**os.environ, **_user_manager()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return {"code": 127, "out": "", "err": f"{command[0]}: {error.strerror}"}
    out, err = _wait(child, timeout_s, alone)
    return {"code": child.returncode, "out": out, "err": err}


def spawn(root: Path, command: list[str], log: str) -> dict[str, Any]:
    """Start a program that outlives the deployer's connection; its output goes to a file."""
    with (root / log).open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return {"pid": child.pid}


def runs(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # a child of this agent
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def servers(root: Path) -> list[dict[str, Any]]:
    """Status of this account's servers that serve a bundle inside the root.

    Each has a socket (`daemon.status_socket`); sockets of killed servers are removed.
    """
    statuses = []
    for folder in status_folders():
        for path in sorted(folder.glob("*.sock")):
            status = _read_status(path)
            if status and any(inside.startswith(f"{root}/") for inside in status["paths"]):
                statuses.append(status)
    return statuses


def status_folders() -> list[Path]:
    """Folders of the sockets of this account's servers."""
    uid = os.getuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    folders = [Path(runtime, "onnx-offload"), Path(tempfile.gettempdir(), f"onnx-offload-{uid}")]
    return [folder for folder in folders if folder.is_dir() and folder.stat().st_uid == uid]


def _read_status(path: Path) -> dict[str, Any] | None:
    """Read a server's status from its socket; None if it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(path))
            data = b""
            while not data.endswith(b"\n"):
                piece = connection.recv(1 << 16)
                if not piece:
                    return None
                data += piece
            status: dict[str, Any] = json.loads(data.decode("utf-8"))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return None
        except (OSError, ValueError):
            return None
    return status


def _user_manager() -> dict[str, str]:
    """Environment for `systemctl --user` in a session without a login."""
    folder = f"/run/user/{os.getuid()}"
    if "XDG_RUNTIME_DIR" in os.environ or not Path(folder).is_dir():
        return {}
    return {"XDG_RUNTIME_DIR": folder}


def _wait(child: subprocess.Popen[bytes], timeout_s: float, alone: bool) -> tuple[str, str]:
    give_up_s = time.monotonic() + timeout_s
    while True:
        try:
            out, err = child.communicate(timeout=_TICK_S)
            return _tail(out), _tail(err)
        except subprocess.TimeoutExpired:
            gone = not alone and bool(select.select([0], [], [], 0)[0])
            if gone or time.monotonic() > give_up_s:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)


def _tail(text: bytes) -> str:
    return text[-_TAIL_BYTES:].decode("utf-8", "replace")
