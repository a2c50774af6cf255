"""CPUs that a process may use: all threads stay on them, and a refused affinity prints nothing."""

import os
import shutil
import subprocess

import pytest

from tests.front_door.apps import python, split_chain
from tests.front_door.door import Door

CODE = """
import os
from pathlib import Path
cpu = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cpu})
import numpy as np
from offload_runtimes import open_session
with open_session("b") as session:
    session.run(None, {"x": np.ones((64, 16), np.float32)})
    tasks = Path("/proc/self/task").glob("*/status")
    lines = {line for task in tasks for line in task.read_text().splitlines()}
print({line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")} == {str(cpu)})
"""
SHIM = """
#include <stddef.h>
int pthread_setaffinity_np(unsigned long thread, size_t size, const void *mask) { return 22; }
"""


def test_every_thread_stays_on_the_allowed_cpus(door: Door) -> None:
    split_chain(door)
    done = python(door, CODE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_refused_affinity_prints_nothing(door: Door) -> None:
    """A library plays the kernel of a container that refuses."""
    split_chain(door)
    (door.folder / "shim.c").write_text(SHIM)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", "shim.so", "shim.c"], cwd=door.folder, check=True
    )
    env = {"LD_PRELOAD": os.fspath(door.folder / "shim.so")}
    done = door.offload("inspect", "net.onnx", "--shape", "x=1x16", env=env)
    assert done.returncode == 0, done.stderr
    assert "affinity" not in done.stderr
    code = CODE.replace("os.sched_setaffinity(0, {cpu})", "")
    ran = python(door, code, LD_PRELOAD=env["LD_PRELOAD"])
    assert (ran.returncode, ran.stderr) == (0, "")
