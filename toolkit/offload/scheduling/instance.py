"""A scheduling instance: jobs on the device, their uploads, and what must precede what."""

import heapq
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.errors import InputError

VERSION = 1
_INSTANCE_KEYS = frozenset({"version", "layers", "edges", "server_s", "download_s", "server"})


@dataclass(frozen=True, slots=True)
class Job:
    """One layer on the device.

    Attributes:
        name: unique in its instance.
        compute_s: seconds it occupies the device; 0 for a graph input that only is uploaded.
        upload_s: seconds its output occupies the uplink; 0 when nothing of it is uploaded.
    """

    name: str
    compute_s: float
    upload_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerJob:
    """One layer on the server that may start before every upload has arrived.

    Attributes:
        name: unique among the server's jobs.
        compute_s: seconds it occupies the server, which runs one layer at a time.
        needs: indexes of the device's jobs whose uploads it waits for.
        after: indexes of the server's jobs it waits for.
    """

    name: str
    compute_s: float
    needs: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instance:
    """What a scheduler is given; checked when made, so that every solver may trust it.

    Attributes:
        jobs: the device's layers; ties are broken by this order.
        edges: pairs of job indexes, predecessor first.
        server_s: seconds of server work that needs every upload and every server job.
        download_s: seconds to bring the result back after the server is done.
        server_jobs: server work that starts on partial arrival.

    Raises:
        InputError: no job, a repeated or empty name, a time that is negative or not finite, an
            index out of range, or a cycle.
    """

    jobs: tuple[Job, ...]
    edges: tuple[tuple[int, int], ...] = ()
    server_s: float = 0.0
    download_s: float = 0.0
    server_jobs: tuple[ServerJob, ...] = ()

    def __post_init__(self) -> None:
        if not self.jobs:
            raise InputError("the graph has no layers: give at least one")
        _check_names("layer", [job.name for job in self.jobs])
        _check_names("server layer", [job.name for job in self.server_jobs])
        _check_times(self)
        _check_edges("layers", self.edge_ends, len(self.jobs))
        needs = [(need, 0) for job in self.server_jobs for need in job.needs]
        _check_edges("needs", _ends(needs), len(self.jobs))
        _check_edges("server layers", _ends(self._server_edges), len(self.server_jobs))
        _ = self.topological, self.server_topological

    @property
    def _server_edges(self) -> list[tuple[int, int]]:
        return [(a, b) for b, job in enumerate(self.server_jobs) for a in job.after]

    @cached_property
    def compute_s(self) -> tuple[float, ...]:
        """Seconds of compute by job index."""
        return tuple([job.compute_s for job in self.jobs])

    @cached_property
    def upload_s(self) -> tuple[float, ...]:
        """Seconds of upload by job index."""
        return tuple([job.upload_s for job in self.jobs])

    @cached_property
    def times_s(self) -> npt.NDArray[np.float64]:
        """Both again as an array (2 x V): compute, then upload."""
        return np.array([self.compute_s, self.upload_s], dtype=np.float64)

    @cached_property
    def total_compute_s(self) -> float:
        """Seconds of compute of all jobs."""
        return math.fsum(self.compute_s)

    @cached_property
    def total_upload_s(self) -> float:
        """Seconds of upload of all jobs."""
        return math.fsum(self.upload_s)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Indexes of the cut points, the jobs with something to upload, ascending."""
        return tuple(self.times_s[1].nonzero()[0].tolist())

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each job, the jobs that directly need it, in the order of the edges."""
        return _grouped(self.edges, len(self.jobs))

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each job, the jobs it directly needs, in the order of the edges."""
        return _grouped([(b, a) for a, b in self.edges], len(self.jobs))

    @cached_property
    def edge_ends(self) -> npt.NDArray[np.intp]:
        """The edges as an array (2 x E): all predecessors, then all successors."""
        return _ends(self.edges)

    @cached_property
    def _edges_ascend(self) -> bool:
        before, after = self.edge_ends
        return bool((before < after).all())

    @cached_property
    def topological(self) -> tuple[int, ...]:
        """The smallest topological order by job index: the jobs' own order where that is one."""
        if self._edges_ascend:
            return tuple(range(len(self.jobs)))
        return _kahn(self.successors, [job.name for job in self.jobs])

    @cached_property
    def place(self) -> npt.NDArray[np.intp]:
        """By job index, its place in the topological order."""
        place = np.empty(len(self.jobs), dtype=np.intp)
        place[list(self.topological)] = np.arange(len(self.jobs))
        return place

    def in_order(self, jobs: Iterable[int]) -> list[int]:
        """Some of the jobs in topological order."""
        return sorted(jobs) if self._edges_ascend else sorted(jobs, key=self.place.__getitem__)

    @cached_property
    def edges_backwards(self) -> Sequence[tuple[int, int]]:
        """The edges, those out of a later job first: what a sweep from the sinks up follows."""
        before = self.edge_ends[0]
        if self._edges_ascend and (before[:-1] <= before[1:]).all():
            return self.edges[::-1]
        backwards = np.argsort(-self.place[before], kind="stable").tolist()
        return [self.edges[edge] for edge in backwards]

    @cached_property
    def server_topological(self) -> tuple[int, ...]:
        """The smallest topological order of the server's jobs by index."""
        after = _grouped(self._server_edges, len(self.server_jobs))
        return _kahn(after, [job.name for job in self.server_jobs])

    def to_json(self) -> dict[str, Any]:
        """`{"version", "layers": {name: {"compute_s", "upload_s"}}, "edges": [[a, b]], ...}`.

        The numbers of the server and of the download are left out where they are nothing.
        """
        name = [job.name for job in self.jobs]
        value: dict[str, Any] = {
            "version": VERSION,
            "layers": {
                job.name: {"compute_s": job.compute_s, "upload_s": job.upload_s}
                for job in self.jobs
            },
            "edges": [[name[a], name[b]] for a, b in self.edges],
        }
        tail = {"server_s": self.server_s, "download_s": self.download_s}
        value |= {key: seconds for key, seconds in tail.items() if seconds}
        if self.server_jobs:
            value["server"] = {
                job.name: {
                    "compute_s": job.compute_s,
                    "needs": [name[index] for index in job.needs],
                    "after": [self.server_jobs[index].name for index in job.after],
                }
                for job in self.server_jobs
            }
        return value

    @classmethod
    def from_json(cls, value: object) -> "Instance":
        """Read what `to_json` writes; only `layers` must be there, `upload_s` is 0 when left out.

        Raises:
            InputError: a wrong type, an unknown key or layer, another version, or any refusal of
                the instance itself.
        """
        graph = _table(value, "the graph", _INSTANCE_KEYS)
        if graph.get("version", VERSION) != VERSION:
            raise InputError(f"version {graph['version']!r} is unknown: this reads {VERSION}")
        layers = _table(graph.get("layers"), "'layers'")
        server = _table(graph.get("server", {}), "'server'")
        index = {name: position for position, name in enumerate(layers)}
        server_index = {name: position for position, name in enumerate(server)}
        return cls(
            tuple([_job(name, layer) for name, layer in layers.items()]),
            tuple([_edge(index, pair) for pair in _list(graph.get("edges", []), "'edges'")]),
            _number(graph, "server_s", "the graph", 0.0),
            _number(graph, "download_s", "the graph", 0.0),
            tuple([_server_job(name, s, index, server_index) for name, s in server.items()]),
        )


