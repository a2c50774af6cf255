"""`offload up --try` with an emulated 64-bit Pi as the device: equal answers, no timing."""

import json
import time
from pathlib import Path

import pytest
from offload_models import pretrained
from offload_models.zoo import save

from tests.runtimes.deploy.pi import make_pi, missing_tools
from tests.runtimes.deploy.sshd import needs_sshd
from tests.up.machines import two_machines

pytestmark = [
    pytest.mark.slow,
    needs_sshd,
    pytest.mark.skipif(missing_tools() != "", reason=missing_tools()),
    pytest.mark.timeout(900),
]


def test_the_text_line_classifier_gives_equal_answers(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pi = make_pi(tmp_path_factory.mktemp("pi"))
    with two_machines(tmp_path) as machines:
        machines.configure(pi=f'python = "{pi.python}"')
        model = machines.folder / "net.onnx"
        save(pretrained.build("text_orientation"), model)
        begun_s = time.monotonic()
        words = ("up", "net.onnx", "pi", "hub", "--try", "--runs", "2", "--format", "json")
        result = json.loads(machines.ok(*words, timeout_s=600))
        print(f"\narm64: up --try in {time.monotonic() - begun_s:.0f} s")
        assert "aarch64" in result["device"]["machine"]
        assert {"LO", "CO"} <= {n for s in result["schemes"] for n in s["label"].split(" = ")}
        assert all(scheme["difference"] <= 1e-3 for scheme in result["schemes"])
        assert not result["running"]
        assert not (machines.root("pi") / "current").exists()
