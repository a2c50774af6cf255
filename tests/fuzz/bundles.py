"""Bundles with a changed manifest or plan, whose digests are recomputed to reach more code."""

import copy
import hashlib
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from offload.bundle.bundle import BUNDLE_FORMAT, MANIFEST, PLAN, manifest_digest, open_bundle
from offload.errors import OffloadError
from offload.planning.plan import Action, Forecast, Plan, Segment, Send, Side, Step
from offload.planning.plan_set import EVERYWHERE
from offload.records import to_json
from offload.scheduling.instance import Instance, Job
from offload_runtimes.protocol.tensor_specs import contracts

from tests.fuzz.draw import Draw

_NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**64, 10**400, 1e308, float("nan"), float("inf"), "", "x", "../x", "/etc",
    "\ud800", "server", [], [[]], [None], {}, {"": None}, {"format": 1},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Texts:
    """The two texts of a bundle."""

    manifest: bytes
    plan: bytes


def _plan() -> Plan:
    segments = (
        Segment("device-0", Side.DEVICE, ("l0",), (0,), ("x",), ("t",)),
        Segment("server-0", Side.SERVER, ("l1",), (1,), ("t",), ("y",)),
    )
    steps = (Step(Action.RUN, "device-0"), Step(Action.SEND, "t"))
    return Plan(
        model="0" * 64,
        scheme="opss",
        segments=segments,
        uploads=(Send("t", 4),),
        downloads=(Send("y", None),),
        steps=steps,
        forecast=Forecast(Instance((Job("nothing", 0.0),)), (None,), ()),
        lower_bound_s=0.0,
        status="optimal",
        solver="hand",
    )


def _texts() -> Texts:
    value = [{"name": "x", "type": "tensor(float)", "shape": [1, "n"]}]
    files = {
        name: {"sha256": "0" * 64, "size_bytes": 1, "sides": [side]}
        for name, side in (("device-0.onnx", "device"), ("server-0.onnx", "server"))
    }
    content = {
        "format": BUNDLE_FORMAT,
        "inputs": value,
        "outputs": value,
        "defaults": value,
        "plans": [PLAN],
        "ranges": to_json(EVERYWHERE),
        "shares": [1.0],
        "files": files,
    }
    return Texts(json.dumps(content).encode(), json.dumps(_plan().to_json()).encode())


BUNDLES = (_texts(),)


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder for all inputs of this process, removed when it ends."""
    return tempfile.TemporaryDirectory(prefix="offload-fuzz-")


def _folder() -> Path:
    return Path(_scratch().name)


def _changed(text: bytes, draw: Draw) -> Any:
    """The JSON value of a text with unexpected values in some places."""
    value = json.loads(text)
    for _ in range(1 + draw.byte() % 3):
        value = _replaced(value, draw)
    return value


def _replaced(value: Any, draw: Draw) -> Any:
    """The value with one place changed; the bytes choose the way to it."""
    if not isinstance(value, dict | list) or not value or draw.byte() < 40:
        return copy.deepcopy(draw.one_of(_NASTY))
    key = draw.one_of(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.byte() < 20:
        return {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else []
    value[key] = _replaced(value[key], draw)
    return value


def _value(data: bytes, text: bytes) -> Any:
    """The JSON in the data, or a valid one changed by it; None if the data is not JSON."""
    if data[:1] != b"{":
        return _changed(text, Draw(data))
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def read_manifest(data: bytes) -> None:
    """Read a changed manifest with a valid plan."""
    manifest = _value(data, BUNDLES[0].manifest)
    if isinstance(manifest, dict):
        if isinstance(manifest.get("files"), dict):
            manifest["files"][PLAN] = _entry(BUNDLES[0].plan)
        manifest.pop("digest", None)
        with suppress(ValueError):
            manifest["digest"] = manifest_digest(manifest)
    text = data if manifest is None else json.dumps(manifest).encode()
    _write(_folder(), text, BUNDLES[0].plan)
    _open()


def read_plan(data: bytes) -> None:
    """Read a changed plan with a valid manifest."""
    plan = _value(data, BUNDLES[0].plan)
    seal(_folder(), data if plan is None else json.dumps(plan).encode())
    _open()


def seal(folder: Path, plan: bytes) -> None:
    """Write a bundle with this plan and the right digests."""
    manifest = json.loads(BUNDLES[0].manifest)
    manifest["files"][PLAN] = _entry(plan)
    _write(folder, json.dumps({**manifest, "digest": manifest_digest(manifest)}).encode(), plan)


def _write(folder: Path, manifest: bytes, plan: bytes) -> None:
    (folder / MANIFEST).write_bytes(manifest)
    (folder / PLAN).write_bytes(plan)


def _entry(text: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(text).hexdigest()
    return {"sha256": digest, "size_bytes": len(text), "sides": ["device", "server"]}


def _open() -> None:
    """Open the bundle and use it as a server does; only the four errors may be raised."""
    folder = _folder()
    with suppress(OffloadError):
        bundle = open_bundle(folder)
        for segment in bundle.parts():
            assert bundle.segment_path(segment.part).parent == folder
        assert len(contracts(bundle, {})) == len(bundle.plans)
        assert all(
            bundle.path / file.name == folder / Path(file.name).name for file in bundle.files
        )
        assert bundle.needs_server in (True, False)
