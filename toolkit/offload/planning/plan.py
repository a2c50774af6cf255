"""The plan: what each side computes, what is sent when, and the predicted times."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from offload.costs.encodings import RAW, encoding
from offload.costs.link import Link
from offload.costs.quantization import Affine
from offload.errors import InputError
from offload.records import fields_to_json, read_version
from offload.scheduling.instance import Instance
from offload.scheduling.timeline import Lane, Span, Timeline, makespan_s, simulate
from offload.units import format_s


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """The seconds that one inference keeps each resource busy."""

    device_s: float
    uplink_s: float
    server_s: float
    downlink_s: float

    @classmethod
    def of(cls, work: Instance) -> "ResourceUse":
        """The seconds of a program, given as the scheduler's jobs."""
        server_s = work.server_s + sum(job.compute_s for job in work.server_jobs)
        return cls(work.total_compute_s, work.total_upload_s, server_s, work.download_s)

    @property
    def seconds(self) -> tuple[float, float, float, float]:
        """Of device, uplink, server and downlink."""
        return self.device_s, self.uplink_s, self.server_s, self.downlink_s

    @property
    def period_s(self) -> float:
        """Seconds between two outputs of a stream: those of the busiest resource."""
        return max(self.seconds)


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast both sides are, compared with what was planned.

    Attributes:
        device: factor on the device's seconds; 2 on a device that is half as fast.
        server: factor on the server's seconds.
        server_wait_s: seconds that an inference waits at the server for the work of others.
    """

    device: float = 1.0
    server: float = 1.0
    server_wait_s: float = 0.0

    def describe(self) -> str:
        """In words, like "device 2.0x slower, server as planned"."""

        def side(name: str, factor: float) -> str:
            is_planned = 1 / AS_PLANNED < factor < AS_PLANNED
            return f"{name} as planned" if is_planned else f"{name} takes {factor:.2g}x as long"

        wait = (
            f", {format_s(self.server_wait_s)} wait" if self.server_wait_s >= LEAST_WAIT_S else ""
        )
        return f"{side('device', self.device)}, {side('server', self.server)}{wait}"


PLANNED_SPEEDS = Speeds()
# How wrong a predicted difference between two plans may be (`planner.error_margin_s`): a share of
# the seconds in which they differ (profiles and links are a few percent wrong, docs/planning.md);
# seconds that a plan that calls the server may take longer, for threads, messages and wake-ups;
# and a share of its side's seconds for each further segment.
PREDICTION_ERROR = 0.05
SERVER_CALL_S = 0.002
SEGMENT_ERROR = 0.01

AS_PLANNED = 1.1
"""A factor below this, or above its inverse, is within the noise of a measurement."""
LEAST_WAIT_S = 1e-3


@dataclass(frozen=True)
class Forecast:
    """The predicted times of a program as a function of the link.

    Attributes:
        work: the program as the scheduler's jobs, one a step, on the link it was planned for.
        upload_bytes: bytes that each job uploads; None for one that sends nothing.
        download_bytes: bytes of each message that is downloaded.
        download_codec_s: seconds of encoding and decoding the downloads, part of
            `work.download_s`.
        by_period: whether plans are compared by the seconds between two outputs of a stream,
            not by the latency of one.
    """

    work: Instance
    upload_bytes: tuple[int | None, ...]
    download_bytes: tuple[int, ...]
    download_codec_s: float = 0.0
    by_period: bool = False

    def at(self, speeds: Speeds) -> "Forecast":
        """The forecast if both sides had been planned with these speeds."""
        return replace(self, work=at_speeds(self.work, speeds))

    def on(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> Instance:
        """The scheduler's instance on another link, and at other speeds of both sides."""
        jobs = [
            job if size is None else replace(job, upload_s=link.upload_s(size))
            for job, size in zip(self.work.jobs, self.upload_bytes, strict=True)
        ]
        download_s = self.download_codec_s + sum(map(link.download_s, self.download_bytes))
        work = replace(self.work, jobs=tuple(jobs), download_s=download_s)
        return work if speeds == PLANNED_SPEEDS else at_speeds(work, speeds)

    def scaled(self, factor: float) -> "Forecast":
        """The forecast for `factor` times as many rows, as far as seconds and bytes follow them.

        The seconds of both sides and of encoding, and the bytes of each message, are proportional
        to the rows. What the link takes for each message whatever its bytes stays the same.
        """

        def bytes_of(size: int) -> int:
            return math.ceil(factor * size)

        sides = at_speeds(self.work, Speeds(factor, factor))
        return replace(
            self,
            work=replace(sides, download_s=factor * sides.download_s),
            upload_bytes=tuple(s if s is None else bytes_of(s) for s in self.upload_bytes),
            download_bytes=tuple(map(bytes_of, self.download_bytes)),
            download_codec_s=factor * self.download_codec_s,
        )

    def latency_s(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> float:
        """Predicted seconds from input to output."""
        return makespan_s(self.on(link, speeds), range(len(self.upload_bytes)))

    def use(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> ResourceUse:
        """The seconds that one inference keeps each resource busy."""
        return ResourceUse.of(self.on(link, speeds))

    def period_s(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> float:
        """Predicted seconds between two outputs of a stream: those of the busiest resource."""
        return self.use(link, speeds).period_s

    def value_s(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> float:
        """The figure by which plans are compared: the smaller the better."""
        return self.period_s(link, speeds) if self.by_period else self.latency_s(link, speeds)

    def timeline(self, link: Link) -> Timeline:
        """The predicted timeline on a link, one span a segment or a tensor."""
        return _program_timeline(self.on(link))

    def __post_init__(self) -> None:
        if len(self.upload_bytes) != len(self.work.jobs):
            raise InputError("a forecast must have one entry of upload_bytes for each job")


def at_speeds(work: Instance, speeds: Speeds) -> Instance:
    """The same work on sides of other speeds; the wait is the server's before its first layer."""
    jobs = [replace(job, compute_s=speeds.device * job.compute_s) for job in work.jobs]
    server_jobs = [replace(j, compute_s=speeds.server * j.compute_s) for j in work.server_jobs]
    server_s = speeds.server * work.server_s
    if server_jobs:
        first = work.server_topological[0]
        waiting = server_jobs[first].compute_s + speeds.server_wait_s
        server_jobs[first] = replace(server_jobs[first], compute_s=waiting)
    elif server_s:
        server_s += speeds.server_wait_s
    return replace(work, jobs=tuple(jobs), server_s=server_s, server_jobs=tuple(server_jobs))


def _program_timeline(work: Instance) -> Timeline:
    """The timeline of a program with its segments' and tensors' names as span names.

    The scheduler's jobs have a number before the name, which makes the names unique.
    """

    def name(span: Span) -> str:
        if span.lane is Lane.SERVER:
            return "server-0" if span.name == "rest" else span.name
        return span.name.partition(":")[2] or span.name

    timeline = simulate(work, range(len(work.jobs)))
    return Timeline.of(replace(span, name=name(span)) for span in timeline.spans)


PLAN_FORMAT = 3


class Side(StrEnum):
    """Where a segment runs."""

    DEVICE = "device"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Segment:
    """A subgraph that runs in one call.

    Attributes:
        id: unique in the plan: `device-0`, `device-1`, ..., `server-0`.
        side: where it runs.
        layers: names of its layers, in execution order.
        nodes: indexes of their nodes in the source model's main graph, ascending.
        inputs: tensors it needs: graph inputs, or outputs of segments that run before it.
        outputs: tensors it computes that a later segment, a send or the caller needs.
        common: the part of the bundle that computes it; empty: the part named like its id. Plans
            of one bundle that share a segment name the same part.
    """

    id: str
    side: Side
    layers: tuple[str, ...]
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    common: str = ""

    @property
    def part(self) -> str:
        """The part of the bundle that computes it: unique there, whatever the plan."""
        return self.common or self.id

    @property
    def file(self) -> str:
        """Name of its ONNX file in the bundle."""
        return f"{self.part}.onnx"


@dataclass(frozen=True, slots=True)
class Send:
    """A tensor that is sent over the link.

    Attributes:
        tensor: its name in the source model.
        size_bytes: predicted bytes on the wire; None where the shape depends on data.
        encoding: name of its encoding (`offload.costs.encodings`); `raw` is little-endian, C order.
        p95_bytes: 95 of 100 inputs take no more; None where `size_bytes` is exact.
        tensor_bytes: bytes of the tensor itself; None where they are `size_bytes`, or unknown.
        affine: scale and zero point where the encoding quantises.
    """

    tensor: str
    size_bytes: int | None
    encoding: str = "raw"
    p95_bytes: int | None = None
    tensor_bytes: int | None = None
    affine: Affine | None = None

    def __post_init__(self) -> None:
        encoding(self.encoding)  # InputError: this version does not know it

    @property
    def wire(self) -> str:
        """Its name on the wire, in segments and steps."""
        return encoding(self.encoding).wire_name(self.tensor)

    @property
    def is_encoded(self) -> bool:
        """Whether a codec encodes the tensor; otherwise its own bytes are sent."""
        return encoding(self.encoding).codec != RAW.codec

    @property
    def guard(self) -> str | None:
        """The scalar that is not finite where the tensor must not be sent; None: none."""
        return encoding(self.encoding).guard_name(self.tensor)


class Action(StrEnum):
    """The action of a step of the device's program."""

    RUN = "run"
    SEND = "send"


@dataclass(frozen=True, slots=True)
class Step:
    """Run a segment (target: its id) or enqueue a send (target: its name on the wire)."""

    action: Action
    target: str

    def to_json(self) -> list[str]:
        """`[action, target]`: plans have many steps."""
        return [self.action.value, self.target]

    @classmethod
    def from_json(cls, value: Sequence[str]) -> "Step":
        """Read what `to_json` wrote."""
        action, target = value
        return cls(Action(action), target)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that was compared, with its predicted figures.

    Attributes:
        scheme: `local`, `cloud`, `partition`, `opss`, ...
        latency_s: predicted seconds from input to output.
        upload_bytes: bytes uploaded per inference.
        device_layers: number of layers the device computes.
        cut: tensors that are uploaded, in order of sending.
        period_s: predicted seconds between two outputs of a stream: those of the busiest resource.
        memory_bytes: memory of the device's process, rounded up.
        energy_j: the device's joules per inference; None where its power isn't known.
    """

    scheme: str
    latency_s: float
    upload_bytes: int
    device_layers: int
    cut: tuple[str, ...]
    period_s: float = 0.0
    memory_bytes: int = 0
    energy_j: float | None = None


@dataclass(frozen=True)
class Plan:
    """One way to run one model across a device and a server.

    Attributes:
        model: SHA-256 digest of the source model.
        scheme: the scheme that was chosen.
        segments: all segments, the device's first, each side in topological order.
        uploads: sends from device to server, in the order they are enqueued.
        downloads: sends from server to device.
        steps: the device's program.
        forecast: its predicted times, on its own link and on others.
        lower_bound_s: no order of the same cut has a smaller predicted latency.
        status: `optimal` when the bound is met, else `feasible`.
        solver: the scheduler that found the order.
        instance: the scheduling problem that was solved; None: there was nothing to order.
        alternatives: everything compared, the chosen one included.
        reason: one sentence: which plan wins and why.
        latency_p95_s: `latency_s` with each tensor's 95th percentile size; None where no size
            varies.
        link: the link it was made for; None where costs were given by hand.
        device: the machine of the device's profile, as the profile names it; empty: not known.
        slowdown: factor on that device's seconds for which the plan was chosen. Reason,
            alternatives and `latency_p95_s` are for the device slowed down by it; all other times
            are for the device as profiled.
    """

    model: str
    scheme: str
    segments: tuple[Segment, ...]
    uploads: tuple[Send, ...]
    downloads: tuple[Send, ...]
    steps: tuple[Step, ...]
    forecast: Forecast
    lower_bound_s: float
    status: str
    solver: str
    instance: Instance | None = None
    alternatives: tuple[Alternative, ...] = ()
    reason: str = ""
    latency_p95_s: float | None = None
    link: Link | None = None
    device: str = ""
    slowdown: float = 1.0

    @cached_property
    def latency_s(self) -> float:
        """Predicted seconds from input to output."""
        return makespan_s(self.forecast.work, range(len(self.forecast.work.jobs)))

    @cached_property
    def timeline(self) -> Timeline:
        """The predicted timeline, one span a segment or a tensor."""
        return _program_timeline(self.forecast.work)

    def on(self, side: Side) -> tuple[Segment, ...]:
        """The segments of one side, in order."""
        return tuple(segment for segment in self.segments if segment.side is side)

    def segment(self, segment_id: str) -> Segment:
        """The segment of that id; KeyError when there is none."""
        for segment in self.segments:
            if segment.id == segment_id:
                return segment
        raise KeyError(segment_id)

    @property
    def is_lossless(self) -> bool:
        """Whether every tensor that is sent arrives bit by bit."""
        return all(encoding(send.encoding).is_lossless for send in (*self.uploads, *self.downloads))

    @property
    def program(self) -> tuple[object, ...]:
        """What runs and what is sent how: equal for plans that do the same."""
        sends = tuple((send.tensor, send.encoding) for send in (*self.uploads, *self.downloads))
        return self.segments, self.steps, sends

    @property
    def is_local(self) -> bool:
        """Whether the device computes everything: no server is needed."""
        return not self.on(Side.SERVER)

    @property
    def made_for(self) -> str:
        """Link and slow-down for which it was chosen, in words; empty: costs given by hand."""
        if self.link is None:
            return ""
        slower = f", device {self.slowdown:.3g}x slower" if self.slowdown != 1 else ""
        return self.link.describe() + slower

    def predicted(self, link: Link | None) -> Timeline | None:
        """The timeline on a link; None where the link is not known and the plan uses it."""
        if self.is_local or (link is not None and link == self.link):
            return self.timeline
        return None if link is None else self.forecast.timeline(link)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number and the predicted times; `from_json` reads it."""
        times = {"latency_s": self.latency_s, "timeline": self.timeline.to_json()}
        return {"format": PLAN_FORMAT, **fields_to_json(self), **times}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format number, or a field is missing or of the wrong kind.
        """
        return read_version(cls, value, PLAN_FORMAT, name="plan", remedy="make the bundle again")
