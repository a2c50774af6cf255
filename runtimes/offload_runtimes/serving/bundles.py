"""Load the bundles that a server serves, and follow the releases of a deployment."""

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from offload.bundle.bundle import MANIFEST, Bundle, open_bundle
from offload.errors import InputError, OffloadError
from offload.planning.plan import Segment, Side
from offload.units import format_bytes

from offload_runtimes.agent.store import Journal, RefusalError
from offload_runtimes.engine import Arena, Engine, load
from offload_runtimes.protocol.tensor_specs import (
    TENSOR_LIMIT_BYTES,
    Contract,
    contracts,
    upload_limit_bytes,
)
from offload_runtimes.serving.batching import disagreement
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.serving.warm_up import (
    WARM_RUN_S,
    WarmRun,
    is_slowed_by_changes,
    planned_shapes,
    warm_up,
    with_rows,
)

_SHORT_S = 0.0005  # shorter runs take less time than waking a worker
_BYTES_LOADED = 2  # in memory, for each byte of a part's files
Content: TypeAlias = tuple[tuple[str, str], ...]
BundleOrPath: TypeAlias = str | Path | Bundle
Job: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle with its engines loaded; plans that share parts share engines.

    Attributes:
        bundle: the bundle.
        contracts: the tensors that may be sent and received, for each plan.
        engines: an engine for each of the server's parts; bundles share those of equal parts. After
            `load_whole`, also one for each of the device's parts in the first plan.
        alone: why parts run each frame alone; parts that run batches are missing.
        padded: an engine for the batches of each part whose batches are padded to the most rows, so
            that it sees one shape only; other parts run batches as they come.
        warm_runs: the runs that warm the engines up.
        last_runs: input bytes and seconds of the last run of each part.
    """

    bundle: Bundle
    contracts: tuple[Contract, ...]
    engines: dict[str, Engine]
    alone: dict[str, str] = field(default_factory=dict)
    padded: dict[str, Engine] = field(default_factory=dict)
    warm_runs: tuple[WarmRun, ...] = ()
    last_runs: dict[str, tuple[int, float]] = field(default_factory=dict)

    def runs_briefly(self, part: str, size_bytes: int) -> bool:
        """Whether a part's last run was short, on at least as many bytes; more may take long.

        Never on a GPU, which only the workers run (see `warm_up`).
        """
        last_bytes, seconds = self.last_runs.get(part, (0, _SHORT_S))
        is_short = seconds < _SHORT_S and size_bytes <= last_bytes
        return is_short and not self.engines[part].on_gpu

    def warm_workers(self, on_every_worker: Callable[[Job], None], run_limit_s: float) -> int:
        """Warm the GPU's engines up on each worker; the number of runs on each, 0 on the CPU."""
        runs = [run for run in self.warm_runs if run[0].on_gpu]
        done: list[int] = []
        if runs:
            on_every_worker(lambda: done.append(warm_up(runs, run_limit_s)))
        return min(done, default=0)


