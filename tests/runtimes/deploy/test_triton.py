"""An exported model repository has what Triton's documentation demands."""

from pathlib import Path
from typing import Any

import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
import pytest
from google.protobuf import text_format
from offload.bundle.bundle import open_bundle
from offload.errors import InputError
from offload.planning.plan import Send, Side
from offload_runtimes.deploy.triton import InstanceKind, TritonOptions, export_triton
from offload_runtimes.engine import load
from onnx import TensorProto, helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made


def config_of(path: Path) -> kserve.ModelConfig:
    return text_format.Parse((path / "config.pbtxt").read_text(), kserve.ModelConfig())


def test_a_fixed_model_is_written_with_its_names_types_and_dims(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "net")
    model = export_triton(made.bundle, tmp_path / "repository")
    assert model.path == tmp_path / "repository/net.server"
    assert sorted(p.relative_to(model.path).as_posix() for p in model.path.rglob("*")) == [
        "1",
        "1/model.onnx",
        "config.pbtxt",
    ]
    config = config_of(model.path)
    assert (config.name, config.backend, config.max_batch_size) == ("net.server", "onnxruntime", 0)
    assert [(t.name, list(t.dims)) for t in config.input] == [("t0", [1, 64]), ("t1", [1, 64])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("y", [1, 64])]
    assert config.input[0].data_type == kserve.DataType.TYPE_FP32
    assert not config.HasField("dynamic_batching")
    assert config.instance_group[0].kind == kserve.ModelInstanceGroup.KIND_AUTO
    feeds = {name: np.ones((1, 64), np.float32) for name in ("t0", "t1")}
    (given,) = load(model.path / "1/model.onnx").run(None, feeds)
    (own,) = load(made.bundle.segment_path("server-0")).run(None, feeds)
    np.testing.assert_array_equal(given, own)


def test_independent_rows_are_batched(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "net", batch="n")
    options = TritonOptions(kind=InstanceKind.GPU, instances=2, max_batch=16)
    model = export_triton(made.bundle, tmp_path / "repository", options)
    assert (model.max_batch, model.why_alone) == (16, "")
    config = config_of(model.path)
    assert config.max_batch_size == 16
    assert config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in config.input] == [[64]] * 2
    assert [list(tensor.dims) for tensor in config.output] == [[64]]
    assert config.instance_group[0].count == 2
    assert config.instance_group[0].kind == kserve.ModelInstanceGroup.KIND_GPU
    alone = export_triton(made.bundle, tmp_path / "repository", TritonOptions("alone", max_batch=0))
    assert alone.why_alone == "it was not requested"
    assert list(config_of(alone.path).input[0].dims) == [-1, 64]
    assert {p.name for p in (tmp_path / "repository").iterdir()} == {"net.server", "alone"}


def test_an_older_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "net")
    repository = tmp_path / "repository"
    export_triton(made.bundle, repository)
    (repository / "net.server/1/old").touch()
    export_triton(made.bundle, repository)
    assert not (repository / "net.server/1/old").exists()
    (repository / "mine").mkdir()
    with pytest.raises(InputError, match="exists and is not a model of Triton"):
        export_triton(made.bundle, repository, TritonOptions("mine"))


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a\nb", "/"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    made = bundles.branches(tmp_path / "net")
    with pytest.raises(InputError, match="give one with --name"):
        export_triton(made.bundle, tmp_path / "repository", TritonOptions(name))
    assert not (tmp_path / "repository").exists()


def odd(folder: Path, node: Any, x: Any, y: Any) -> Made:
    whole = models.model([node], [x], [y])
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    return bundles.write(folder, whole, [(part, whole)], [("send", "x")], [Send("x", 4)], ["y"])


def test_what_triton_cannot_run_is_refused(tmp_path: Path) -> None:
    local = bundles.on_one_side(tmp_path / "local", Side.DEVICE)
    with pytest.raises(InputError, match="nothing to export"):
        export_triton(local.bundle, tmp_path / "repository")
    early = bundles.there_and_back(tmp_path / "early")
    with pytest.raises(InputError, match=r"2 segments.*split again with --backend kserve"):
        export_triton(early.bundle, tmp_path / "repository")
    made = bundles.branches(tmp_path / "net")
    half = bundles.deployed(made, Side.DEVICE, tmp_path / "half")
    with pytest.raises(InputError, match="lacks the server's files"):
        export_triton(open_bundle(half), tmp_path / "repository")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    scalar = odd(tmp_path / "scalar", helper.make_node("Neg", ["x"], ["y"]), x, y)
    with pytest.raises(InputError, match="'x' has no dimensions"):
        export_triton(scalar.bundle, tmp_path / "repository")
    x = models.floats("x", 1)
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    sequence = odd(tmp_path / "seq", helper.make_node("SequenceConstruct", ["x"], ["y"]), x, y)
    with pytest.raises(InputError, match="Triton cannot serve this part: 'y' is a seq"):
        export_triton(sequence.bundle, tmp_path / "repository")
    with pytest.raises(InputError, match="at least"):
        TritonOptions(instances=0)
    assert not (tmp_path / "repository").exists()
