"""A bundle that is served: its contracts, and an engine for each of the server's parts."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Segment, Side
from offload.units import format_bytes

from offload_runtimes.engine import Arena, Engine, EngineOptions, load
from offload_runtimes.serving.batching import Batching, disagreement
from offload_runtimes.serving.lately import Lately
from offload_runtimes.wire.contract import TENSOR_LIMIT_BYTES, Contract, contracts

_WARM_LIMIT_S = 5.0
NO_BATCHING = Batching()
Content: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Hosted:
    """A bundle that is served; plans share engines where they share parts.

    Attributes:
        bundle: the bundle.
        contracts: what may cross, for each plan.
        engines: an engine for each of the server's parts; bundles share those of equal parts.
        contents: the files of each part, by their digests.
        alone: why parts do not run rows of several sessions at once; those that do are missing.
        lately: how long its parts took when they were last run.
    """

    bundle: Bundle
    contracts: tuple[Contract, ...]
    engines: Mapping[str, Engine]
    contents: Mapping[str, Content]
    alone: dict[str, str] = field(default_factory=dict)
    lately: Lately = field(default_factory=Lately)


def host(
    bundle: str | Path | Bundle,
    options: EngineOptions,
    max_run_s: float,
    arena: Arena | None = None,
    batching: Batching = NO_BATCHING,
    limit_bytes: int = TENSOR_LIMIT_BYTES,
    others: Iterable[Hosted] = (),
) -> Hosted:
    """Open a bundle's server part, load and warm its engines, whose memory comes from an arena.

    A tensor of no fixed shape may take `limit_bytes`. A part whose files are those of a part of
    `others` shares its engine, weights included.

    Which parts run rows of several sessions together as alone is tried; warns (RuntimeWarning)
    where they should and do not.

    Raises:
        BundleError: missing or damaged, or its server files are not here.
        InputError: onnxruntime refuses a segment, or the arena is too small for the weights.
    """
    if not isinstance(bundle, Bundle):
        bundle = open_bundle(bundle, (Side.SERVER,))
    segments = bundle.parts(Side.SERVER)
    known = {h.contents[part]: engine for h in others for part, engine in h.engines.items()}
    contents = {segment.part: content_of(bundle, segment) for segment in segments}
    if arena is not None and not known.keys() >= set(contents.values()):
        _check_weights(bundle, arena)
    shared = {part: known[content] for part, content in contents.items() if content in known}
    engines = {
        s.part: shared.get(s.part) or load(bundle.segment_path(s.part), options, arena)
        for s in segments
    }
    loaded = engines.values()
    values = {v.name: v for e in loaded for v in (*e.outputs, *e.inputs, *e.defaults)}
    limit_s = min(max_run_s, _WARM_LIMIT_S)
    for part, engine in engines.items():
        if part not in shared:
            engine.warm(limit_s)
    alone = _alone(bundle, engines, limit_s, batching)
    return Hosted(bundle, contracts(bundle, values, limit_bytes), engines, contents, alone)


def content_of(bundle: Bundle, segment: Segment) -> Content:
    """The files of a part of the server's, by their digests: equal ones compute the same."""
    weights = [
        (file.name, file.sha256)
        for file in bundle.files
        if Side.SERVER in file.sides and not file.name.endswith((".onnx", ".json"))
    ]
    own = [("", file.sha256) for file in bundle.files if file.name == segment.file]
    return tuple(own + weights)


def _check_weights(bundle: Bundle, arena: Arena) -> None:
    """InputError, before anything is loaded, where the server's files alone are too large."""
    files = [bundle.path / file.name for file in bundle.files if Side.SERVER in file.sides]
    weights_bytes = sum(file.stat().st_size for file in files)
    if weights_bytes > arena.limit_bytes:
        raise InputError(
            f"{bundle.path.name} cannot be served: its weights take {format_bytes(weights_bytes)},"
            f" {arena.rule} leaves {format_bytes(arena.limit_bytes)} for models, allow more"
        )


def _alone(
    bundle: Bundle, engines: Mapping[str, Engine], limit_s: float, batching: Batching
) -> dict[str, str]:
    """Why parts do not run rows of several sessions at once; those that do are missing."""
    if batching.rows == 1:
        return dict.fromkeys(engines, "batching is off")
    found = {part: bundle.why_alone(part) for part in engines}
    for part in [part for part, why in found.items() if not why]:
        found[part] = disagreement(engines[part], limit_s)
        if found[part]:
            warnings.warn(
                f"{part} of {bundle.path.name} runs each frame alone: {found[part]}",
                RuntimeWarning,
                stacklevel=4,
            )
    return {part: why for part, why in found.items() if why}
