"""Find out whether onnxruntime works on this machine, before anything depends on it.

Some wheels crash with an illegal instruction on some processors, at import or in a kernel. So
this runs in a process of its own, and computes a convolution and a matrix product for real.
"""

import base64
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from offload.errors import InputError

from offload_runtimes.light import MODULES

# The model `y = M @ M.T, M = reshape(relu(conv(x, w)))`: x 1x1x8x8, w 16x1x3x3 of 1/8, padding 1.
# A device has no onnx package to build it with; a test builds it again.
MODEL = (
    "CAgSADqlAgozCgJ3cxIBdyIPQ29uc3RhbnRPZlNoYXBlKhkKBXZhbHVlKg0IARABIgQAAAA+QgF2oAEECiIKAXgK"
    "AXcSAWMiBENvbnYqEQoEcGFkc0ABQAFAAUABoAEHCgwKAWMSAXIiBFJlbHUKEgoBcgoBcxIBbSIHUmVzaGFwZQoR"
    "CgFtEgF0IglUcmFuc3Bvc2UKEQoBbQoBdBIBeSIGTWF0TXVsEglwcmVmbGlnaHQqKggEEAdCAndzSiAQAAAAAAAA"
    "AAEAAAAAAAAAAwAAAAAAAAADAAAAAAAAACoZCAIQB0IBc0oQEAAAAAAAAABAAAAAAAAAAFobCgF4EhYKFAgBEhAK"
    "AggBCgIIAQoCCAgKAggIYhMKAXkSDgoMCAESCAoCCBAKAggQQgQKABAN"
)


def preflight() -> dict[str, Any]:
    """Import what the runtime needs, compute a small model, compare.

    Returns:
        Versions of what was imported, the packages installed, and the seconds it took.

    Raises:
        InputError: a package is missing or broken, or the numbers are wrong.
    """
    start_s = time.monotonic()
    versions = {name: _version(name) for name in MODULES}
    import numpy as np  # only now: it may be what is broken

    from offload_runtimes.engine import load

    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    (y,) = load(base64.b64decode(MODEL)).run(None, {"x": x})
    off = float(np.abs(y - _expected(x)).max())
    if not off < 1e-4:
        raise InputError(f"onnxruntime computes wrong numbers here (off by {off:.2g})")
    seconds = time.monotonic() - start_s
    return {"ok": True, "versions": versions, "packages": packages(), "seconds": seconds}


def packages() -> list[dict[str, Any]]:
    """Name, version and size of every package of this environment but the installer."""
    found = []
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name not in ("pip", "setuptools", "wheel"):
            paths = [Path(str(file.locate())) for file in package.files or ()]
            size_bytes = sum(path.stat().st_size for path in paths if path.is_file())
            found.append({"name": name, "version": package.version, "size_bytes": size_bytes})
    return sorted(found, key=lambda entry: -int(entry["size_bytes"]))


def _version(name: str) -> str:
    try:
        return str(getattr(import_module(name), "__version__", ""))
    except ImportError as error:
        raise InputError(
            f"{name} can't be imported ({error}): run `offload device init`"
        ) from error


def _expected(x: Any) -> Any:
    """The model's answer, by numpy: all 16 channels are the same sum of neighbours."""
    import numpy as np

    padded = np.pad(x[0, 0].astype(np.float64), 1)
    sums = sum(padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 8
    row = np.maximum(sums, 0).ravel()
    return np.full((16, 16), row @ row)
