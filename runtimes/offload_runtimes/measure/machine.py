"""The machine that models are timed on: this one, or a target on which a worker runs."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from offload.bundle.engine_input import EngineInput

from offload_runtimes.engine import (
    Arena,
    Engine,
    EngineOptions,
    load,
    load_once,
    shared_arena,
    short_name,
)
from offload_runtimes.engine.profiling import optimize_to, profile_nodes
from offload_runtimes.measure.footprint import client_bytes
from offload_runtimes.measure.timing import machine_name, time_in_turns
from offload_runtimes.protocol.codecs import reference_s

Feeds = Mapping[str, Any]


class LoadedModel(Protocol):
    """A model that is loaded on a machine.

    Attributes:
        providers: short names of the execution providers in use.
        inputs: names of the inputs, those with a default included.
        outputs: names of the outputs.
    """

    providers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Feeds) -> list[Any]:
        """Compute all outputs."""

    def keep(self, outputs: Sequence[str], feeds: Feeds) -> list[Any]:
        """Compute outputs and leave them on the machine, to be feeds of other models there."""


@dataclass(frozen=True)
class TimedRun:
    """Runs of a loaded model on the same feeds."""

    model: LoadedModel
    feeds: Feeds


class Machine(Protocol):
    """Runs and times models."""

    @property
    def name(self) -> str:
        """A name that is stable between runs."""

    def load(
        self,
        source: EngineInput,
        options: EngineOptions,
        *,
        once: bool = False,
        arena: Arena | None = None,
    ) -> LoadedModel:
        """Load a model; with `once` it gives the memory of a run back as soon as the run ends."""

    def shared_memory(self) -> AbstractContextManager[Arena | None]:
        """Memory shared by models that run one at a time."""

    def time_in_turns(
        self, work: Mapping[str, TimedRun], repeats: int, budget_s: float
    ) -> dict[str, list[float]]:
        """Seconds of each work, as `timing.time_in_turns` measures them."""

    def profile_nodes(
        self, source: EngineInput, feeds: Feeds, options: EngineOptions, runs: int, warm_runs: int
    ) -> dict[str, float]:
        """Seconds of every kernel, as `engine.profiling.profile_nodes` measures them."""

    def optimize_to(
        self, source: EngineInput, target: Path, options: EngineOptions, *, fold_large: bool
    ) -> None:
        """Write the optimised graph of the machine's own onnxruntime to a file here."""

    def codec_s(self) -> float:
        """Seconds of the codecs' reference work."""

    def client_bytes(self, model: bytes, threads: int | None) -> int | None:
        """Memory of a client with a tiny model, as `footprint.client_bytes` measures it."""


class _LocalModel:
    """An engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.providers = tuple(map(short_name, engine.providers))
        self.inputs = tuple(value.name for value in (*engine.inputs, *engine.defaults))
        self.outputs = tuple(value.name for value in engine.outputs)

    def run(self, feeds: Feeds) -> list[Any]:
        """Compute all outputs."""
        return self.engine.run(None, feeds)

    def keep(self, outputs: Sequence[str], feeds: Feeds) -> list[Any]:
        """Compute outputs."""
        return self.engine.run(outputs, feeds)


class LocalMachine:
    """The machine of this process."""

    @property
    def name(self) -> str:
        """Host name, processor and number of cores."""
        return machine_name()

    def load(
        self,
        source: EngineInput,
        options: EngineOptions,
        *,
        once: bool = False,
        arena: Arena | None = None,
    ) -> LoadedModel:
        """Load a model into this process."""
        return _LocalModel(load_once(source, options) if once else load(source, options, arena))

    def shared_memory(self) -> AbstractContextManager[Arena | None]:
        """One arena; None if another thread uses it."""
        return shared_arena()

    def time_in_turns(
        self, work: Mapping[str, TimedRun], repeats: int, budget_s: float
    ) -> dict[str, list[float]]:
        """Seconds of each work."""
        runs = {}
        for name, item in work.items():
            assert isinstance(item.model, _LocalModel)
            engine, feeds = item.model.engine, item.feeds
            runs[name] = lambda engine=engine, feeds=feeds: engine.run(None, feeds)
        return time_in_turns(runs, repeats, budget_s)

    def profile_nodes(
        self, source: EngineInput, feeds: Feeds, options: EngineOptions, runs: int, warm_runs: int
    ) -> dict[str, float]:
        """Seconds of every kernel."""
        return profile_nodes(source, feeds, options, runs=runs, warm_runs=warm_runs)

    def optimize_to(
        self, source: EngineInput, target: Path, options: EngineOptions, *, fold_large: bool
    ) -> None:
        """Write the optimised graph of this onnxruntime."""
        optimize_to(source, target, options, fold_large=fold_large)

    def codec_s(self) -> float:
        """Seconds of the codecs' reference work."""
        return reference_s()

    def client_bytes(self, model: bytes, threads: int | None) -> int | None:
        """Memory of a client with a tiny model."""
        return _client_bytes(model, threads)


_client_bytes = cache(client_bytes)
THIS_MACHINE = LocalMachine()
