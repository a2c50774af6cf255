"""Versions of the software that runs models on this machine: the product, onnxruntime, Python."""

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import offload
from offload.records import fields_to_json


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
