"""Small bundles made by hand, with the whole model as the oracle."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from offload.bundle.bundle import (
    BUNDLE_FORMAT,
    MANIFEST,
    PLAN,
    Bundle,
    file_digest,
    manifest_digest,
    open_bundle,
)
from offload.planning.plan import Action, Forecast, Plan, Segment, Send, Side, Step
from offload.planning.plan_set import EVERYWHERE, PlanSet
from offload.records import to_json
from offload.scheduling.instance import Instance, Job
from offload_runtimes.engine import load
from onnx import helper

from tests.runtimes import models

RNG = np.random.default_rng(7)
Part = tuple[Segment, onnx.ModelProto]

NO_FORECAST = Forecast(Instance((Job("nothing", 0.0),)), (None,), ())


@dataclass(frozen=True)
class Made:
    """A bundle and the model it was cut from."""

    bundle: Bundle
    whole: onnx.ModelProto

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            value.name: rng.standard_normal(
                [size if isinstance(size, int) else 3 for size in value.shape or ()]
            ).astype(np.float32)
            for value in self.bundle.inputs
        }

    def expected(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return load(self.whole.SerializeToString()).run(None, feeds)


def segment(name: str, side: Side, inputs: Iterable[str], outputs: Iterable[str]) -> Segment:
    return Segment(name, side, (), (), tuple(inputs), tuple(outputs))


def write(
    folder: Path,
    whole: onnx.ModelProto,
    parts: Iterable[Part],
    steps: Iterable[tuple[str, str]],
    uploads: Iterable[Send],
    downloads: Iterable[str],
    why_alone: Mapping[str, str] = MappingProxyType({}),
) -> Made:
    """Write the files, the plan and the manifest; `why_alone` by part, as in `BundleFile`."""
    folder.mkdir(parents=True)
    parts = list(parts)
    plan = Plan(
        model="0" * 64,
        scheme="opss",
        segments=tuple(part for part, _ in parts),
        uploads=tuple(uploads),
        downloads=tuple(Send(name, None) for name in downloads),
        steps=tuple(Step(Action(action), target) for action, target in steps),
        forecast=NO_FORECAST,
        lower_bound_s=0.0,
        status="optimal",
        solver="hand",
    )
    (folder / PLAN).write_text(json.dumps(plan.to_json()))
    sides = {PLAN: tuple(Side)}
    for part, proto in parts:
        onnx.save(proto, folder / part.file)
        sides[part.file] = (part.side,)
    _seal(folder, whole, sides, why_alone)
    return Made(open_bundle(folder, tuple(Side)), whole)


def _seal(
    folder: Path,
    whole: onnx.ModelProto,
    sides: dict[str, tuple[Side, ...]],
    why_alone: Mapping[str, str],
) -> None:
    engine = load(whole.SerializeToString())
    content = {
        "format": BUNDLE_FORMAT,
        "inputs": to_json(engine.inputs),
        "outputs": to_json(engine.outputs),
        "defaults": [],
        "plans": [PLAN],
        "ranges": to_json(EVERYWHERE),
        "files": {
            name: {
                "sha256": file_digest(folder / name),
                "size_bytes": (folder / name).stat().st_size,
                "sides": [side.value for side in needed],
                "why_alone": why_alone.get(Path(name).stem, "not checked"),
            }
            for name, needed in sides.items()
        },
    }
    manifest = {"digest": manifest_digest(content), **content}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def deployed(made: Made, side: Side, folder: Path) -> Path:
    """One side's half of a bundle, as `deploy` leaves it."""
    return deployed_bundle(made.bundle, side, folder)


def deployed_bundle(bundle: Bundle, side: Side, folder: Path) -> Path:
    """As `deployed`, of any bundle."""
    folder.mkdir(parents=True)
    names = [file.name for file in bundle.files if side in file.sides]
    for name in [MANIFEST, *names]:
        (folder / name).write_bytes((bundle.path / name).read_bytes())
    return folder


