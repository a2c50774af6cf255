import numpy as np
import pytest
from offload.bundle.bundle import ModelValue
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import (
    Feeds,
    ModelInputs,
    SampleOptions,
    ValueRange,
    bound,
    draw,
    open_sizes_sentence,
    sample,
    shape_options,
)
from offload.errors import InputError
from offload.graph.load import load_model

from tests.edge_cases import text

TABLE = """g (int64[N,T] ids) => (float[N,T,2] y) <float[3,2] table = {1,2,3,4,5,6}> {
    n = Cast <to=7> (ids) y = Gather (table, n) }"""


def accept(_: Feeds) -> None:
    return None


def test_indices_stay_within_their_table() -> None:
    samples = sample(inputs_of(load_model(text(TABLE))), accept, SampleOptions(), 3)
    assert [feeds["ids"].shape for feeds in samples] == [(2, 64), (3, 64), (1, 64)]
    assert all(set(feeds["ids"].ravel()) == {0, 1, 2} for feeds in samples)


def test_sizes_are_tried_until_the_model_accepts_them() -> None:
    def picky(feeds: Feeds) -> None:
        if feeds["ids"].shape[1] % 5:
            raise InputError("not a multiple of five")

    samples = sample(inputs_of(load_model(text(TABLE))), picky, SampleOptions(), 1)
    assert samples[0]["ids"].shape == (2, 320)


def test_options_of_the_caller_are_used() -> None:
    inputs = inputs_of(load_model(text(TABLE)))
    options = SampleOptions(ranges={"ids": ValueRange(1, 1)}, shapes={"ids": (1, 4)})
    samples = sample(inputs, accept, options, 2)
    assert [feeds["ids"].tolist() for feeds in samples] == [[[1, 1, 1, 1]]]
    ids = np.zeros((1, 1), np.int64)
    assert sample(inputs, accept, SampleOptions(arrays={"ids": ids}), 2)[0]["ids"] is ids


def test_equal_names_of_sizes_get_equal_sizes() -> None:
    model = load_model(
        text("g (float[A,B] x, float[B,C] z) => (float[A,C] y) { y = MatMul (x, z) }")
    )
    feeds = sample(inputs_of(model), accept, SampleOptions(), 1)[0]
    assert feeds["x"].shape[1] == feeds["z"].shape[0]


def test_every_kind_of_number() -> None:
    kinds = ("float16", "double", "bool", "uint8", "int32", "bfloat16")
    inputs = ", ".join(f"{kind}[200] {kind}_x" for kind in kinds)
    model = load_model(text(f"g ({inputs}, float x) => (float y) {{ y = Relu(x) }}"))
    feeds = sample(inputs_of(model), accept, SampleOptions(), 1)[0]
    assert {name: str(array.dtype) for name, array in feeds.items()} == {
        "float16_x": "float16",
        "double_x": "float64",
        "bool_x": "bool",
        "uint8_x": "uint8",
        "int32_x": "int32",
        "bfloat16_x": "uint16",
        "x": "float32",
    }
    assert feeds["uint8_x"].max() > 200
    assert all(len(np.unique(array)) > 1 for array in feeds.values() if array.size > 1)


def test_refusals_are_one_sentence() -> None:
    def refuse(_: Feeds) -> None:
        raise InputError("no")

    model = load_model(text(TABLE))
    with pytest.raises(InputError, match=r"no random input fits the model \(no\)"):
        sample(inputs_of(model), refuse, SampleOptions(), 1)
    with pytest.raises(InputError, match="has no input 'z'; it has: ids"):
        sample(inputs_of(model), accept, SampleOptions(shapes={"z": (1,)}), 1)
    graph = "g (seq(float[2]) s) => (int64 y) { y = SequenceLength(s) }"
    sequence = load_model(text(graph))
    with pytest.raises(InputError, match=r"'s' is seq\(tensor\(float\)\), which can't be drawn"):
        sample(inputs_of(sequence), accept, SampleOptions(), 1)


def test_scalars_stay_arrays() -> None:
    kinds = ("float", "double", "float16", "bool", "uint8", "int64", "bfloat16", "string")
    inputs = ModelInputs(tuple(ModelValue(kind, f"tensor({kind})", ()) for kind in kinds))
    for array in draw(inputs).values():
        assert isinstance(array, np.ndarray)
        assert array.shape == ()


def test_words_are_the_models_own() -> None:
    graph = """g (string[4] s) => (bool[4] y) {
        known = Constant <value = string[2] {"owl", "cat"}> () first = Constant <value_int=0> ()
        word = Gather (known, first) y = Equal (s, word) }"""
    drawn = draw(inputs_of(load_model(text(graph))))["s"]
    assert drawn.dtype == np.dtype(object)
    assert set(drawn) <= {"owl", "cat"}


def test_every_open_size_is_in_the_options() -> None:
    floats = "tensor(float)"
    values = (
        ModelValue("images", floats, ("n", 3, "h", "w")),
        ModelValue("mask", floats, ("n", "h")),
        ModelValue("ids", "tensor(int64)", ("n", "s")),
        ModelValue("past", floats, ("n", 4, "past", 16)),
        ModelValue("total", floats, ("n", "past + s")),
        ModelValue("bytes", "tensor(uint8)", (None, None, None, 3)),
        ModelValue("odd name", floats, (None,)),
        ModelValue("fixed", floats, (1, 2)),
    )
    options = shape_options(values)
    assert options == (
        "--shape images=1x3x640x640 --shape ids=1x64 --shape past=1x4x64x16"
        " --shape bytes=1x640x640x3 --shape 'odd name=1'"
    )
    assert shape_options(values[-1:]) == ""
    sentence = open_sizes_sentence(values[:1])
    assert sentence.startswith("input 'images' has the dynamic axes 0 (n), 2 (h) and 3 (w): give")


def test_sizes_given_bind_equal_names() -> None:
    values = (
        ModelValue("x", "tensor(float)", ("n", 3)),
        ModelValue("y", "tensor(float)", ("n", "n + 1")),
    )
    assert [value.shape for value in bound(values, {"x": (2, 3)})] == [(2, 3), (2, 3)]
    for shapes, sentence in (
        ({"z": (1,)}, "no input 'z'"),
        ({"x": (1, 4)}, "input 'x' has shape nx3: 1x4 does not fit"),
        ({"x": (1, 3), "y": (2, 3)}, "does not fit"),
    ):
        with pytest.raises(InputError, match=sentence):
            bound(values, shapes)


def test_an_expression_without_a_whole_size_still_gets_an_example() -> None:
    values = tuple(ModelValue(dim, "tensor(float)", (dim,)) for dim in ("s", "s/2"))
    assert shape_options(values) == "--shape s=1 --shape s/2=1"
