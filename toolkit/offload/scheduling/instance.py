"""A scheduling instance: the device's jobs, their uploads and the precedence between them."""

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
_KEYS = {"version", "layers", "edges", "server_s", "download_s", "server"}


@dataclass(frozen=True, slots=True)
class Job:
    """One layer on the device.

    Attributes:
        name: unique in the instance.
        compute_s: seconds on the device; 0 for a graph input, which is only uploaded.
        upload_s: seconds that its output occupies the uplink; 0 if it is not uploaded.
    """

    name: str
    compute_s: float
    upload_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerJob:
    """One layer on the server that may start before every upload has arrived.

    Attributes:
        name: unique among the server's jobs.
        compute_s: seconds on the server, which runs one layer at a time.
        needs: indexes of the device's jobs whose uploads it waits for.
        after: indexes of the server's jobs that must end first.
    """

    name: str
    compute_s: float
    needs: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instance:
    """The input of every solver; validated when it is constructed.

    Attributes:
        jobs: the device's layers; solvers break ties by this order.
        edges: precedence as pairs of job indexes, predecessor first.
        server_s: seconds of server work that needs every upload and every server job.
        download_s: seconds to download the result after the server is done.
        server_jobs: server work that starts on partial arrival.

    Raises:
        InputError: there is no job, a name is empty or repeated, a time is negative or not
            finite, an index is out of range, or the edges form a cycle.
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
        _check_edges("needs", _edge_array(needs), len(self.jobs))
        _check_edges("server layers", _edge_array(self._server_edges), len(self.server_jobs))
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
        """Compute and upload seconds as one array (2 x V)."""
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
        """The direct successors of each job, in the order of the edges."""
        return _grouped(self.edges, len(self.jobs))

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """The direct predecessors of each job, in the order of the edges."""
        return _grouped([(b, a) for a, b in self.edges], len(self.jobs))

    @cached_property
    def edge_ends(self) -> npt.NDArray[np.intp]:
        """The edges as an array (2 x E): all predecessors, then all successors."""
        return _edge_array(self.edges)

    @cached_property
    def _edges_ascend(self) -> bool:
        before, after = self.edge_ends
        return bool((before < after).all())

    @cached_property
    def topological(self) -> tuple[int, ...]:
        """The smallest topological order by job index; `0..V-1` if every edge ascends."""
        if self._edges_ascend:
            return tuple(range(len(self.jobs)))
        return _topological_order(self.successors, [job.name for job in self.jobs])

    @cached_property
    def place(self) -> npt.NDArray[np.intp]:
        """The position of each job in the topological order."""
        place = np.empty(len(self.jobs), dtype=np.intp)
        place[list(self.topological)] = np.arange(len(self.jobs))
        return place

    def in_order(self, jobs: Iterable[int]) -> list[int]:
        """The given jobs in topological order."""
        return sorted(jobs) if self._edges_ascend else sorted(jobs, key=self.place.__getitem__)

    @cached_property
    def edges_backwards(self) -> Sequence[tuple[int, int]]:
        """The edges for a sweep from the sinks upwards: edges out of later jobs first."""
        before = self.edge_ends[0]
        if self._edges_ascend and (before[:-1] <= before[1:]).all():
            return self.edges[::-1]
        return [self.edges[i] for i in np.argsort(-self.place[before], kind="stable").tolist()]

    @cached_property
    def server_topological(self) -> tuple[int, ...]:
        """The smallest topological order of the server's jobs by index."""
        after = _grouped(self._server_edges, len(self.server_jobs))
        return _topological_order(after, [job.name for job in self.server_jobs])

    def to_json(self) -> dict[str, Any]:
        """`{"version", "layers": {name: {"compute_s", "upload_s"}}, "edges": [[a, b]], ...}`.

        Leaves out `server_s` and `download_s` when they are 0, and `server` when it is empty.
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
        """Read what `to_json` writes. Only `layers` is required; `upload_s` defaults to 0.

        Raises:
            InputError: a wrong type, an unknown key or layer, another version, or an error of
                the instance itself.
        """
        graph = _object(value, "the graph", _KEYS)
        if graph.get("version", VERSION) != VERSION:
            raise InputError(f"version {graph['version']!r} is unknown: expected {VERSION}")
        layers, server = _object(graph.get("layers"), "'layers'"), graph.get("server", {})
        index = {name: position for position, name in enumerate(layers)}
        server_index = {name: position for position, name in enumerate(_object(server, "'server'"))}
        jobs, server_jobs, edges = [], [], []
        for name, layer in layers.items():
            what = f"layer {name!r}"
            table = _object(layer, what, {"compute_s", "upload_s"})
            seconds = _number(table, "compute_s", what), _number(table, "upload_s", what, 0.0)
            jobs.append(Job(name, *seconds))
        for name, layer in server.items():
            what = f"server layer {name!r}"
            table = _object(layer, what, {"compute_s", "needs", "after"})
            needs = _array(table.get("needs", []), f"needs of {what}")
            after = _array(table.get("after", []), f"after of {what}")
            needed = tuple([_lookup(index, need, what) for need in needs])
            earlier = tuple([_lookup(server_index, before, what) for before in after])
            server_jobs.append(ServerJob(name, _number(table, "compute_s", what), needed, earlier))
        for pair in _array(graph.get("edges", []), "'edges'"):
            what = f"edge {pair!r}"
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise InputError(f"{what} must be two layer names, predecessor first")
            edges.append((_lookup(index, pair[0], what), _lookup(index, pair[1], what)))
        return cls(
            tuple(jobs),
            tuple(edges),
            _number(graph, "server_s", "the graph", 0.0),
            _number(graph, "download_s", "the graph", 0.0),
            tuple(server_jobs),
        )


def _object(value: object, what: str, keys: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, not {_type_name(value)}")
    if keys is not None and not value.keys() <= keys:
        unknown = min(map(str, set(value) - keys))
        raise InputError(f"{what} has an unknown key {unknown!r}: use {', '.join(sorted(keys))}")
    return value


def _array(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{what} must be a JSON array, not {_type_name(value)}")
    return value


def _type_name(value: object) -> str:
    return "missing" if value is None else type(value).__name__


def _number(table: Mapping[str, Any], key: str, what: str, default: float | None = None) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{key} of {what} must be a number of seconds, not {_type_name(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{key} of {what} is too large: give it in seconds") from None


def _lookup(index: Mapping[str, int], name: object, what: str) -> int:
    if not isinstance(name, str) or name not in index:
        raise InputError(f"{what} names {name!r}, which is not a layer: check its spelling")
    return index[name]


def _check_names(kind: str, names: Sequence[str]) -> None:
    if "" in names:
        raise InputError(f"{kind} {names.index('')} has an empty name: name every {kind}")
    if (repeated := _first_repeated(names)) is not None:
        raise InputError(f"{kind} {repeated!r} is given twice: names must differ")


def _first_repeated(names: Sequence[str]) -> str | None:
    if len(set(names)) == len(names):
        return None
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_times(instance: Instance) -> None:
    """Refuse times that are negative or not finite, and sums that overflow."""
    times = [("server_s of the graph", instance.server_s)]
    times.append(("download_s of the graph", instance.download_s))
    times += [(f"compute_s of server layer {j.name!r}", j.compute_s) for j in instance.server_jobs]
    with np.errstate(over="ignore"):  # the overflow is reported below
        total_s = float(instance.times_s.sum()) + instance.server_s
    if instance.times_s.min() < 0 or not math.isfinite(total_s):
        for job in instance.jobs:
            times.append((f"compute_s of layer {job.name!r}", job.compute_s))
            times.append((f"upload_s of layer {job.name!r}", job.upload_s))
    for what, seconds in times:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InputError(f"{what} is {seconds}: give a finite number of seconds, 0 or more")
    if not math.isfinite(total_s):
        raise InputError("the times of all layers add up to infinity: give them in seconds")


def _edge_array(edges: Sequence[tuple[int, int]]) -> npt.NDArray[np.intp]:
    flat = np.fromiter(itertools.chain.from_iterable(edges), np.intp, 2 * len(edges))
    return flat.reshape(-1, 2).T


def _check_edges(what: str, ends: npt.NDArray[np.intp], count: int) -> None:
    if ends.size and (ends.min() < 0 or ends.max() >= count):
        a, b = ends[:, ((ends < 0) | (ends >= count)).any(axis=0).argmax()].tolist()
        raise InputError(f"edge ({a}, {b}) among {what} has an index outside 0..{count - 1}")


def _grouped(pairs: Iterable[tuple[int, int]], count: int) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs:
        groups[a].append(b)
    return tuple(map(tuple, groups))


def _topological_order(
    successors: Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[int, ...]:
    """The smallest topological order by index (Kahn 1962, with a heap)."""
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
        unsorted = set(range(len(successors))) - set(order)
        raise InputError(f"the edges form a cycle: {_describe_cycle(successors, unsorted, names)}")
    return tuple(order)


def _describe_cycle(
    successors: Sequence[Sequence[int]], unsorted: set[int], names: Sequence[str]
) -> str:
    """One cycle in words, with at most six of its layers."""
    before = {job: a for a in unsorted for job in successors[a]}
    job = min(unsorted)
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
    """Read an instance from a file with `{"layers": {name: {...}}, "edges": [[a, b], ...]}`.

    Raises:
        InputError: not JSON, a name given twice, or an error of `Instance.from_json`.
        OSError: the file can't be read.
    """

    def without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if (repeated := _first_repeated([name for name, _ in pairs])) is not None:
            raise InputError(f"the name {repeated!r} is given twice: names must differ")
        return dict(pairs)

    data = Path(path).read_bytes()
    try:
        return Instance.from_json(json.loads(data, object_pairs_hook=without_repeats))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:
        message = f"{path} is nested too deeply to be a graph: give layers and edges"
        raise InputError(message) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): give layers and edges") from error