def branches(
    folder: Path, *, width: int = 64, count: int = 2, encoding: str = "raw", batch: int | str = 1
) -> Made:
    """`count` branches on the device, joined on the server; `batch` may be dynamic.

    The last branch is also an output of the model, made on the device.
    """
    weights = {
        f"w{i}": (RNG.standard_normal((width, width)) / 8).astype(np.float32)
        for i in range(count + 1)
    }
    x, y = models.floats("x", batch, width), models.floats("y", batch, width)
    names = [f"t{i}" for i in range(count)]
    infos = [models.floats(name, batch, width) for name in names]
    made = [_branch(i) for i in range(count)]
    tail = [
        helper.make_node("Sum", names, ["s"], "sum"),
        helper.make_node("MatMul", ["s", f"w{count}"], ["y"], "tail"),
    ]
    whole = models.model(
        [node for nodes in made for node in nodes] + tail, [x], [y, infos[-1]], weights
    )
    parts: list[Part] = [
        (
            segment(f"device-{i}", Side.DEVICE, ["x"], [names[i]]),
            models.model(nodes, [x], [infos[i]], {f"w{i}": weights[f"w{i}"]}),
        )
        for i, nodes in enumerate(made)
    ]
    server = models.model(tail, infos, [y], {f"w{count}": weights[f"w{count}"]})
    parts.append((segment("server-0", Side.SERVER, names, ["y"]), server))
    steps = [step for i in range(count) for step in (("run", f"device-{i}"), ("send", names[i]))]
    uploads = [Send(name, 4 * width, encoding) for name in names]
    apart = {"server-0": ""} if isinstance(batch, str) else {}
    return write(folder, whole, parts, steps, uploads, ["y"], apart)


def _branch(index: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", ["x", f"w{index}"], [f"m{index}"], f"branch{index}"),
        helper.make_node("Relu", [f"m{index}"], [f"t{index}"], f"relu{index}"),
    ]


def there_and_back(folder: Path, width: int = 16) -> Made:
    """Device, server, device, server: x -> a | b | c | y."""
    names = ["x", "a", "b", "c", "y"]
    infos = [models.floats(name, 1, width) for name in names]
    ops = ["Relu", "Neg", "Exp", "Neg"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]], f"n{i}") for i, op in enumerate(ops)]
    sides = [("device-0", Side.DEVICE), ("server-0", Side.SERVER)]
    sides += [("device-1", Side.DEVICE), ("server-1", Side.SERVER)]
    parts: list[Part] = [
        (
            segment(name, side, [names[i]], [names[i + 1]]),
            models.model([nodes[i]], [infos[i]], [infos[i + 1]]),
        )
        for i, (name, side) in enumerate(sides)
    ]
    steps = [("run", "device-0"), ("send", "a"), ("run", "device-1"), ("send", "c")]
    uploads = [Send("a", 4 * width), Send("c", 4 * width)]
    whole = models.model(nodes, [infos[0]], [infos[-1]])
    return write(folder, whole, parts, steps, uploads, ["b", "y"])


def on_one_side(folder: Path, side: Side) -> Made:
    """The whole model in one segment: all local, or all on the server."""
    x, y = models.floats("x", 1, 8), models.floats("y", 1, 8)
    whole = models.model([helper.make_node("Exp", ["x"], ["y"], "exp")], [x], [y])
    part = segment(f"{side.value}-0", side, ["x"], ["y"])
    if side is Side.DEVICE:
        return write(folder, whole, [(part, whole)], [("run", part.id)], [], [])
    return write(folder, whole, [(part, whole)], [("send", "x")], [Send("x", 32)], ["y"])


def with_plan(made: Made, **changes: object) -> Bundle:
    """The same bundle with another plan in memory, its files unchanged."""
    plan = replace(made.bundle.plan, **changes)  # type: ignore[arg-type]
    return replace(made.bundle, plan_set=PlanSet((plan,)))
