"""A stdout that is not UTF-8: every command's text gets through."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.front_door.apps import frame, split_chain
from tests.front_door.door import ESTIMATED, Door, save, value

LINKS = ("--link", "1..100 Mbit/s", "--points", "3")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A folder with a model, its bundle and inputs."""
    made = Door(tmp_path_factory.mktemp("chain"))
    split_chain(made)
    np.savez(made.folder / "in.npz", **frame(1))
    nodes = [helper.make_node("Relu", ["größe"], ["層"])]
    save(Path(made.folder / "names.onnx"), nodes, [value("größe", 4)], [value("層", 4)])
    return made


def test_text_gets_through(chain: Door) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    ran = chain.offload("run", "b", "--input", "in.npz", env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "#" in ran.stdout, "the chart's bars"
    chain.ok("simulate", "net.onnx", "--shape", "x=1x16", *ESTIMATED, *LINKS, env=env)


def test_names_are_shown_not_lost(chain: Door) -> None:
    shown = chain.ok("inspect", "names.onnx", env={"PYTHONIOENCODING": "ascii"})
    assert r"\u5c64" in shown
    assert r"gr\xf6\xdfe" in shown
