"""Other people's clients and servers, through the command."""

import json

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, two_layers, value, weight
from tests.runtimes.kserve_client import KServeClient


def services(address: str) -> set[str]:
    """What a client such as grpcurl lists."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        for name in names:
            assert database.FindFileContainingSymbol(name).service
        return names


def test_a_server_on_loopback_describes_its_services(door: Door) -> None:
    with door.serving(door.split_two_layers()) as address:
        assert services(address) >= {
            "onnx_offload.v1.Runtime",
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
        }


@pytest.mark.parametrize(
    ("listen", "word", "described"),
    [
        ("127.0.0.1:0", "--no-reflection", False),
        ("0.0.0.0:0", "--log", False),
        ("0.0.0.0:0", "--reflection", True),
    ],
)
def test_beyond_loopback_it_does_so_on_request(
    door: Door, listen: str, word: str, described: bool
) -> None:
    bundle = door.split_two_layers()
    with door.serving(bundle, "--insecure", word, listen=listen) as address:
        here = f"127.0.0.1:{address.rsplit(':', 1)[1]}"
        if described:
            assert "onnx_offload.v1.Runtime" in services(here)
            return
        with pytest.raises(grpc.RpcError) as caught:
            services(here)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_served_bundle_is_two_models_of_kserve(door: Door) -> None:
    bundle = door.split_two_layers()
    x = np.random.default_rng(3).standard_normal((1, 8)).astype(np.float32)
    session = ort.InferenceSession(door.folder / "net.onnx")
    (y,) = session.run(None, {"x": x})
    with door.serving(bundle) as address, KServeClient(address) as client:
        np.testing.assert_allclose(client.infer("net", {"x": x})["y"], y, rtol=1e-6)
        (part,) = ort.InferenceSession(door.folder / bundle / "device-0.onnx").run(None, {"x": x})
        np.testing.assert_allclose(client.infer("net.server", {"h": part})["y"], y, rtol=1e-6)
        with pytest.raises(grpc.RpcError) as caught:
            client.infer("net", {"x": x[:, :3]})
        assert caught.value.details() == "input 'x' must be FP32[1x8], not FP32[1x3]"


@pytest.mark.door
def test_a_device_uses_a_server_of_kserve(door: Door) -> None:
    bundle = door.split_two_layers()
    (y,) = ort.InferenceSession(door.folder / "net.onnx").run(None, {"x": np.ones((1, 8), "f")})
    words = ("run", bundle, "--input", "in.npz", "--output", "out.npz", "--server")
    with door.serving(bundle) as address:
        done = door.json(*words, f"kserve://{address}")
        np.testing.assert_allclose(np.load(door.folder / "out.npz")["y"], y, rtol=1e-6)
        assert "net.server" in json.dumps(done["timeline"])
        door.ok(*words, f"kserve://{address}/net.server")
        assert "is not served here: there are" in door.refused(*words, f"kserve://{address}/other")
    assert "nothing listens there" in door.refused(*words, f"kserve://{address}")
    assert "leave them out" in door.refused(*words, f"kserve://{address}", "--slowdown", "2")


def test_a_plan_for_kserve_sends_one_request(door: Door) -> None:
    two_layers(door.folder / "net.onnx")
    words = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--backend", "kserve")
    door.ok(*words, "--cut", "h")
    plan = json.loads((door.folder / "b/plan.json").read_text())
    assert plan["scheme"] == "partition"
    assert [step[0] for step in plan["steps"]] == ["run", "send"]
    assert {send["encoding"] for send in plan["uploads"]} == {"raw"}
    assert "overlaps uploads" in door.refused(*words, "--scheme", "joint")
    assert "give one --link" in door.refused(*words, "--link", "1..100 Mbit/s")
    assert "only our own server decodes" in door.refused(*words, "--encoding", "zstd")


def test_an_export_for_triton_is_a_folder_it_can_serve(door: Door) -> None:
    bundle = door.split_two_layers()
    done = door.json("export", "triton", bundle, "-o", "repository")
    assert done["model"] == "net.server"
    assert "fixed at 1" in done["why_alone"]
    folder = door.folder / "repository/net.server"
    assert 'name: "h"' in (folder / "config.pbtxt").read_text()
    x = np.ones((1, 8), np.float32)
    (h,) = ort.InferenceSession(door.folder / bundle / "device-0.onnx").run(None, {"x": x})
    (y,) = ort.InferenceSession(door.folder / "net.onnx").run(None, {"x": x})
    (part,) = ort.InferenceSession(folder / "1/model.onnx").run(None, {"h": h})
    np.testing.assert_allclose(part, y, rtol=1e-6)
    assert "give one with --name" in door.refused(
        "export", "triton", bundle, "-o", "other", "--name", "a/b"
    )
    assert not (door.folder / "other").exists()
    assert "no manifest.json" in door.refused("export", "triton", "nowhere", "-o", "other")


def test_an_export_takes_its_weights_along(door: Door) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("MatMul", ["h", "W"], ["y"]),
    ]
    ends = [value("x", 1, 64)], [value("y", 1, 64)]
    save(door.folder / "net.onnx", nodes, *ends, {"W": weight(64, 64)}, external=True)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--backend", "kserve")
    door.ok("export", "triton", "b", "-o", "repository")
    version = door.folder / "repository/net.server/1"
    assert [path.name for path in version.glob("*.weights")] == ["server.weights"]
    h = np.ones((1, 64), np.float32)
    (part,) = ort.InferenceSession(version / "model.onnx").run(None, {"h": h})
    (y,) = ort.InferenceSession(door.folder / "net.onnx").run(None, {"x": h})
    np.testing.assert_allclose(part, y, rtol=1e-6)


@pytest.mark.door
@pytest.mark.parametrize("encoding", ["fp16", "uint8"])
def test_encodings_that_are_nodes_of_the_graph_cross_by_kserve(door: Door, encoding: str) -> None:
    two_layers(door.folder / "net.onnx", 512)
    x = np.random.default_rng(2).standard_normal((1, 512)).astype(np.float32)
    np.savez(door.folder / "in.npz", x=x)
    words = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--backend", "kserve")
    lossy = ("--encoding", encoding, "--tolerance", "0.05", "--calibration", "in.npz")
    door.ok(*words, *lossy, "--link", "1 Mbit/s")
    plan = json.loads((door.folder / "b/plan.json").read_text())
    assert [send["encoding"] for send in plan["uploads"]] == [encoding]
    (y,) = ort.InferenceSession(door.folder / "net.onnx").run(None, {"x": x})
    with door.serving("b") as address:
        server = ("--server", f"kserve://{address}", "--on-server-loss", "raise")
        door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", *server)
    given = np.load(door.folder / "out.npz")["y"]
    assert 0 < np.abs(given - y).max() < 0.05 * np.ptp(y)
    door.ok("export", "triton", "b", "-o", "repository")


@pytest.mark.door
def test_optional_inputs_cross_by_kserve(door: Door) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Mul", ["h", "d"], ["y"])]
    ends = [value("x", 1, 8), value("d", 1, 8)], [value("y", 1, 8)]
    default = np.full((1, 8), 2, np.float32)
    save(door.folder / "net.onnx", nodes, *ends, {"d": default})
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--backend", "kserve")
    x, d = np.ones((1, 8), np.float32), np.full((1, 8), 5, np.float32)
    with door.serving("b") as address, KServeClient(address) as client:
        for feeds, expected in (({"x": x}, 2.0), ({"x": x, "d": d}, 5.0)):
            np.savez(door.folder / "in.npz", **feeds)  # type: ignore[arg-type]
            server = ("--server", f"kserve://{address}", "--on-server-loss", "raise")
            door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", *server)
            np.testing.assert_allclose(np.load(door.folder / "out.npz")["y"], expected)
            np.testing.assert_allclose(client.infer("net", feeds)["y"], expected)
