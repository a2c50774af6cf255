"""A plan under a memory limit keeps it: measured on a client's process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from offload.cost.link import parse_link
from offload.plan.wish import Wish
from offload_models.zoo import build, save
from offload_runtimes.planning.situation import SplitRequest
from offload_runtimes.server import Server
from offload_runtimes.split import split

CLIENT = """
import sys
from pathlib import Path
import numpy as np
from offload_runtimes.client import OffloadSession
with OffloadSession(sys.argv[1], sys.argv[2] or None, threads=1) as session:
    (value,) = session.get_inputs()
    for _ in range(3):
        session.run(None, {value.name: np.zeros(value.shape, np.float32)})
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status.get("VmHWM", status["VmRSS"]).split()[0]) * 1024)
"""


@pytest.mark.parametrize("limit_bytes", [136e6, 156e6])
def test_the_client_stays_within_the_limit_it_was_planned_for(
    tmp_path: Path, limit_bytes: float
) -> None:
    save(build("squeezenet"), tmp_path / "net.onnx")
    request = SplitRequest(
        tmp_path / "net.onnx",
        parse_link("wifi"),
        device=8e9,
        server=9e9,
        wish=Wish(memory_bytes=limit_bytes, keep_input=True),
    )
    bundle = split(request, tmp_path / "net.bundle")
    assert bundle.plan.is_local == (limit_bytes > 146e6)
    with Server([] if bundle.plan.is_local else [bundle]) as server:
        address = "" if bundle.plan.is_local else server.address
        command = [sys.executable, "-c", CLIENT, str(bundle.path), address]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= limit_bytes
