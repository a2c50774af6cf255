import onnx
import pytest
from offload.bundle.subgraph import Part, extract_part, part_of
from offload.errors import InputError
from offload.graph.load import load_model
from offload.graph.model import Tensor
from offload.graph.read import read_graph
from onnx import ModelProto

from tests.edge_cases import EDGE_CASES, text

BY_NAME = {case.name: case.model for case in EDGE_CASES}


def cut(proto: ModelProto, first: int, last: int) -> ModelProto:
    """The part of layers first to last (exclusive)."""
    model = load_model(proto)
    return extract_part(model, part_of(read_graph(model), range(first, last))).whole()


def stored(part: ModelProto) -> set[str]:
    return {tensor.name for tensor in part.graph.initializer}


def test_metadata_of_the_source_is_kept() -> None:
    source = BY_NAME["metadata"]
    for part in (cut(source, 0, 1), cut(source, 1, 3)):
        assert part.metadata_props == source.metadata_props
        assert part.opset_import == source.opset_import
        assert part.ir_version == source.ir_version
        assert part.producer_name == "maker"
        assert part.doc_string == "what it is"
        assert part.graph.doc_string == "a graph"
        assert part.model_version == 7


def test_weights_are_pruned_to_what_a_part_uses() -> None:
    source = text(
        """g (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 2}, float[2] w = {3, 4}> {
        a = Add(x, v) b = Mul(a, v) y = Add(b, w) }"""
    )
    assert stored(cut(source, 0, 1)) == {"v"}
    assert stored(cut(source, 1, 3)) == {"v", "w"}
    assert stored(cut(source, 2, 3)) == {"w"}


def test_constant_nodes_are_copied_and_never_cross() -> None:
    source = BY_NAME["chains of constant nodes first"]
    tail = cut(source, 2, 4)
    assert [value.name for value in tail.graph.input] == ["b"]
    assert [node.op_type for node in tail.graph.node][:3] == ["Constant", "ConstantOfShape", "Exp"]


def test_functions_are_pruned_to_what_a_part_reaches() -> None:
    source = BY_NAME["a function reached from a body only"]
    assert [function.name for function in cut(source, 0, 3).functions] == []
    with_call = cut(source, 2, 5)
    assert [function.name for function in with_call.functions] == ["half"]


def test_dynamic_dimensions_stay_dynamic() -> None:
    tail = cut(BY_NAME["dynamic_batch_height_and_width"], 2, 4)
    sizes = tail.graph.input[0].type.tensor_type.shape.dim
    assert len(sizes) == 4
    assert sizes[1].dim_value == 2
    assert not any(size.HasField("dim_value") for size in (sizes[0], sizes[2], sizes[3]))


def test_initializers_of_old_files_do_not_become_inputs() -> None:
    source = BY_NAME["initializers_listed_as_inputs"]
    part = cut(source, 0, 3)
    assert [value.name for value in part.graph.input] == ["x"]
    onnx.checker.check_model(part)


def test_defaults_stay_open() -> None:
    part = cut(BY_NAME["defaults_kept"], 0, 1)
    assert [value.name for value in part.graph.input] == ["x", "w"]
    assert stored(part) == {"w"}


def test_wrong_declared_shapes_are_ignored() -> None:
    tail = cut(BY_NAME["wrong_declared_shapes"], 2, 4)
    sizes = tail.graph.input[0].type.tensor_type.shape.dim
    assert sizes[0].dim_param == "N"


@pytest.mark.parametrize("name", ["sequences inside", "text inside", "optionals inside"])
def test_a_value_that_cannot_cross_is_named(name: str) -> None:
    model = load_model(BY_NAME[name])
    crossing = next(n for node in model.proto.graph.node for n in node.output if n in "sto")
    producer = model.values.producer[crossing]
    with pytest.raises(InputError, match=f"'{crossing}' is not a tensor of numbers"):
        extract_part(model, Part((producer,), ("a",), (crossing,)))


def test_an_unknown_type_must_be_given() -> None:
    model = load_model(BY_NAME["operators of another vendor"])
    part = part_of(read_graph(model), [2])
    with pytest.raises(InputError, match="type of tensor 'f' is not known"):
        extract_part(model, part)
    extracted = extract_part(model, part, {"f": Tensor("f", "float", (None, 4), None)})
    assert extracted.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 4


def test_a_part_of_all_layers_is_the_source() -> None:
    source = BY_NAME["if captures activations, weights and constants"]
    whole = cut(source, 0, len(read_graph(load_model(source)).layers))
    assert whole.graph.node == source.graph.node
    assert whole.graph.input == source.graph.input
    assert whole.graph.output == source.graph.output
