"""Devices with a real Triton, and NVIDIA's tritonclient with our server."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
import onnxruntime as ort
import pytest
from offload_runtimes.client import OffloadSession
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight
from tests.interop.triton import (
    needs_triton,
    needs_tritonclient,
    triton,
    tritonclient,
    with_python_backend,
)
from tests.runtimes.waiting import eventually

DOOR_WORDS = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--backend", "kserve")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """A bundle `b` of a model with a batch of any size, cut at `h`, and its export `repository`."""
    made = Door(tmp_path)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "V"], ["y"]),
    ]
    weights = {"W": weight(64, 64), "V": weight(64, 10)}
    save(tmp_path / "net.onnx", nodes, [value("x", "n", 64)], [value("y", "n", 10)], weights)
    made.ok(*DOOR_WORDS, "--shape", "x=2x64")
    made.ok("export", "triton", "b", "-o", "repository")
    return made


def feeds(seed: int, rows: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)}


class Whole:
    """The model before it was split: the oracle."""

    def __init__(self, door: Door) -> None:
        self.session = ort.InferenceSession(door.folder / "net.onnx")

    def check(self, session: OffloadSession, seed: int, rows: int = 2) -> None:
        given = session.run(None, feeds(seed, rows))
        np.testing.assert_allclose(given[0], self.expected(seed, rows), rtol=1e-4, atol=1e-5)

    def expected(self, seed: int, rows: int = 2) -> np.ndarray:
        (answer,) = self.session.run(None, feeds(seed, rows))
        return np.asarray(answer)


@needs_tritonclient
def test_numbers_of_fields_are_those_of_tritons_protocol() -> None:
    code = """
import json, sys
from tritonclient.grpc import model_config_pb2, service_pb2

def numbers(message):
    own = {message.full_name + "." + field.name: field.number for field in message.fields}
    for nested in message.nested_types:
        own.update(numbers(nested))
    return own

found = {}
for module in (model_config_pb2, service_pb2):
    for message in module.DESCRIPTOR.message_types_by_name.values():
        found.update(numbers(message))
kinds = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values
found.update({value.name: value.number for value in kinds})
print(json.dumps(found))
"""
    theirs = json.loads(tritonclient(code))

    def numbers(message: object) -> dict[str, int]:
        own = {f"{message.full_name}.{f.name}": f.number for f in message.fields}  # type: ignore[attr-defined]
        for nested in message.nested_types:  # type: ignore[attr-defined]
            own.update(numbers(nested))
        return own

    ours = {v.name: v.number for v in kserve.DESCRIPTOR.enum_types_by_name["DataType"].values}
    for message in kserve.DESCRIPTOR.message_types_by_name.values():
        ours.update(numbers(message))
    assert ours == {name: theirs[name] for name in ours}
    assert len(ours) > 100


@needs_tritonclient
def test_an_export_is_a_configuration_of_triton(door: Door) -> None:
    code = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())
print(config.name, config.backend, config.max_batch_size, config.HasField("dynamic_batching"))
"""
    said = tritonclient(code, door.folder / "repository/net.server/config.pbtxt")
    assert said.split() == ["net.server", "onnxruntime", "8", "True"]


@needs_triton
def test_triton_runs_the_servers_part(door: Door, tmp_path: Path) -> None:
    repository = with_python_backend(door.folder / "repository", tmp_path / "served")
    np.savez(door.folder / "in.npz", x=feeds(1)["x"])
    whole = Whole(door)
    with triton(repository, tmp_path) as server:
        address = f"kserve://{server.address}"
        with OffloadSession(door.folder / "b", address) as session:
            for seed in range(10):
                whole.check(session, seed, rows=1 + seed % 3)
            frames = [feeds(seed) for seed in range(30)]
            for seed, answer in enumerate(session.stream(frames, window=6)):
                np.testing.assert_allclose(answer[0], whole.expected(seed), rtol=1e-4, atol=1e-5)
            assert session.counts.split == 40
        door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", "--server", address)
        given = np.load(door.folder / "out.npz")["y"]
        np.testing.assert_allclose(given, whole.expected(1), rtol=1e-4, atol=1e-5)
        said = door.refused("run", "b", "--input", "in.npz", "--server", f"{address}/other")
        assert "offload export triton" in said


