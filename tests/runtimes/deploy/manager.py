"""A real `systemd --user` in namespaces of its own."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SYSTEMD = "/lib/systemd/systemd"
_BEGIN = """
mount -t tmpfs tmpfs /run && mkdir -p /run/user/0 /run/systemd/system
umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
group=/sys/fs/cgroup/user.slice/manager && mkdir -p $group && echo $$ > $group/cgroup.procs
{systemd} --user --log-target=console >{log} 2>&1
true # not the last command: a shell that became systemd would be process 1, which is no user's
"""


@dataclass(frozen=True)
class Manager:
    """A running manager; commands join its namespaces."""

    pid: int
    environment: dict[str, str]

    def run(self, command: Sequence[str | Path], timeout_s: float = 120) -> tuple[int, str]:
        """Run a command; its exit code and what it printed."""
        joined = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", *command]
        done = subprocess.run(
            joined,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, all of one instant."""
        _, said = self.run(["systemctl", "--user", "show", "-p", ",".join(names), unit])
        return dict(line.split("=", 1) for line in said.splitlines())


@contextmanager
def user_manager(folder: Path) -> Iterator[Manager]:
    """Start a manager; skips the test where the kernel or the user's rights do not allow it."""
    if os.getuid() != 0 or not Path(_SYSTEMD).exists() or not shutil.which("systemctl"):
        pytest.skip("systemd for users needs root and Debian's package systemd")
    home = folder / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": "/run/user/0"}
    script = _BEGIN.format(systemd=_SYSTEMD, log=folder / "manager.log")
    outer = subprocess.Popen(
        ["unshare", "-m", "-p", "-f", "-C", "--mount-proc", "--kill-child", "sh", "-ec", script],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _wait_for(outer, environment)
    finally:
        outer.kill()
        outer.wait()


def _wait_for(outer: "subprocess.Popen[bytes]", environment: dict[str, str]) -> Manager:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    for _ in range(100):
        time.sleep(0.1)
        if outer.poll() is not None:
            break
        for pid in children.read_text().split():
            manager = Manager(int(pid), environment)
            code, said = manager.run(["systemctl", "--user", "is-system-running"])
            if code == 0 and "running" in said:
                return manager
    pytest.skip("no systemd for users in namespaces: this kernel does not allow it")