def load_bundle(
    bundle: Bundle,
    options: ServeOptions,
    arena: Arena | None = None,
    limit_bytes: int = TENSOR_LIMIT_BYTES,
    others: Iterable[LoadedBundle] = (),
) -> LoadedBundle:
    """Load the engines of a bundle's server part and warm them up, on the planned shapes.

    Whether rows of several sessions can run together is tried for each part; a RuntimeWarning
    names the parts that should and cannot. Where changes of the number of rows slow a GPU down,
    batches get an engine of their own.

    Args:
        bundle: the bundle.
        options: of the server.
        arena: the engines' memory; None: onnxruntime's own.
        limit_bytes: the most that a tensor without a fixed shape may take.
        others: loaded bundles; a part with the same files shares their engine and its weights.

    Raises:
        InputError: onnxruntime refuses a segment, or the arena is too small for the weights.
    """
    others = tuple(others)
    loaded, loaded_padded = engines_by_content(others), engines_by_content(others, padded=True)
    contents = {s.part: content_of(bundle, s) for s in bundle.parts(Side.SERVER)}
    if arena is not None and not loaded.keys() >= set(contents.values()):
        _check_weights(bundle, arena)
    limit_s = min(options.max_run_s, WARM_RUN_S)
    engines = {
        part: loaded.get(content) or load(bundle.segment_path(part), options.engine, arena)
        for part, content in contents.items()
    }
    shapes = {p: planned_shapes(bundle, p, engine.inputs) for p, engine in engines.items()}
    warm_runs = [(engine, each) for part, engine in engines.items() for each in shapes[part]]
    new = [engines[part] for part, content in contents.items() if content not in loaded]
    # A GPU is warmed up by the workers.
    warm_up([run for run in warm_runs if run[0] in new and not run[0].on_gpu], limit_s)
    values = {v.name: v for e in engines.values() for v in (*e.outputs, *e.inputs, *e.defaults)}
    alone = {}
    for part, engine in engines.items():
        reason = "batching is off" if options.batch_rows == 1 else bundle.why_alone(part)
        if not reason:
            reason = disagreement(engine, limit_s)
            if reason:
                warnings.warn(
                    f"{part} of {bundle.path.name} runs each frame alone: {reason}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        if reason:
            alone[part] = reason
    padded = {}
    for part, engine in engines.items():
        if part in alone or not engine.on_gpu or not shapes[part]:
            continue
        if shared := loaded_padded.get(contents[part]):
            padded[part] = shared
        elif is_slowed_by_changes(engine, shapes[part][0], options.batch_rows, limit_s):
            padded[part] = load(bundle.segment_path(part), options.engine, arena)
    warm_runs += [
        (engine, with_rows(each, options.batch_rows))
        for part, engine in padded.items()
        for each in shapes[part]
    ]
    allowed = contracts(bundle, values, limit_bytes)
    return LoadedBundle(bundle, allowed, engines, alone, padded, tuple(warm_runs))


def content_of(bundle: Bundle, segment: Segment) -> Content:
    """Names and digests of the files of a server's part; parts with equal ones compute the same."""
    weights = [
        (file.name, file.sha256)
        for file in bundle.files
        if Side.SERVER in file.sides and not file.name.endswith((".onnx", ".json"))
    ]
    own = [("", file.sha256) for file in bundle.files if file.name == segment.file]
    return tuple(own + weights)


def _check_weights(bundle: Bundle, arena: Arena) -> None:
    """Raise an InputError, before loading, if the server's files alone exceed the arena."""
    files = [bundle.path / file.name for file in bundle.files if Side.SERVER in file.sides]
    weights_bytes = sum(file.stat().st_size for file in files)
    if weights_bytes > arena.limit_bytes:
        raise InputError(
            f"{bundle.path.name} cannot be served: its weights take {format_bytes(weights_bytes)},"
            f" {arena.rule} leaves {format_bytes(arena.limit_bytes)} for models, allow more"
        )


def engines_by_content(
    bundles: Iterable[LoadedBundle], *, padded: bool = False
) -> dict[Content, Engine]:
    """The engines of loaded bundles, or those for padded batches, by the files of their parts."""
    found = {}
    for loaded in bundles:
        engines = loaded.padded if padded else loaded.engines
        for segment in loaded.bundle.parts(Side.SERVER):
            if segment.part in engines:
                found[content_of(loaded.bundle, segment)] = engines[segment.part]
    return found


@dataclass(frozen=True)
class BundleSource:
    """A bundle to serve.

    Attributes:
        bundle: the bundle or its directory.
        name: what messages call it.
        is_required: the server refuses to start without it; else it is left out with a warning.
    """

    bundle: Path | Bundle
    name: str
    is_required: bool = True

    @property
    def path(self) -> Path:
        """The bundle's directory, as it was given."""
        return self.bundle.path if isinstance(self.bundle, Bundle) else self.bundle

    def open(self) -> Bundle:
        """Open the server's part; BundleError if it is missing or damaged."""
        if isinstance(self.bundle, Bundle):
            return self.bundle
        return open_bundle(self.bundle, (Side.SERVER,))


def sources(bundles: Iterable[BundleOrPath], max_releases: int | None = None) -> list[BundleSource]:
    """The bundles to serve: those given, then the kept releases of each that is `ROOT/current`.

    Args:
        bundles: bundles or their directories.
        max_releases: releases of one root, including the current one; None: all that it keeps.
    """
    required, earlier = [], []
    for bundle in bundles:
        if isinstance(bundle, Bundle):
            required.append(BundleSource(bundle, bundle.path.name))
            continue
        required.append(BundleSource(Path(bundle), Path(bundle).name))
        if root := _root(bundle):
            try:
                journal = Journal(root).read()
                names = [Path(str(entry["id"])).name for entry in journal["releases"]]
            except (RefusalError, OSError, LookupError, TypeError):
                continue  # `offload deploy` reports a damaged journal
            folders = [root / "releases" / name for name in names if name != journal["current"]]
            releases = [folder for folder in folders if (folder / MANIFEST).is_file()]
            if max_releases is not None:
                releases = releases[: max_releases - 1]
            earlier += [BundleSource(path, "kept release", is_required=False) for path in releases]
    return required + earlier


def _root(bundle: BundleOrPath) -> Path | None:
    """The root of a deployment whose `current` was given; None for any other directory."""
    if isinstance(bundle, Bundle):
        return None
    path = Path(bundle)
    return path.parent if path.is_symlink() and path.name == "current" else None


def check_memory(bundle: Bundle, others: Sequence[LoadedBundle]) -> None:
    """Raise an InputError if this machine lacks the memory to serve a kept release, too.

    A loaded part takes the bytes of its files, and the same again where kernels repack weights.
    Parts that `others` have loaded are shared.
    """
    contents = {content_of(bundle, segment) for segment in bundle.parts(Side.SERVER)}
    missing = contents - engines_by_content(others).keys()
    digests = {digest for content in missing for _, digest in content}
    size_bytes = sum(file.size_bytes for file in bundle.files if file.sha256 in digests)
    needed_bytes, free_bytes = _BYTES_LOADED * size_bytes, free_memory_bytes()
    if needed_bytes > free_bytes:
        raise InputError(
            f"it may take {format_bytes(needed_bytes)} and {format_bytes(int(free_bytes))} are"
            " free: allow more memory (`service install --memory-limit-mb`), or serve fewer"
            " releases (--releases)"
        )


def free_memory_bytes(root: Path = Path("/")) -> float:
    """Memory that this process may still allocate, by the machine and its control groups."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    free = [int(available[1]) * 1024] if available else []
    resident = re.search(r"VmRSS:\s+(\d+) kB", _text(root / "proc/self/status"))
    own_bytes = int(resident[1]) * 1024 if resident else 0
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, group = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        folder = mounted / group.lstrip("/")
        for parent in (folder, *folder.parents) if number == "0" else ():
            limit = _text(parent / "memory.max").strip()
            if limit.isdecimal():
                free.append(int(limit) - own_bytes)
            if parent == mounted:
                break
    return min(free, default=float("inf"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class ServedBundles:
    """The bundles of a server by digest: loads them, follows deployments, drops unused ones.

    Attributes:
        loaded: bundles that take new sessions or have open ones.
        contracts: contracts of the bundles that take new sessions.
        names: what messages call the loaded bundles.
        order: digests of the bundles that take new sessions, those given first.
    """

    def __init__(
        self,
        bundles: Iterable[BundleOrPath],
        options: ServeOptions,
        limit_bytes: int,
        arena: Arena | None,
        observer: Observer,
        in_use: Callable[[], set[str | None]],
    ) -> None:
        """Load all bundles; a kept release that cannot be served is left out with a warning.

        Args:
            bundles: bundles or their directories.
            options: of the server.
            limit_bytes: the most that a tensor without a fixed shape may take.
            arena: memory of the engines; None: onnxruntime's own.
            observer: logs changes.
            in_use: digests of the bundles with open sessions.

        Raises:
            BundleError: a bundle is missing, damaged or lacks its server part.
            InputError: onnxruntime refuses a segment.
        """
        self._given = tuple(bundles)
        self._options = options
        self._limit_bytes = limit_bytes
        self._observer = observer
        self._in_use = in_use
        self._on_every_worker: Callable[[Job], None] | None = None
        self._reloading = threading.Lock()
        self._state = self._deployments()
        self.loaded: dict[str, LoadedBundle] = {}
        self.names: dict[str, str] = {}
        self.contracts: dict[str, tuple[Contract, ...]] = {}
        for source in sources(self._given, options.max_releases):
            try:
                self._serve(source, arena)
            except OffloadError as error:
                if source.is_required:
                    raise
                text = f"{source.path.name} is not served: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=3)
        self.order = tuple(self.contracts)
        agreed = [contract for several in self.contracts.values() for contract in several]
        self.max_message_bytes = upload_limit_bytes(agreed)

    def reload(self, *, even_unchanged: bool) -> None:
        """Load new releases and changed directories; see `Server.reload_bundles`."""
        with self._reloading:
            self._drop_unused()
            state = self._deployments()
            if not even_unchanged and state == self._state:
                return
            self._state = state
            served: dict[str, str] = {}
            complete = True
            for source in sources(self._given, self._options.max_releases):
                try:
                    served.setdefault(self._serve(source, is_running=True), source.name)
                except OffloadError as error:
                    self._observer.bundle("bundle not taken up", source.path.name, str(error))
                    complete = complete and not source.is_required
            if complete:
                for digest in [digest for digest in self.contracts if digest not in served]:
                    del self.contracts[digest]
                    self._observer.bundle("bundle dropped", digest[:12])
                self.order = tuple(served)
                self.names.update(served)
                self._drop_unused()

    def _serve(
        self, source: BundleSource, arena: Arena | None = None, *, is_running: bool = False
    ) -> str:
        """Load a bundle unless it is loaded, and accept new sessions for it; returns its digest.

        Raises:
            OffloadError: it cannot be loaded, or only after a restart of the running server.
        """
        bundle = source.open()
        digest = bundle.digest
        if digest not in self.loaded:
            if is_running and self._options.max_memory_bytes is not None:
                raise InputError(
                    f"release {digest[:12]} cannot be loaded while --max-memory holds: restart the"
                    " server"
                )
            others = list(self.loaded.values())
            if not source.is_required:
                check_memory(bundle, others)
            loaded = load_bundle(bundle, self._options, arena, self._limit_bytes, others)
            if is_running and upload_limit_bytes(loaded.contracts) > self.max_message_bytes:
                raise InputError(
                    f"release {digest[:12]} takes longer messages than those before: restart the"
                    " server"
                )
            if is_running:
                self._warm_workers(loaded)
            self.loaded[digest] = loaded
            for part in loaded.engines if self._options.batch_rows > 1 else ():
                self._observer.batching(digest, part, loaded.alone.get(part, ""))
            if is_running:
                self._observer.bundle("bundle taken up", digest[:12])
        self.names[digest] = source.name
        self.contracts[digest] = self.loaded[digest].contracts
        return digest

    def warm_workers(self, on_every_worker: Callable[[Job], None]) -> None:
        """Warm all GPU engines up on each worker, and those that are loaded later, too.

        Args:
            on_every_worker: runs a job on each worker's thread, and returns when all have run it.
        """
        self._on_every_worker = on_every_worker
        for loaded in list(self.loaded.values()):
            self._warm_workers(loaded)

    def _warm_workers(self, loaded: LoadedBundle) -> None:
        if self._on_every_worker is None:
            return
        start_s, limit_s = time.monotonic(), min(self._options.max_run_s, WARM_RUN_S)
        runs = loaded.warm_workers(self._on_every_worker, limit_s)
        if runs:
            took_s = time.monotonic() - start_s
            self._observer.warmed(loaded.bundle.digest, runs, list(loaded.padded), took_s)

    def can_load_whole(self, digest: str) -> bool:
        """Whether `load_whole` may load what is missing."""
        engines, plan = self.loaded[digest].engines, self.loaded[digest].bundle.plan
        return self._options.max_memory_bytes is None or all(
            segment.part in engines for segment in plan.segments
        )

    def load_whole(self, digest: str) -> None:
        """Load the device's parts of a bundle's first plan, too, to run the whole model here.

        Their frames run alone. Does nothing if they are loaded.

        Raises:
            InputError: onnxruntime refuses one, or --max-memory holds.
        """
        loaded = self.loaded[digest]
        missing = [s for s in loaded.bundle.plan.on(Side.DEVICE) if s.part not in loaded.engines]
        if not missing:
            return
        if self._options.max_memory_bytes is not None:
            raise InputError(
                "the device's parts cannot be loaded while --max-memory holds: send requests to the"
                " server's part"
            )
        with self._reloading:
            for segment in missing:
                if segment.part not in loaded.engines:
                    path = loaded.bundle.segment_path(segment.part)
                    engine = load(path, self._options.engine)
                    warm = partial(engine.warm, min(self._options.max_run_s, WARM_RUN_S))
                    if engine.on_gpu and self._on_every_worker:
                        self._on_every_worker(warm)
                    else:
                        warm()
                    loaded.alone[segment.part] = "it is a part of the device"
                    loaded.engines[segment.part] = engine

    def _drop_unused(self) -> None:
        """Unload bundles that take no new sessions and have no open ones."""
        dropped = [digest for digest in self.loaded if digest not in self.contracts]
        if dropped:
            in_use = self._in_use()
            for digest in dropped:
                if digest not in in_use:
                    del self.loaded[digest]
                    self.names.pop(digest, None)

    def _deployments(self) -> tuple[object, ...]:
        """A value that changes when a root gets another current release or keeps others."""
        state: list[object] = []
        for root in filter(None, map(_root, self._given)):
            try:
                modified_ns = (root / "journal.json").stat().st_mtime_ns
            except OSError:
                modified_ns = 0
            state += [os.path.realpath(root / "current"), modified_ns]
        return tuple(state)
