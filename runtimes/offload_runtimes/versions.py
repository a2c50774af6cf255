"""Versions of what runs models on this machine: the product, onnxruntime, Python."""

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import offload


@dataclass(frozen=True, slots=True)
class Versions:
    """What runs models on a machine.

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
        return {**asdict(self), "providers": list(self.providers)}


def versions() -> Versions:
    """The versions on this machine; loads onnxruntime."""
    from offload_runtimes.engine import ORT_VERSION, available_providers

    return Versions(
        offload.__version__,
        ORT_VERSION,
        platform.python_version(),
        _platform(),
        available_providers(),
    )


def _platform() -> str:
    """As `platform.platform()`, which would start a process (`uname -p`) in the application's."""
    found = os.uname()
    libc = "".join(platform.libc_ver())
    return f"{found.sysname}-{found.release}-{found.machine}{libc and f'-with-{libc}'}"
