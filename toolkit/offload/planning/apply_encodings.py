"""Choose encodings for the overlapped latency, then write them into a plan's segments and sends."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from offload.costs.encodings import RAW
from offload.planning.costs import Costs, Crossing
from offload.planning.plan import Action, Segment, Send, Side, Step
from offload.planning.program import Program
from offload.planning.scheme import PlanningProblem, SchemeEstimate, candidate

_ROUNDS = 3
_BETTER = 1 - 1e-9


def best_encoded(
    situation: PlanningProblem, found: SchemeEstimate, solver: str = "optimal"
) -> SchemeEstimate:
    """The candidate with the encodings that suit its order and overlap best.

    The search for the cut took each tensor's quickest way alone. Where uploads overlap, one that
    hides behind computation need not be small, and encoding seconds that hide nothing delay all
    that follows: each tensor's other ways are tried in turn, with the best order of each, until
    no change of one tensor helps (a local optimum). O(rounds x tensors x ways) schedules.
    """
    if not found.scheme.overlaps or all(len(found.costs.ways.get(t, ())) < 2 for t in _sent(found)):
        return found
    for _ in range(_ROUNDS):
        before = found.value
        for tensor in _sent(found):
            for way in found.costs.ways.get(tensor, ())[1:]:
                costs = found.costs.choosing(tensor, way)
                asked = replace(situation, costs=costs)
                other = candidate(asked, found.scheme, found.cut, solver)
                if other.value < found.value * _BETTER:
                    found = other
        if found.value >= before * _BETTER:
            break
    return found


def _sent(found: SchemeEstimate) -> tuple[str, ...]:
    return found.cut.uploads


def encoded(program: Program, costs: Costs, wanted: Collection[str]) -> Program:
    """The program with tensors under the names and encodings with which they cross.

    The device's segment that makes a tensor makes what crosses too (a segment of its own where
    the caller gives the tensor); every segment of the server that needs it decodes it.

    Args:
        program: with plain tensors.
        costs: whose first ways are taken.
        wanted: the model's outputs: those the device makes are kept beside their encoded form.
    """
    sends = {send.tensor: _send(send, costs.crossing(send.tensor)) for send in program.uploads}
    changed = {name: send for name, send in sends.items() if send.wire != name}
    on_device = [s for s in program.segments if s.side is Side.DEVICE]
    needed = {*wanted, *(name for segment in on_device for name in segment.inputs)}
    made = {name for segment in on_device for name in segment.outputs}
    device = [_encoding(segment, changed, needed) for segment in on_device]
    own = [send for name, send in changed.items() if name not in made]
    extra = {
        send.wire: Segment(f"device-{number}", Side.DEVICE, (), (), (send.tensor,), _crossing(send))
        for number, send in enumerate(own, len(device))
    }
    server = [
        replace(s, inputs=tuple(changed[n].wire if n in changed else n for n in s.inputs))
        for s in program.segments
        if s.side is Side.SERVER
    ]
    return Program(
        (*device, *extra.values(), *server),
        tuple(sends.values()),
        tuple(_send(send, costs.answer(send.tensor)) for send in program.downloads),
        tuple(_steps(program.steps, sends, extra)),
    )


def _send(send: Send, way: Crossing | None) -> Send:
    if way is None:
        return send
    if way.encoding is RAW:
        varies = way.p95_bytes != way.size_bytes
        return replace(send, p95_bytes=way.p95_bytes if varies else None)
    return Send(
        send.tensor,
        way.size_bytes,
        way.encoding.name,
        way.p95_bytes if way.encoding.codec != RAW.codec else None,
        way.raw_bytes,
        way.affine,
    )


def _crossing(send: Send) -> tuple[str, ...]:
    return (send.wire,) if send.guard is None else (send.wire, send.guard)


def _encoding(segment: Segment, changed: dict[str, Send], needed: Collection[str]) -> Segment:
    outputs: list[str] = []
    for name in segment.outputs:
        if name not in changed or name in needed:
            outputs.append(name)
        if name in changed:
            outputs += _crossing(changed[name])
    return replace(segment, outputs=tuple(outputs))


def _steps(
    steps: Iterable[Step], sends: dict[str, Send], extra: dict[str, Segment]
) -> Iterable[Step]:
    for step in steps:
        if step.action is Action.RUN:
            yield step
            continue
        wire = sends[step.target].wire
        if wire in extra:
            yield Step(Action.RUN, extra[wire].id)
        yield Step(Action.SEND, wire)
