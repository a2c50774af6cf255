"""`offload serve --engine ray` where Ray is not needed to say what is wrong."""

from importlib.util import find_spec

import pytest

from tests.front_door.door import Door

RAY = ("--engine", "ray")


@pytest.fixture
def door(door: Door) -> Door:
    """The command, with a bundle `b`."""
    door.split_two_layers()
    return door


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_ray_is_not_installed(door: Door) -> None:
    said = door.refused("serve", "b", *RAY)
    assert "Ray Serve is not installed" in said
    assert "pip install 'onnx-offload[ray]'" in said


def test_options_of_ray_need_the_engine(door: Door) -> None:
    for words in (("--replicas", "2"), ("--gpus", "1"), ("--ray-address", "auto")):
        assert "add --engine ray" in door.refused("serve", "b", *words)


def test_certificates_are_refused(door: Door) -> None:
    said = door.refused("serve", "b", *RAY, "--cert", "server.pem", "--key", "server.key")
    assert "Ray's ingress has no TLS" in said
    assert "docs/scale.md" in said


def test_plaintext_beyond_this_machine_is_refused(door: Door) -> None:
    assert "not encrypted" in door.refused("serve", "b", *RAY, "--listen", "0.0.0.0:50051")


@pytest.mark.parametrize("replicas", ["none", "2..", "0", "4..2", "1..2..3"])
def test_replicas_are_a_number_or_a_range(door: Door, replicas: str) -> None:
    assert "1..4" in door.refused("serve", "b", *RAY, "--replicas", replicas)


@pytest.mark.parametrize("option", ["colour", "=1", "a=1 a.b=2"])
def test_options_are_names_and_values(door: Door, option: str) -> None:
    words = [word for text in option.split() for word in ("--ray-option", text)]
    assert "--ray-option" in door.refused("serve", "b", *RAY, *words)


def test_a_part_of_several_gpus_is_refused(door: Door) -> None:
    assert "whole number of GPUs" in door.refused("serve", "b", *RAY, "--gpus", "1.5")


def test_a_missing_bundle_is_named(door: Door) -> None:
    assert "missing" in door.refused("serve", "missing", *RAY)
