"""Which bundles a server serves: those it is given, and the releases that a deployed root keeps.

`offload deploy` makes `ROOT/current` a link to `ROOT/releases/ID` and keeps earlier releases there.
Devices change to a release before or after the server does, so all that are kept are served.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from offload.bundle.bundle import MANIFEST, Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Side
from offload.units import format_bytes

from offload_runtimes.deploy.agent.disk import RefusalError
from offload_runtimes.deploy.agent.journal import Journal
from offload_runtimes.serving.hosted import Hosted, content_of

_BYTES_LOADED = 2  # in memory, for each byte of a part's files


@dataclass(frozen=True)
class Source:
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


def sources(given: Iterable[str | Path | Bundle], most: int | None = None) -> list[Source]:
    """The bundles to serve: those given, then the kept releases beside each that is `current`.

    Args:
        given: bundles or their directories.
        most: releases of one root, the current one included; None: all that it keeps.
    """
    found, kept = [], []
    for each in given:
        if isinstance(each, Bundle):
            found.append(Source(each, each.path.name))
            continue
        found.append(Source(Path(each), Path(each).name))
        kept += [Source(path, "kept release", is_required=False) for path in _kept(each, most)]
    return found + kept


def check_memory(bundle: Bundle, others: Sequence[Hosted]) -> None:
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
