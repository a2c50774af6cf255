"""A plan under a memory limit keeps it: measured on a client's process of its own."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from offload.costs.link import parse_link
from offload.costs.profile import estimate_profile
from offload.graph.load import load_model
from offload.planning.cut_costs import CLIENT_BYTES
from offload.planning.problem import Constraints
from offload_models.zoo import build, save
from offload_runtimes.measure.machine import THIS_MACHINE
from offload_runtimes.measure.profile import read_fused, tiny_model
from offload_runtimes.measure.split import SplitRequest, prepare, split
from offload_runtimes.server import Server

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


def request_for(folder: Path, name: str) -> SplitRequest:
    """On a device that is as fast as the server, so that all would stay there but for the limit.

    Its profile says what a client takes on this machine, as `offload profile` would.
    """
    save(build(name), folder / "net.onnx")
    graph = read_fused(load_model(folder / "net.onnx"))
    profile = replace(
        estimate_profile(graph, 8e9), client_bytes=THIS_MACHINE.client_bytes(tiny_model(), 1)
    )
    (folder / "device.json").write_text(json.dumps(profile.to_json()))
    link = parse_link("wifi")
    return SplitRequest(folder / "net.onnx", link, device=folder / "device.json", server=9e9)


@pytest.mark.parametrize("name", ["squeezenet", "googlenet", "mobilenet_v2"])
def test_the_client_stays_within_the_limit_it_was_planned_for(tmp_path: Path, name: str) -> None:
    """With room for all, and with too little for that."""
    request = request_for(tmp_path, name)
    free = split(request, tmp_path / "free.bundle").plan
    local = next(a for a in free.alternatives if a.scheme == "local")
    for limit_bytes in (local.memory_bytes, local.memory_bytes - 1):
        constraints = Constraints(memory_bytes=limit_bytes, keep_input=True)
        bundle = split(replace(request, constraints=constraints), tmp_path / "net.bundle")
        assert bundle.plan.is_local == (limit_bytes == local.memory_bytes)
        with Server([] if bundle.plan.is_local else [bundle]) as server:
            address = "" if bundle.plan.is_local else server.address
            command = [sys.executable, "-c", CLIENT, str(bundle.path), address]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert 0 < int(done.stdout) <= limit_bytes


def test_a_profile_says_what_the_client_takes_and_an_estimate_does_not(tmp_path: Path) -> None:
    request = request_for(tmp_path, "squeezenet")
    measured = THIS_MACHINE.client_bytes(tiny_model(), 1)
    assert measured is not None
    assert 20e6 < measured < 400e6
    assert prepare(request).problem().client_bytes == measured
    assert prepare(replace(request, device=8e9)).problem().client_bytes == CLIENT_BYTES
