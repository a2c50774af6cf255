"""Values in files: nothing pickled, nothing lost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload.bundle.bundle import ModelValue
from offload.errors import InputError
from offload_runtimes.value_files import read_values, typed, write_values


def test_arrays_come_back_under_their_names(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    names = ("file", "allow_pickle", "../y", "/y", "a/b", "y.npy")
    values = {name: np.full((2, 0) if name == "/y" else (), 3.0) for name in names}
    values["text"] = np.array([["owl", ""]], object)
    assert write_values(path, values) == (path,)
    found = read_values(path)
    assert list(found) == list(values)
    for name, array in found.items():
        assert array.shape == values[name].shape
        np.testing.assert_array_equal(array, values[name])
    assert found["text"].dtype == np.dtype("<U3")


def test_sequences_maps_and_text_that_numpy_would_cut_are_json(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "y": np.zeros(1),
        "rows": [{1: 0.25, 2: 0.75}],
        "parts": [np.eye(2), np.array(["a"], object)],
        "ends": np.array(["a\0"], object),
    }
    written = write_values(tmp_path / "out.npz", values)
    assert [path.name for path in written] == ["out.npz", "out.json"]
    assert list(read_values(written[0])) == ["y"]
    assert json.loads(written[1].read_text()) == {
        "rows": [{"1": 0.25, "2": 0.75}],
        "parts": [[[1, 0], [0, 1]], ["a"]],
        "ends": ["a\0"],
    }
    assert write_values(tmp_path / "out", values)[1].name == "out.json"


def test_json_becomes_what_the_inputs_declare(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text('{"d": {"1": 2}, "s": [[1, 2], []], "t": ["a"], "x": [[1]], "more": 1}')
    kinds = {
        "d": "map(int64,tensor(float))",
        "s": "seq(tensor(int64))",
        "t": "tensor(string)",
        "x": "tensor(float16)",
    }
    found = typed(read_values(path), [ModelValue(name, kind, None) for name, kind in kinds.items()])
    assert found["d"] == {1: 2}
    assert [(part.dtype, part.tolist()) for part in found["s"]] == [
        ("int64", [1, 2]),
        ("int64", []),
    ]
    assert (found["t"].dtype, found["x"].dtype) == (object, np.float16)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"x": {"a": 1}}', "map(int64,tensor(float))"),
        ('{"x": 1}', "seq(tensor(float))"),
        ('{"x": 1}', "map(string,tensor(float))"),
        ('{"x": [[1], [1, 2]]}', "tensor(float)"),
        ('{"x": "a"}', "tensor(float)"),
    ],
)
def test_json_that_does_not_fit_is_one_sentence(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "in.json"
    path.write_text(text)
    with pytest.raises(InputError, match="JSON value of input 'x' does not fit its type") as caught:
        typed(read_values(path), [ModelValue("x", kind, None)])
    assert "\n" not in str(caught.value)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(1))
    np.savez(tmp_path / "pickled.npz", x=np.array(["a"], object))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "cut.json").write_text("{")
    for name, said in (
        ("one.npy", "one array without a name"),
        ("pickled.npz", "plain arrays"),
        ("empty.npz", "plain arrays"),
        ("none.npz", "does not exist"),
        ("none.json", "does not exist"),
        ("list.json", "JSON object"),
        ("cut.json", "not a JSON file"),
    ):
        with pytest.raises(InputError, match=said):
            read_values(tmp_path / name)
