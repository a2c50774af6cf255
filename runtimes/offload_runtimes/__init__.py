"""Run bundles: the session on the device, the server, and the protocol between them.

An application imports everything it needs from here; each name is loaded when it is first used.

onnxruntime's own wheels send usage data to Microsoft, on Linux too (seen in 1.32,
microsoft/onnxruntime#27379), and keep a device number in the user's cache. That is turned off here,
before onnxruntime is imported, unless ORT_DISABLE_TELEMETRY is set.
"""

import importlib
import os
from typing import TYPE_CHECKING

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from offload.costs.link import parse_link
    from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError

    from offload_runtimes.client import OffloadSession
    from offload_runtimes.device.session_options import SessionOptions
    from offload_runtimes.local import open_session
    from offload_runtimes.measure.probe import probe
    from offload_runtimes.security.credentials import ClientSecurity

__all__ = [
    "BundleError",
    "ClientSecurity",
    "DeadlineError",
    "InputError",
    "OffloadError",
    "OffloadSession",
    "ServerError",
    "SessionOptions",
    "open_session",
    "parse_link",
    "probe",
]

_HOMES = {
    **dict.fromkeys(__all__, "offload.errors"),
    "ClientSecurity": "offload_runtimes.security.credentials",
    "OffloadSession": "offload_runtimes.client",
    "SessionOptions": "offload_runtimes.device.session_options",
    "open_session": "offload_runtimes.local",
    "parse_link": "offload.costs.link",
    "probe": "offload_runtimes.measure.probe",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
