"""A bundle that is served: its contracts, and an engine for each of the server's parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offload.bundle.bundle import Bundle, open_bundle
from offload.plan.plan import Side

from offload_runtimes.engine import Engine, EngineOptions, load
from offload_runtimes.wire.contract import Contract, contracts

_WARM_LIMIT_S = 5.0


@dataclass(frozen=True)
class Hosted:
    """A bundle that is served; plans share engines where they share parts.

    Attributes:
        bundle: the bundle.
        contracts: what may cross, for each plan.
        engines: an engine for each of the server's parts.
        last_s: how long each part took when it was last run.
    """

    bundle: Bundle
    contracts: tuple[Contract, ...]
    engines: Mapping[str, Engine]
    last_s: dict[str, float] = field(default_factory=dict)


def host(bundle: str | Path | Bundle, options: EngineOptions, max_run_s: float) -> Hosted:
    """Open a bundle's server part, load and warm its engines.

    Raises:
        BundleError: missing or damaged, or its server files are not here.
        InputError: onnxruntime refuses a segment.
    """
    if not isinstance(bundle, Bundle):
        bundle = open_bundle(bundle, (Side.SERVER,))
    segments = bundle.parts(Side.SERVER)
    engines = {s.part: load(bundle.segment_path(s.part), options) for s in segments}
    values = {v.name: v for e in engines.values() for v in (*e.outputs, *e.inputs)}
    for engine in engines.values():
        engine.warm(min(max_run_s, _WARM_LIMIT_S))
    return Hosted(bundle, contracts(bundle, values), engines)