def _table(value: object, what: str, keys: frozenset[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, not {_kind(value)}")
    if keys is not None and not keys.issuperset(value):
        unknown = sorted(map(str, set(value) - keys))[0]
        raise InputError(f"{what} has an unknown key {unknown!r}: use {', '.join(sorted(keys))}")
    return value


def _list(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{what} must be a JSON array, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "missing" if value is None else type(value).__name__


def _number(table: Mapping[str, Any], key: str, what: str, default: float | None = None) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{key} of {what} must be a number of seconds, not {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{key} of {what} is too large: give it in seconds") from None


def _job(name: str, layer: object) -> Job:
    what = f"layer {name!r}"
    table = _table(layer, what, frozenset({"compute_s", "upload_s"}))
    return Job(name, _number(table, "compute_s", what), _number(table, "upload_s", what, 0.0))


def _server_job(
    name: str, layer: object, index: Mapping[str, int], server_index: Mapping[str, int]
) -> ServerJob:
    what = f"server layer {name!r}"
    table = _table(layer, what, frozenset({"compute_s", "needs", "after"}))
    needs = _list(table.get("needs", []), f"needs of {what}")
    after = _list(table.get("after", []), f"after of {what}")
    return ServerJob(
        name,
        _number(table, "compute_s", what),
        tuple([_lookup(index, need, what) for need in needs]),
        tuple([_lookup(server_index, before, what) for before in after]),
    )


def _edge(index: Mapping[str, int], pair: object) -> tuple[int, int]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InputError(f"edge {pair!r} must be two layer names, predecessor first")
    a, b = pair
    return _lookup(index, a, f"edge {pair!r}"), _lookup(index, b, f"edge {pair!r}")


def _lookup(index: Mapping[str, int], name: object, where: str) -> int:
    if not isinstance(name, str) or name not in index:
        raise InputError(f"{where} names {name!r}, which is not a layer: check its spelling")
    return index[name]


def _check_names(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) == len(names) and "" not in names:
        return
    if "" in names:
        raise InputError(f"{kind} {names.index('')} has an empty name: name every {kind}")
    seen: set[str] = set()
    twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise InputError(f"{kind} {twice!r} is given twice: names must differ")


def _check_times(instance: Instance) -> None:
    with np.errstate(over="ignore"):  # what is wrong is said in words
        total_s = float(instance.times_s.sum()) + instance.server_s
    if instance.times_s.min() < 0 or not math.isfinite(total_s):
        _refuse_time(instance)
    for name, seconds in (("server_s", instance.server_s), ("download_s", instance.download_s)):
        _check_time(f"{name} of the graph", seconds)
    for job in instance.server_jobs:
        _check_time(f"compute_s of server layer {job.name!r}", job.compute_s)


def _refuse_time(instance: Instance) -> None:
    for job in instance.jobs:
        _check_time(f"compute_s of layer {job.name!r}", job.compute_s)
        _check_time(f"upload_s of layer {job.name!r}", job.upload_s)
    if not math.isfinite(sum(instance.compute_s) + sum(instance.upload_s)):
        raise InputError("the times of all layers add up to infinity: give them in seconds")


def _check_time(what: str, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"{what} is {seconds}: give a finite number of seconds, 0 or more")


def _ends(edges: Sequence[tuple[int, int]]) -> npt.NDArray[np.intp]:
    flat = np.fromiter(itertools.chain.from_iterable(edges), np.intp, 2 * len(edges))
    return flat.reshape(-1, 2).T


def _check_edges(what: str, ends: npt.NDArray[np.intp], count: int) -> None:
    if ends.size and (ends.min() < 0 or ends.max() >= count):
        a, b = ends[:, ((ends < 0) | (ends >= count)).any(axis=0).argmax()].tolist()
        raise InputError(f"edge ({a}, {b}) among {what} names an index outside 0..{count - 1}")


def _grouped(pairs: Iterable[tuple[int, int]], count: int) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs:
        found[a].append(b)
    return tuple(map(tuple, found))


def _kahn(successors: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[int, ...]:
    waiting = [0] * len(successors)
    for after in successors:
        for job in after:
            waiting[job] += 1
    ready = [job for job, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        job = heapq.heappop(ready)
        order.append(job)
        for successor in successors[job]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                heapq.heappush(ready, successor)
    if len(order) < len(successors):
        raise InputError(f"the edges form a cycle: {_cycle(successors, order, names)}")
    return tuple(order)


def _cycle(
    successors: Sequence[Sequence[int]], sorted_jobs: Sequence[int], names: Sequence[str]
) -> str:
    """One cycle in words; at most six of its layers are named."""
    left = set(range(len(successors))) - set(sorted_jobs)
    before = {job: a for a in left for job in successors[a]}
    job = min(left)
    path: dict[int, None] = {}
    while job not in path:
        path[job] = None
        job = before[job]
    loop = list(path)[list(path).index(job) :]
    shown = [repr(names[job]), *(repr(names[j]) for j in reversed(loop))]
    if len(shown) > 7:
        shown[3:-3] = ["..."]
    return " -> ".join(shown) + ", break it"


def read_instance(path: str | Path) -> Instance:
    """The instance in a file that holds `{"layers": {name: {...}}, "edges": [[a, b], ...]}`.

    Raises:
        InputError: not JSON, a name given twice, or anything `Instance.from_json` refuses.
        OSError: the file can't be read.
    """
    data = Path(path).read_bytes()
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        return Instance.from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:
        raise InputError(
            f"{path} is nested too deeply to be a graph: give layers and edges"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): give layers and edges") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InputError(f"the name {name!r} is given twice: names must differ")
            seen.add(name)
    return table
