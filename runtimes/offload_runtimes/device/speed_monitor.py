"""Monitor how fast device and server are, compared with the plan, from the session's own work."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from offload.planning.plan import Action, Plan, Side, Speeds

import offload_runtimes.protocol.offload_pb2 as pb

WINDOW = 48
HALF_LIFE_S = 1.0
WAIT_HALF_LIFE_S = 0.5  # devices that share a server soon see what the others do
SHORTEST_S = 0.5e-3  # shorter segments show the overhead of a call, not the speed of the machine
# Without measurements for so long, a side is assumed to be as fast as planned again.
FORGET_DEVICE_S, FORGET_SERVER_S = 30.0, 10.0
_SLOWEST, _FASTEST = 50.0, 0.2


@dataclass(frozen=True, slots=True)
class _Sample:
    """One measurement: its value, its weight in seconds, and when it was made."""

    value: float
    weight_s: float
    when_s: float

    def weight(self, now_s: float, half_life_s: float = HALF_LIFE_S) -> float:
        """The weight now: recent samples count more."""
        return float(self.weight_s * 0.5 ** (max(now_s - self.when_s, 0.0) / half_life_s))


@dataclass(frozen=True, slots=True)
class _Predicted:
    """Predicted seconds of a plan's segments on each side, by segment."""

    device_s: Mapping[str, float]
    server_s: Mapping[str, float]

    @classmethod
    def of(cls, plan: Plan) -> "_Predicted":
        work = plan.forecast.work
        # One job a step; the forecast of a plan that was made by hand may have other jobs.
        pairs = zip(plan.steps, work.jobs, strict=False)
        device_s = {s.target: job.compute_s for s, job in pairs if s.action is Action.RUN}
        server_s = {job.name: job.compute_s for job in work.server_jobs}
        if not server_s:
            server_s = {segment.id: work.server_s for segment in plan.on(Side.SERVER)[:1]}
        return cls(device_s, server_s)


class SpeedMonitor:
    """Compares measured with predicted seconds of segments; any thread may call it.

    A factor is the median of the measured over the predicted seconds, weighted by the predicted
    seconds and by age. The server counts as at least as slow as planned: its prediction holds the
    decoding of tensors, which the measured segments do not.

    Attributes:
        samples: number of measurements so far.
        device_at_s: when the device was last measured, by `time.monotonic`; -inf: never.
    """

    def __init__(self, plans: Sequence[Plan] = ()) -> None:
        """`plans`: the predictions to compare with."""
        self.samples = 0
        self.device_at_s = float("-inf")
        self._predicted = [_Predicted.of(plan) for plan in plans]
        self._device: deque[_Sample] = deque(maxlen=WINDOW)
        self._server: deque[_Sample] = deque(maxlen=WINDOW)
        self._waits: deque[_Sample] = deque(maxlen=WINDOW)
        self._served_until_s = 0.0  # by the server's clock
        self._lock = threading.Lock()

    def computed(
        self, plan: int, segment: str, measured_s: float, now_s: float | None = None
    ) -> None:
        """Record how long the device took for a segment of a plan."""
        predicted_s = self._predicted[plan].device_s.get(segment, 0.0)
        if predicted_s >= SHORTEST_S:
            self.device_at_s = time.monotonic() if now_s is None else now_s
            self._add(
                self._device, _Sample(measured_s / predicted_s, predicted_s, self.device_at_s)
            )

    def served(self, plan: int, spans: Sequence[pb.Span], now_s: float | None = None) -> None:
        """Record what the server did for a frame of a plan.

        The wait for others' work begins when the last tensor before the first segment has arrived
        and the server is done with this session's own work.
        """
        when_s = time.monotonic() if now_s is None else now_s
        arrived_s = 0.0
        for span in spans:
            if span.kind == pb.Span.ARRIVAL:
                arrived_s = max(arrived_s, span.end_s)
                continue
            if arrived_s:
                self.waited(max(span.start_s - max(arrived_s, self._served_until_s), 0.0), when_s)
                arrived_s = 0.0
            self._served_until_s = max(self._served_until_s, span.end_s)
            predicted_s = self._predicted[plan].server_s.get(span.name, 0.0)
            if predicted_s >= SHORTEST_S:
                factor = (span.end_s - span.start_s) / predicted_s
                self._add(self._server, _Sample(factor, predicted_s, when_s))

    def device_segments(self) -> list[tuple[int, str]]:
        """Plan and id of the device's segments that show its speed, the shortest first."""
        rows = [
            (seconds, plan, segment)
            for plan, predicted in enumerate(self._predicted)
            for segment, seconds in predicted.device_s.items()
            if seconds >= SHORTEST_S
        ]
        return [(plan, segment) for _, plan, segment in sorted(rows)]

    def waited(self, seconds: float, now_s: float | None = None) -> None:
        """Record how long a segment waited at the server for others' work, or would wait."""
        when_s = time.monotonic() if now_s is None else now_s
        self._add(self._waits, _Sample(seconds, 1.0, when_s))

    def speeds(self, now_s: float) -> Speeds:
        """The speeds now; as planned where nothing was measured for a while."""
        with self._lock:
            device, server, waits = tuple(self._device), tuple(self._server), tuple(self._waits)
        return Speeds(
            min(max(_factor(device, now_s, FORGET_DEVICE_S), _FASTEST), _SLOWEST),
            min(max(_factor(server, now_s, FORGET_SERVER_S), 1.0), _SLOWEST),
            _wait_s(waits, now_s),
        )

    def _add(self, samples: deque[_Sample], sample: _Sample) -> None:
        with self._lock:
            samples.append(sample)
            self.samples += 1


def _factor(samples: tuple[_Sample, ...], now_s: float, forget_s: float) -> float:
    """The weighted median; 1 if the newest measurement is too old."""
    if not samples or now_s - samples[-1].when_s > forget_s:
        return 1.0
    newest_s = samples[-1].when_s  # weights relative to it do not underflow
    weighted = sorted((sample.value, sample.weight(newest_s)) for sample in samples)
    sums = tuple(accumulate(weight for _, weight in weighted))
    return next(v for (v, _), total in zip(weighted, sums, strict=True) if total >= sums[-1] / 2)


def _wait_s(samples: tuple[_Sample, ...], now_s: float) -> float:
    """The weighted mean of the waits; 0 if the newest one is too old."""
    if not samples or now_s - samples[-1].when_s > FORGET_SERVER_S:
        return 0.0
    weights = [sample.weight(samples[-1].when_s, WAIT_HALF_LIFE_S) for sample in samples]
    total = sum(sample.value * weight for sample, weight in zip(samples, weights, strict=True))
    return total / sum(weights)
