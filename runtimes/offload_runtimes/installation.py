"""What is installed on this machine: versions, packages, and a check that onnxruntime works.

Some wheels crash with an illegal instruction on some processors, at import or in a kernel. So
`preflight` runs in a process of its own, before anything depends on onnxruntime, and computes a
convolution and a matrix product.
"""

import base64
import hashlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import offload
from offload.errors import InputError
from offload.records import fields_to_json

from offload_runtimes.device_requirements import MODULES

CPU = "CPUExecutionProvider"
# The model `y = M @ M.T, M = reshape(relu(conv(x, w)))`: x 1x1x8x8, w 16x1x3x3 of 1/8, padding 1.
# A device has no onnx package to build it with; a test builds it again.
MODEL = (
    "CAgSADqlAgozCgJ3cxIBdyIPQ29uc3RhbnRPZlNoYXBlKhkKBXZhbHVlKg0IARABIgQAAAA+QgF2oAEECiIKAXgK"
    "AXcSAWMiBENvbnYqEQoEcGFkc0ABQAFAAUABoAEHCgwKAWMSAXIiBFJlbHUKEgoBcgoBcxIBbSIHUmVzaGFwZQoR"
    "CgFtEgF0IglUcmFuc3Bvc2UKEQoBbQoBdBIBeSIGTWF0TXVsEglwcmVmbGlnaHQqKggEEAdCAndzSiAQAAAAAAAA"
    "AAEAAAAAAAAAAwAAAAAAAAADAAAAAAAAACoZCAIQB0IBc0oQEAAAAAAAAABAAAAAAAAAAFobCgF4EhYKFAgBEhAK"
    "AggBCgIIAQoCCAgKAggIYhMKAXkSDgoMCAESCAoCCBAKAggQQgQKABAN"
)


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of the software that runs models on a machine.

    Attributes:
        version: of this product.
        onnxruntime: its version.
        python: its version.
        platform: system and processor, like `Linux-6.1-aarch64-with-glibc2.36`.
        providers: execution providers that onnxruntime was built with, by their short names.
    """

    version: str
    onnxruntime: str
    python: str
    platform: str
    providers: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return fields_to_json(self)


@cache
def source_digest() -> str:
    """Digest of this product's own code: equal on machines that run exactly the same."""
    digest = hashlib.sha256()
    assert offload.__file__ is not None
    for package in (Path(offload.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package.parent).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> Versions:
    """The versions on this machine; loads onnxruntime."""
    from offload_runtimes.engine import ORT_VERSION, available_providers

    # As `platform.platform()`, which would start a process (`uname -p`) in the application's.
    system, libc = os.uname(), "".join(platform.libc_ver())
    return Versions(
        offload.__version__,
        ORT_VERSION,
        platform.python_version(),
        f"{system.sysname}-{system.release}-{system.machine}{libc and f'-with-{libc}'}",
        available_providers(),
    )


def preflight(providers: Sequence[str] = (), *, allow_cpu: bool = False) -> dict[str, Any]:
    """Import the runtime's packages, compute a small model on the providers, check its output.

    Args:
        providers: execution providers that must do the work; none: the CPU.
        allow_cpu: use the CPU, with a warning, where a provider is missing.

    Returns:
        Versions of what was imported, the packages installed, the providers that computed, and
        the seconds it took.

    Raises:
        InputError: a package is missing or broken, a provider is missing or computes nothing, or
            the numbers are wrong.
    """
    start_s = time.monotonic()
    imported = {}
    for name in MODULES:
        try:
            imported[name] = str(getattr(import_module(name), "__version__", ""))
        except ImportError as error:
            raise InputError(
                f"{name} can't be imported ({error}): run `offload device init`"
            ) from error
    import numpy as np  # not on top: it may be broken

    from offload_runtimes.engine import EngineOptions, load, short_name
    from offload_runtimes.engine.profiling import kernel_providers

    options = EngineOptions(tuple(providers), allow_cpu=allow_cpu)
    model, x = base64.b64decode(MODEL), np.linspace(-1, 1, 64, dtype=np.float32)
    feeds = {"x": x.reshape(1, 1, 8, 8)}
    engine = load(model, options)
    (y,) = engine.run(None, feeds)
    off = float(np.abs(y - _expected(feeds["x"])).max() / np.abs(y).max())
    if not off < (1e-4 if engine.providers[0] == CPU else 1e-2):  # GPUs round to TF32
        raise InputError(
            f"onnxruntime computes wrong numbers on this machine (off by {off:.2g}): install"
            " another version"
        )
    used = kernel_providers(model, feeds, options)
    provider = short_name(engine.providers[0])
    if provider not in used:
        raise InputError(
            f"{provider} computes nothing on this machine, onnxruntime runs a convolution on"
            f" {', '.join(sorted(used))} instead: install the libraries of {provider}"
        )
    return {
        "ok": True,
        "versions": imported,
        "packages": packages(),
        "provider": provider,
        "seconds": time.monotonic() - start_s,
    }


def packages() -> list[dict[str, Any]]:
    """Name, version and size of every package of this environment but the installer."""
    from importlib import metadata  # takes 20 ms

    rows = []
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name not in ("pip", "setuptools", "wheel"):
            paths = [Path(str(file.locate())) for file in package.files or ()]
            size_bytes = sum(path.stat().st_size for path in paths if path.is_file())
            rows.append({"name": name, "version": package.version, "size_bytes": size_bytes})
    return sorted(rows, key=lambda entry: -int(entry["size_bytes"]))


def _expected(x: Any) -> Any:
    """The model's output, by numpy: all 16 channels are the same sum of neighbours."""
    import numpy as np

    padded = np.pad(x[0, 0].astype(np.float64), 1)
    sums = sum(padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 8
    row = np.maximum(sums, 0).ravel()
    return np.full((16, 16), row @ row)
