"""gRPC's experiments are set for the versions that were tried, and nothing is logged."""

import subprocess
import sys

import pytest
from offload_runtimes.transport import experiments


@pytest.mark.parametrize(
    ("version", "is_tried"),
    [
        ("1.70.0", True),
        ('__version__ = """1.85.3"""', True),
        ("1.69.9", False),
        ("1.86.0rc1", False),
        ("2.0.0", False),
        ("", False),
    ],
)
def test_experiments_are_set_for_the_versions_that_were_tried(version: str, is_tried: bool) -> None:
    assert bool(experiments(version)) is is_tried


CONNECT = """
import os
import offload_runtimes.transport
import grpc
try:
    grpc.insecure_channel("127.0.0.1:1").unary_unary("/a/b")(b"", timeout=5)
except grpc.RpcError as error:
    print(error.code().name, "GRPC_EXPERIMENTS" in os.environ)
"""


def test_the_installed_version_knows_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", CONNECT], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("UNAVAILABLE False\n", "")
