"""A real Triton, from the wheel nvidia-pytriton, that serves an exported model repository.

The wheel lacks Triton's onnxruntime backend, so the models run through its Python backend, which
calls onnxruntime: a copy of the repository differs from the exported one in the backend's name and
a file `model.py` only.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import offload_runtimes.protocol.kserve_pb2 as kserve
import pytest
from google.protobuf import text_format

from tests.runtimes.kserve_client import KServeClient

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = ROOT / "build/triton"
CLIENT = ROOT / "build/tritonclient/bin/python"
_MODEL = """
import os
import sys

sys.path.insert(0, {site!r})
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, arguments):
        folder = os.path.join(arguments["model_repository"], arguments["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), options)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def execute(self, requests):
        responses = []
        for request in requests:
            feeds = {{
                name: backend.get_input_tensor_by_name(request, name).as_numpy()
                for name in self.inputs
            }}
            arrays = self.session.run(self.outputs, feeds)
            tensors = [backend.Tensor(*pair) for pair in zip(self.outputs, arrays)]
            responses.append(backend.InferenceResponse(tensors))
        return responses
"""


def site_packages() -> Path | None:
    """Where the wheel is; None: `make test-interop` has not installed it."""
    found = list(ENVIRONMENT.glob("lib/python*/site-packages/pytriton/tritonserver"))
    return found[0].parent.parent if found else None


needs_triton = pytest.mark.skipif(
    site_packages() is None, reason="needs Triton's wheel: `make test-interop` installs it"
)
needs_tritonclient = pytest.mark.skipif(
    not CLIENT.exists(), reason="needs tritonclient: `make test-interop` installs it"
)


def with_python_backend(repository: Path, folder: Path) -> Path:
    """A copy of an exported repository whose models run through Triton's Python backend."""
    site = site_packages()
    assert site is not None
    shutil.copytree(repository, folder)
    for path in folder.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), kserve.ModelConfig())
        assert config.backend == "onnxruntime"
        config.backend, config.platform, config.default_model_filename = "python", "", "model.py"
        path.write_text(text_format.MessageToString(config))
        (path.parent / "1/model.py").write_text(_MODEL.format(site=str(site)))
    return folder


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Triton:
    """One process of `tritonserver`, ready when made."""

    def __init__(self, repository: Path, folder: Path, port: int | None = None) -> None:
        """`repository` is served as it is; the log and Triton's backends are kept in `folder`."""
        site = site_packages()
        assert site is not None
        own = site / "pytriton/tritonserver"
        backends = folder / "backends"
        if not backends.exists():
            shutil.copytree(own / "backends", backends)
            version = next(ENVIRONMENT.glob("lib/python*")).name.removeprefix("python")
            stub = own / f"python_backend_stubs/{version}/triton_python_backend_stub"
            shutil.copy(stub, backends / "python")
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / "triton.log"
        options = {
            "model-repository": repository,
            "backend-directory": backends,
            "grpc-address": "127.0.0.1",
            "grpc-port": self.port,
            "allow-http": "false",
            "allow-metrics": "false",
        }
        libraries = [str(site / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    own / "bin/tritonserver",
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))},
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        give_up_s = time.monotonic() + 60
        with KServeClient(self.address) as client:
            while time.monotonic() < give_up_s and self.process.poll() is None:
                try:
                    if client.call("ServerReady").ready:
                        return
                except grpc.RpcError:
                    pass
                time.sleep(0.1)
        raise AssertionError(f"Triton did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End it and its backends at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def triton(repository: Path, folder: Path, port: int | None = None) -> Iterator[Triton]:
    """A Triton that is killed at the end of the block."""
    server = Triton(repository, folder, port)
    try:
        yield server
    finally:
        server.kill()


def tritonclient(code: str, *words: str | Path) -> str:
    """Run a program that uses tritonclient, in its own environment; what it printed."""
    command: Sequence[str | Path] = [CLIENT, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
