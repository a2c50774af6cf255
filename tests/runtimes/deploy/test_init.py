"""Putting the runtime on a target over real SSH: one that works, one that crashes."""

import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from offload.errors import InputError, OffloadError
from offload_runtimes.deploy.provision import Installed, init_devices
from offload_runtimes.deploy.targets import TargetConfig, find_target
from offload_runtimes.device_requirements import MODULES

from tests.runtimes.deploy.sshd import Sshd, make_user, needs_sshd, running

pytestmark = [pytest.mark.slow, needs_sshd]
NAMES = {
    "grpc": "grpcio",
    "grpc_health": "grpcio_health_checking",
    "google.protobuf": "protobuf",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with running(tmp_path / "sshd", make_user(tmp_path / "home")) as server:
        yield server


def init(target: TargetConfig, wheelhouse: Path | None = None) -> Installed:
    (result,) = init_devices([target], wheelhouse, None, lambda *_: None, system_cuda=False)
    if isinstance(result, OffloadError):
        raise result
    return result


def write_wheel(folder: Path, name: str, module: str, code: str) -> None:
    info = f"{name}-99.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module.replace('.', '/')}/__init__.py", code)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "illegal instruction"),
        ("raise ImportError('libgomp.so.1 is missing')", r"libgomp\.so\.1 is missing"),
    ],
)
def test_a_wheel_that_crashes_is_named_and_the_old_runtime_stays(
    server: Sshd, tmp_path: Path, code: str, words: str
) -> None:
    house = tmp_path / "wheels"
    house.mkdir()
    for module in (*MODULES, "typing_extensions"):
        ill = code if module == "onnxruntime" else ""
        write_wheel(house, NAMES.get(module, module), module, ill)
    old = server.folder / "target/runtime/venvs/old"
    old.mkdir(parents=True)
    current = server.folder / "target/runtime/current"
    current.symlink_to("venvs/old")
    place = replace(find_target(server.target(), {}), python=sys.executable)
    with pytest.raises(InputError, match=words) as seen:
        init(place, house)
    assert "\n" not in str(seen.value)
    assert current.resolve() == old
    assert [path.name for path in old.parent.iterdir()] == ["old"]


def test_a_wheelhouse_that_lacks_something_is_told(server: Sshd, tmp_path: Path) -> None:
    house = tmp_path / "wheels"
    house.mkdir()
    write_wheel(house, "numpy", "numpy", "")
    place = replace(find_target(server.target(), {}), python=sys.executable)
    with pytest.raises(InputError, match=r"pip on .* failed: .*onnxruntime"):
        init(place, house)
    assert not (server.folder / "target/runtime/current").exists()


def test_init_makes_a_runtime_that_proves_releases(server: Sshd) -> None:
    """From the index that pip here uses; skipped where there is none."""
    place = replace(find_target(server.target(), {}), python=sys.executable)
    try:
        done = init(place)
    except InputError as error:
        if "failed" in str(error):
            pytest.skip(f"no package index here: {error}")
        raise
    assert done.python == str(server.folder / "target/runtime/current/bin/python")
    names = {package.name for package in done.packages}
    assert names == {*_DISTRIBUTIONS, "onnx-offload-runtime"}
    total_bytes = sum(package.size_bytes for package in done.packages)
    print(f"\n{done.machine}: {len(names)} packages, {total_bytes / 1e6:.0f} MB installed")


_DISTRIBUTIONS = (
    "numpy",
    "onnxruntime",
    "grpcio",
    "protobuf",
    "zstandard",
    "prometheus_client",
    "grpcio-health-checking",
    "typing_extensions",
)
