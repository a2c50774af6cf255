"""The plan: who computes what, what is sent when, and what was predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from offload.costs.encodings import encoding
from offload.costs.link import Link
from offload.costs.quantization import Affine
from offload.errors import InputError
from offload.records import fields_from_json, fields_to_json
from offload.scheduling.instance import Instance
from offload.scheduling.timeline import Lane, Span, Timeline, makespan_s, simulate


@dataclass(frozen=True)
class Forecast:
    """A program's work, the link left open.

    Attributes:
        work: the program as the scheduler's jobs, one a step; what crosses takes no time in it
            but for encoding and decoding.
        upload_bytes: bytes that each job sends up; None for one that sends nothing.
        download_bytes: bytes of each message that comes back.
        by_period: whether plans are compared by the seconds between two answers of a stream,
            not by the latency of one.
    """

    work: Instance
    upload_bytes: tuple[int | None, ...]
    download_bytes: tuple[int, ...]
    by_period: bool = False

    def on(self, link: Link) -> Instance:
        """The scheduler's instance on a link."""
        jobs = (
            job if size is None else replace(job, upload_s=link.upload_s(size))
            for job, size in zip(self.work.jobs, self.upload_bytes, strict=True)
        )
        download_s = self.work.download_s + sum(map(link.download_s, self.download_bytes))
        return replace(self.work, jobs=tuple(jobs), download_s=download_s)

    def latency_s(self, link: Link) -> float:
        """Predicted seconds from input to answer on a link."""
        return makespan_s(self.on(link), range(len(self.upload_bytes)))

    def period_s(self, link: Link) -> float:
        """Predicted seconds between two answers of a stream: the busiest resource's."""
        found = self.on(link)
        server_s = found.server_s + sum(job.compute_s for job in found.server_jobs)
        return max(found.total_compute_s, found.total_upload_s, server_s, found.download_s)

    def value_s(self, link: Link) -> float:
        """What plans are compared by on a link: the smaller the better."""
        return self.period_s(link) if self.by_period else self.latency_s(link)

    def timeline(self, link: Link) -> Timeline:
        """The predicted timeline on a link, one span a segment or a tensor."""
        return readable(simulate(self.on(link), range(len(self.upload_bytes))))

    def __post_init__(self) -> None:
        if len(self.upload_bytes) != len(self.work.jobs):
            raise InputError("the forecast's bytes are not one entry a job")


def readable(timeline: Timeline) -> Timeline:
    """Job numbers made a program's names unique; people want segments and tensors."""
    return Timeline.of(replace(span, name=_name(span)) for span in timeline.spans)


def _name(span: Span) -> str:
    if span.lane is Lane.SERVER:
        return "server-0" if span.name == "rest" else span.name
    return span.name.partition(":")[2] or span.name


PLAN_FORMAT = 2


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
        outputs: tensors it makes that a later segment, a send or the caller needs.
        common: the part of the bundle that computes it; empty: the one named as its id. Plans
            of one bundle that have a segment in common name the same part.
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
    """A tensor that crosses the link.

    Attributes:
        tensor: its name in the source model.
        size_bytes: bytes it takes on the wire as predicted; None where the shape depends on data.
        encoding: name of its encoding (`offload.encoding`); `raw` is little-endian, C order.
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
        encoding(self.encoding)  # refuses one that this version does not know

    @property
    def wire(self) -> str:
        """What it is called while it crosses, in segments and steps."""
        return encoding(self.encoding).wire_name(self.tensor)

    @property
    def guard(self) -> str | None:
        """The scalar that is no finite number where the tensor must not cross; None: none."""
        return encoding(self.encoding).guard_name(self.tensor)


class Action(StrEnum):
    """What a step of the device's program does."""

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
    """A plan that was compared and what it was predicted to cost.

    Attributes:
        scheme: `local`, `cloud`, `partition`, `opss`, ...
        latency_s: predicted seconds from input to answer.
        upload_bytes: bytes sent up per inference.
        device_layers: number of layers the device computes.
        cut: tensors that cross upwards, in order of sending.
        period_s: predicted seconds between two answers of a stream: the busiest resource's.
        memory_bytes: memory of the device's process, on the safe side.
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
        timeline: the predicted timeline.
        latency_s: predicted seconds from input to answer.
        lower_bound_s: no order of the same cut can be predicted faster.
        status: `optimal` when the bound is met, else `feasible`.
        solver: the scheduler that found the order.
        instance: the scheduling problem that was solved, as `Instance.to_json` writes it.
        alternatives: everything compared, the chosen one included.
        reason: one sentence: which plan wins and why.
        latency_p95_s: as `latency_s`, each tensor as large as 95 of 100 are at most; None where
            no size varies.
        link: the link it was made for; None where costs were given by hand.
        forecast: what it takes on other links; None in bundles of older versions.
        device: the machine whose profile it rests on, as the profile names it; empty: not known.
    """

    model: str
    scheme: str
    segments: tuple[Segment, ...]
    uploads: tuple[Send, ...]
    downloads: tuple[Send, ...]
    steps: tuple[Step, ...]
    timeline: Timeline
    latency_s: float
    lower_bound_s: float
    status: str
    solver: str
    instance: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    reason: str = ""
    latency_p95_s: float | None = None
    link: Link | None = None
    forecast: Forecast | None = None
    device: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "instance", MappingProxyType(dict(self.instance)))

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
        """Whether all that crosses comes back bit by bit."""
        return all(encoding(send.encoding).is_lossless for send in (*self.uploads, *self.downloads))

    @property
    def program(self) -> tuple[object, ...]:
        """What runs and how it crosses: equal for plans that do the same."""
        ways = tuple((send.tensor, send.encoding) for send in (*self.uploads, *self.downloads))
        return self.segments, self.steps, ways

    @property
    def is_local(self) -> bool:
        """Whether the device computes everything: no server is needed."""
        return not self.on(Side.SERVER)

    def predicted(self, link: Link | None) -> Timeline | None:
        """The timeline on a link; None where there is no prediction for it.

        A plan that stays on the device needs no link.
        """
        if self.is_local or (link is not None and link == self.link):
            return self.timeline
        if link is None or self.forecast is None:
            return None
        return self.forecast.timeline(link)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {"format": PLAN_FORMAT, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format number, or a field is missing or of the wrong kind.
        """
        if not isinstance(value, Mapping) or value.get("format") != PLAN_FORMAT:
            told = value.get("format") if isinstance(value, Mapping) else None
            raise InputError(
                f"plan has format {told!r}, this version reads {PLAN_FORMAT}: make the bundle again"
            )
        try:
            return fields_from_json(cls, value)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(f"plan is damaged ({error}): make the bundle again") from error
