"""The bundles that a server serves: loaded engines, and the releases that a deployed root keeps."""

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from offload.bundle.bundle import MANIFEST, Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Segment, Side
from offload.units import format_bytes

from offload_runtimes.agent.store import Journal, RefusalError
from offload_runtimes.engine import Arena, Engine, EngineOptions, load
from offload_runtimes.protocol.tensor_specs import TENSOR_LIMIT_BYTES, Contract, contracts
from offload_runtimes.serving.batching import Batching, disagreement

_SHORT_S = 0.0005  # below this, waking a worker costs more than a message that waits


class RunTimes:
    """How long each part of a bundle took when it was last run, and on how many bytes."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[int, float]] = {}

    def took(self, part: str, size_bytes: int, seconds: float) -> None:
        """Note a run."""
        self._runs[part] = size_bytes, seconds

    def is_short(self, part: str, size_bytes: int) -> bool:
        """Whether the last run was, on no fewer bytes: more of them may take any time."""
        then_bytes, seconds = self._runs.get(part, (0, _SHORT_S))
        return seconds < _SHORT_S and size_bytes <= then_bytes


_WARM_LIMIT_S = 5.0
NO_BATCHING = Batching()
Content: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LoadedBundle:
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
    lately: RunTimes = field(default_factory=RunTimes)


def load_bundle(
    bundle: str | Path | Bundle,
    options: EngineOptions,
    max_run_s: float,
    arena: Arena | None = None,
    batching: Batching = NO_BATCHING,
    limit_bytes: int = TENSOR_LIMIT_BYTES,
    others: Iterable[LoadedBundle] = (),
) -> LoadedBundle:
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
    return LoadedBundle(bundle, contracts(bundle, values, limit_bytes), engines, contents, alone)


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


_BYTES_LOADED = 2  # in memory, for each byte of a part's files


@dataclass(frozen=True)
class BundleSource:
    """A bundle to serve.

    Attributes:
        bundle: the bundle or its directory.
        name: what messages call it.
        is_required: the server cannot do without it; a kept release is left out if it must be.
    """

    bundle: Path | Bundle
    name: str
    is_required: bool = True

    @property
    def path(self) -> Path:
        """The bundle's directory, as it was given."""
        return self.bundle.path if isinstance(self.bundle, Bundle) else self.bundle

    def open(self) -> Bundle:
        """Open the server's part; BundleError when it is missing or damaged."""
        if isinstance(self.bundle, Bundle):
            return self.bundle
        return open_bundle(self.bundle, (Side.SERVER,))


def sources(given: Iterable[str | Path | Bundle], most: int | None = None) -> list[BundleSource]:
    """The bundles to serve: those given, then the kept releases beside each that is `current`.

    Args:
        given: bundles or their directories.
        most: releases of one root, the current one included; None: all that it keeps.
    """
    found, kept = [], []
    for each in given:
        if isinstance(each, Bundle):
            found.append(BundleSource(each, each.path.name))
            continue
        found.append(BundleSource(Path(each), Path(each).name))
        kept += [
            BundleSource(path, "kept release", is_required=False) for path in _kept(each, most)
        ]
    return found + kept


def check_memory(bundle: Bundle, others: Sequence[LoadedBundle]) -> None:
    """InputError where this machine lacks the memory to serve a kept release, too.

    A loaded part takes its files' bytes, and as much again where kernels repack weights. Parts
    that `others` loaded already are shared.
    """
    loaded = {content for h in others for content in h.contents.values()}
    contents = {content_of(bundle, segment) for segment in bundle.parts(Side.SERVER)} - loaded
    lacking = {digest for content in contents for _, digest in content}
    size_bytes = sum(file.size_bytes for file in bundle.files if file.sha256 in lacking)
    needed_bytes, free_bytes = _BYTES_LOADED * size_bytes, free_memory_bytes()
    if needed_bytes > free_bytes:
        raise InputError(
            f"it may take {format_bytes(needed_bytes)} and {format_bytes(int(free_bytes))} are"
            " free: allow more memory (`service install --memory-limit-mb`), or serve fewer"
            " releases (--releases)"
        )


def free_memory_bytes(root: Path = Path("/")) -> float:
    """What this process may still allocate, by the machine's memory and its control groups."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    free = [int(found[1]) * 1024] if found else []
    resident = re.search(r"VmRSS:\s+(\d+) kB", _text(root / "proc/self/status"))
    own_bytes = int(resident[1]) * 1024 if resident else 0
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, group = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        folder = mounted / group.lstrip("/")
        for each in (folder, *folder.parents) if number == "0" else ():
            limit = _text(each / "memory.max").strip()
            if limit.isdecimal():
                free.append(int(limit) - own_bytes)
            if each == mounted:
                break
    return min(free, default=float("inf"))


def mark_of(given: Iterable[str | Path | Bundle]) -> tuple[object, ...]:
    """What changes when a root gets another current release or keeps others."""
    marks: list[object] = []
    for each in given:
        if (root := _root(each)) is not None:
            marks += [os.path.realpath(root / "current"), _modified_ns(root / "journal.json")]
    return tuple(marks)


def _kept(given: str | Path, most: int | None) -> list[Path]:
    """The releases of a root that passed, newest first, without the current one."""
    root = _root(given)
    if root is None:
        return []
    try:
        journal = Journal(root).read()
        names = [Path(str(entry["id"])).name for entry in journal["releases"]]
    except (RefusalError, OSError, LookupError, TypeError):
        return []  # `offload deploy` says what is wrong with it
    others = [root / "releases" / name for name in names if name != journal["current"]]
    there = [path for path in others if (path / MANIFEST).is_file()]
    return there if most is None else there[: most - 1]


def _root(given: str | Path | Bundle) -> Path | None:
    """The root of a deployment whose current release was given; None: it is another directory."""
    if isinstance(given, Bundle):
        return None
    path = Path(given)
    is_current = path.is_symlink() and path.name == "current"
    return path.parent if is_current else None


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