@needs_triton
def test_a_triton_that_dies_is_replaced_and_used_again(door: Door, tmp_path: Path) -> None:
    repository = with_python_backend(door.folder / "repository", tmp_path / "served")
    whole = Whole(door)
    with triton(repository, tmp_path) as first:
        port = first.port
        session = OffloadSession(door.folder / "b", f"kserve://{first.address}")
        whole.check(session, 0)
        stop, failures = threading.Event(), []

        def work() -> None:
            seed = 0
            while not stop.is_set():
                try:
                    whole.check(session, seed)
                except BaseException as error:  # noqa: BLE001  reported below
                    failures.append(error)
                    return
                seed += 1

        thread = threading.Thread(target=work)
        thread.start()
        eventually(lambda: session.counts.split > 20)
        first.kill()
        eventually(lambda: session.counts.local > 20)
        with triton(repository, tmp_path, port):
            ready_s = time.monotonic()
            before = session.counts.split
            eventually(lambda: session.counts.split > before)
            print(f"split again {time.monotonic() - ready_s:.2f} s after Triton was ready")
            stop.set()
            thread.join()
        assert failures == []
        assert session.counts.losses == 1
        session.close()


USES = """
import queue, sys
import numpy as np
import tritonclient.grpc as triton

address, path = sys.argv[1:]
data = np.load(path)
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("net")
assert client.get_server_metadata().name == "onnx-offload"
assert [m.name for m in client.get_model_repository_index().models] == ["net.server", "net"]
metadata = client.get_model_metadata("net")
assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [("x", "FP32", [-1, 64])]
assert client.get_model_config("net.server").config.input[0].name == "h"

x = triton.InferInput("x", list(data["x"].shape), "FP32")
x.set_data_from_numpy(data["x"])

def check(result):
    np.testing.assert_allclose(result.as_numpy("y"), data["y"], rtol=1e-4, atol=1e-5)

check(client.infer("net", [x]))
check(client.infer("net", [x], outputs=[triton.InferRequestedOutput("y")], request_id="one"))
answers = queue.Queue()
for _ in range(20):
    client.async_infer("net", [x], lambda result, error: answers.put((result, error)))
for _ in range(20):
    result, error = answers.get(timeout=20)
    assert error is None, error
    check(result)
client.start_stream(lambda result, error: answers.put((result, error)))
for number in range(50):
    client.async_stream_infer("net", [x], request_id=str(number), enable_empty_final_response=True)
ids = set()
for _ in range(50):
    result, error = answers.get(timeout=20)
    assert error is None, error
    check(result)
    ids.add(result.get_response().id)
    assert result.get_response().parameters["triton_final_response"].bool_param
assert len(ids) == 50
client.async_stream_infer("other", [x])
result, error = answers.get(timeout=20)
assert "'other' is not served here" in str(error)
client.stop_stream()
(statistics,) = client.get_inference_statistics("net").model_stats
assert statistics.inference_count == 72, statistics
try:
    client.infer("net", [])
except triton.InferenceServerException as error:
    assert "INVALID_ARGUMENT" in error.status() and "'x' of 'net' is missing" in error.message()
else:
    raise AssertionError("a request without inputs was answered")
print("all right")
"""


@needs_tritonclient
def test_tritonclient_uses_our_server(door: Door) -> None:
    np.savez(door.folder / "data.npz", x=feeds(5)["x"], y=Whole(door).expected(5))
    with door.serving("b") as address:
        assert tritonclient(USES, address, door.folder / "data.npz") == "all right\n"
