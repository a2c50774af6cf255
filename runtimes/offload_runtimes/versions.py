"""Versions of what runs models on this machine: the product, onnxruntime, Python."""

import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any

from offload_runtimes.light import PRODUCT, RUNTIME


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
        product_version(),
        ORT_VERSION,
        platform.python_version(),
        platform.platform(),
        available_providers(),
    )


@cache
def product_version() -> str:
    """The version of this product, or of its light runtime; `unknown` when it is not installed."""
    for name in (PRODUCT, RUNTIME):
        for found in metadata.distributions(name=name):
            return found.version
    return "unknown"
