"""Devices with MLServer and with KServe's own ModelServer, each running the exported model."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
import onnxruntime as ort
import pytest
from offload_runtimes.client import OffloadSession

from tests.front_door.door import ESTIMATED, Door, two_layers
from tests.interop.triton import ROOT, free_port
from tests.runtimes.kserve_client import KServeClient

Prepare: TypeAlias = Callable[[Path, Path, int], list[str]]
MLSERVER = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    async def load(self):
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        names = [value.name for value in self.session.get_outputs()]
        arrays = self.session.run(names, feeds)
        outputs = [NumpyCodec.encode_output(*pair) for pair in zip(names, arrays)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""
KSERVE = """
import sys

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer

SESSION = onnxruntime.InferenceSession(sys.argv[1])


def described(values):
    return [{"name": v.name, "datatype": "FP32", "shape": v.shape} for v in values]


class OnnxModel(Model):
    def __init__(self):
        super().__init__("net.server")
        self.ready = True

    async def get_input_types(self):
        return described(SESSION.get_inputs())

    async def get_output_types(self):
        return described(SESSION.get_outputs())

    async def predict(self, payload, headers=None, response_headers=None):
        arrays = SESSION.run(None, {tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        outputs = []
        for value, array in zip(SESSION.get_outputs(), arrays):
            output = InferOutput(value.name, list(array.shape), "FP32")
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return InferResponse(payload.id or "1", self.name, outputs)


ModelServer(grpc_port=int(sys.argv[2]), http_port=int(sys.argv[3])).start([OnnxModel()])
"""


def mlserver(folder: Path, model: Path, port: int) -> list[str]:
    """Write what MLServer reads; the command that starts it."""
    (folder / "onnx_model.py").write_text(MLSERVER)
    settings = {
        "name": "net.server",
        "implementation": "onnx_model.OnnxModel",
        "parameters": {"uri": str(model)},
        "inputs": [{"name": "h", "datatype": "FP32", "shape": [1, 8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 8]}],
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    ports = {"grpc_port": port, "http_port": free_port(), "metrics_port": free_port()}
    common = {"host": "127.0.0.1", "parallel_workers": 0, **ports}
    (folder / "settings.json").write_text(json.dumps(common))
    return [str(ROOT / "build/mlserver/bin/mlserver"), "start", "."]


def kserve_sdk(folder: Path, model: Path, port: int) -> list[str]:
    """Write a program that serves the model with KServe's SDK; the command that starts it."""
    (folder / "serve.py").write_text(KSERVE)
    python = ROOT / "build/kserve/bin/python"
    return [str(python), "serve.py", str(model), str(port), str(free_port())]


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """A server process whose model is ready; its address."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address, give_up_s = f"127.0.0.1:{port}", time.monotonic() + 60
        with KServeClient(address) as client:
            while True:
                try:
                    request = kserve.ModelReadyRequest(name="net.server")
                    if client.call("ModelReady", request).ready:
                        break
                except grpc.RpcError:
                    pass
                said = (folder / "log").read_text()[-2000:]
                assert process.poll() is None, said
                assert time.monotonic() < give_up_s, said
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("environment", "prepare"), [("mlserver", mlserver), ("kserve", kserve_sdk)]
)
def test_a_python_server_runs_the_servers_part(
    tmp_path: Path, environment: str, prepare: Prepare
) -> None:
    if not (ROOT / "build" / environment / "bin/python").exists():
        pytest.skip(f"needs {environment}: `make test-interop` installs it")
    door = Door(tmp_path)
    two_layers(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--backend", "kserve")
    door.ok("export", "triton", "b", "-o", "repository")
    model = door.folder / "repository/net.server/1/model.onnx"
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    whole = ort.InferenceSession(door.folder / "net.onnx")
    with (
        running(prepare(folder, model, port), folder, port) as address,
        OffloadSession(door.folder / "b", f"kserve://{address}") as session,
    ):
        for seed in range(10):
            x = np.random.default_rng(seed).standard_normal((1, 8)).astype(np.float32)
            (y,) = session.run(None, {"x": x})
            np.testing.assert_allclose(y, whole.run(None, {"x": x})[0], rtol=1e-5)
        assert session.counts.split == 10
