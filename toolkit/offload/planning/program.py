"""From a cut and an order to what runs: the scheduling problem, the segments, the steps."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from offload.costs.encoding_table import TransferOption
from offload.costs.encodings import RAW
from offload.graph.model import Graph
from offload.planning.cut import Cut
from offload.planning.cut_costs import Costs
from offload.planning.plan import Action, Segment, Send, Side, Step
from offload.scheduling.instance import Instance, Job, ServerJob


@dataclass(frozen=True)
class SchedulingProblem:
    """The scheduling problem of a cut, and the layers and tensors of its jobs.

    Attributes:
        instance: jobs in topological order.
        layers: the layer that each job computes; None for a job that only sends.
        tensors: the tensor that each job sends; None for a job that only computes.
    """

    instance: Instance
    layers: tuple[int | None, ...]
    tensors: tuple[str | None, ...]


def scheduling_problem(graph: Graph, costs: Costs, cut: Cut) -> SchedulingProblem | None:
    """The scheduling problem of a cut; None when the device has nothing to do or to send.

    A layer with one tensor to send is one job. A graph input to send, and each tensor of a layer
    that sends several, is a job of its own that computes only the encoding.
    """
    sent: dict[int, list[str]] = {}
    rows: list[tuple[int | None, str | None]] = []
    for name in cut.uploads:
        if name in graph.producer:
            sent.setdefault(graph.producer[name], []).append(name)
        else:
            rows.append((None, name))
    for layer in sorted(cut.device):
        tensors = sent.get(layer, [])
        single = tensors[0] if len(tensors) == 1 else None
        rows += [(layer, single), *((None, name) for name in tensors if name != single)]
    if not rows:
        return None
    job_of_layer = {layer: index for index, (layer, _) in enumerate(rows) if layer is not None}
    jobs, edges = [], []
    for index, (row_layer, tensor) in enumerate(rows):
        upload_s = 0.0 if tensor is None else costs.upload_s[tensor]
        leave_s = 0.0 if tensor is None else costs.leave_s(tensor)
        if row_layer is None:
            jobs.append(Job(f"send {tensor}", leave_s, upload_s))
            producer = graph.producer.get(tensor or "")
            edges += [] if producer is None else [(job_of_layer[producer], index)]
        else:
            compute_s = costs.device_s[row_layer] + leave_s
            jobs.append(Job(graph.layers[row_layer].name, compute_s, upload_s))
            edges += [(job_of_layer[before], index) for before in graph.predecessors[row_layer]]
    server_s, download_s = costs.server_time_s(cut), costs.download_time_s(cut)
    layers, names = zip(*rows, strict=True)
    return SchedulingProblem(
        Instance(tuple(jobs), tuple(edges), server_s, download_s), layers, names
    )


@dataclass(frozen=True)
class Program:
    """What both sides run.

    Attributes:
        segments: the device's in order of running, then the server's.
        uploads: in order of sending.
        downloads: in the graph's order.
        steps: the device's runs and sends.
    """

    segments: tuple[Segment, ...]
    uploads: tuple[Send, ...]
    downloads: tuple[Send, ...]
    steps: tuple[Step, ...]

    def on(self, side: Side) -> list[Segment]:
        """The segments of one side."""
        return [segment for segment in self.segments if segment.side is side]

    def device_order(self, graph: Graph) -> tuple[int, ...]:
        """The device's layers in the order in which they run."""
        index = {layer.name: number for number, layer in enumerate(graph.layers)}
        return tuple(index[name] for s in self.on(Side.DEVICE) for name in s.layers)


def pipelined(
    graph: Graph, costs: Costs, cut: Cut, scheduling: SchedulingProblem, order: Sequence[int]
) -> Program:
    """The program of an order of jobs: a segment ends at each tensor to send."""
    blocks: list[tuple[tuple[int, ...], str | None]] = []
    pending: list[int] = []
    for job in order:
        layer, tensor = scheduling.layers[job], scheduling.tensors[job]
        if layer is not None:
            pending.append(layer)
        if tensor is not None:
            blocks.append((tuple(pending), tensor))
            pending = []
    if pending:
        blocks.append((tuple(pending), None))
    return _program(graph, costs, cut, blocks)


def serial(graph: Graph, costs: Costs, cut: Cut) -> Program:
    """The program of partition-only schemes: compute everything as one segment, then send."""
    compute = [(tuple(sorted(cut.device)), None)] if cut.device else []
    return _program(graph, costs, cut, [*compute, *(((), name) for name in cut.uploads)])


def _program(
    graph: Graph,
    costs: Costs,
    cut: Cut,
    blocks: Iterable[tuple[tuple[int, ...], str | None]],
) -> Program:
    """The program that computes the layers of each block and then sends its tensor."""
    steps: list[Step] = []
    runs: list[tuple[int, ...]] = []
    uploads: list[str] = []
    for layers, tensor in blocks:
        if layers:
            steps.append(Step(Action.RUN, f"device-{len(runs)}"))
            runs.append(layers)
        if tensor is not None:
            steps.append(Step(Action.SEND, tensor))
            uploads.append(tensor)
    unproduced = tuple(name for name in graph.outputs if name not in graph.producer)
    if unproduced and not runs:
        steps.append(Step(Action.RUN, "device-0"))
        runs.append(())
    last = len(runs) - 1
    segments = [
        segment_of(graph, Side.DEVICE, number, layers, unproduced if number == last else ())
        for number, layers in enumerate(runs)
    ]
    server = [index for index in range(len(graph.layers)) if index not in cut.device]
    if server:
        segments.append(segment_of(graph, Side.SERVER, 0, server))
    return Program(
        tuple(segments),
        tuple(Send(name, costs.size_bytes.get(name)) for name in uploads),
        tuple(Send(name, costs.size_bytes.get(name)) for name in cut.downloads),
        tuple(steps),
    )


def segment_of(
    graph: Graph,
    side: Side,
    number: int,
    layers: Sequence[int],
    unproduced: tuple[str, ...] = (),
) -> Segment:
    """The segment that computes some layers; its outputs are what others or the caller need.

    Args:
        graph: the layers.
        side: where it runs.
        number: its number on that side.
        layers: in order of execution.
        unproduced: graph outputs that no layer computes and this segment returns: inputs passed
            through, or constants.
    """
    inside, producer = set(layers), graph.producer
    ordered = [graph.layers[layer] for layer in sorted(inside)]
    needed = [n for layer in ordered for n in layer.inputs if producer.get(n, -1) not in inside]
    outputs = [
        name
        for layer in ordered
        for name in layer.outputs
        if name in graph.outputs or not inside.issuperset(graph.consumers.get(name, ()))
    ]
    return Segment(
        f"{side.value}-{number}",
        side,
        tuple(graph.layers[layer].name for layer in layers),
        tuple(sorted(node for layer in ordered for node in layer.nodes)),
        tuple(dict.fromkeys((*needed, *(n for n in unproduced if n in graph.inputs)))),
        (*outputs, *unproduced),
    )


def program_instance(graph: Graph, costs: Costs, cut: Cut, program: Program) -> Instance:
    """A program as the scheduler's jobs, one a step, in the program's own order."""
    index = {layer.name: number for number, layer in enumerate(graph.layers)}

    def run_s(segment: Segment) -> float:
        on_device = segment.side is Side.DEVICE
        seconds = costs.device_s if on_device else costs.server_s
        extra_s = costs.device_segment_s if on_device else costs.server_segment_s
        if len(segment.layers) == len(graph.layers):
            extra_s = 0.0
        return sum(seconds[index[name]] for name in segment.layers) + extra_s

    segment_s = {segment.id: run_s(segment) for segment in program.segments}
    jobs, sends = [], {}
    for number, step in enumerate(program.steps):
        name = f"{number}:{step.target}"
        if step.action is Action.RUN:
            jobs.append(Job(name, segment_s[step.target]))
        else:
            sends[step.target] = number
            encode_s = costs.encode_s.get(step.target, 0.0)
            jobs.append(Job(name, encode_s, costs.upload_s[step.target]))
    jobs = jobs or [Job("nothing", 0.0)]
    server, download_s = program.on(Side.SERVER), costs.download_time_s(cut)
    if len(server) < 2:
        return Instance(tuple(jobs), (), costs.server_time_s(cut), download_s)
    producer = {name: number for number, s in enumerate(server) for name in s.outputs}
    decoded_in: dict[str, str] = {}  # the first segment that reads a tensor decodes it
    for segment in server:
        for name in segment.inputs:
            decoded_in.setdefault(name, segment.id)
    server_jobs = tuple(
        ServerJob(
            segment.id,
            segment_s[segment.id]
            + sum(s for name, s in costs.decode_s.items() if decoded_in.get(name) == segment.id),
            tuple(sends[name] for name in segment.inputs if name in sends),
            tuple(sorted({producer[name] for name in segment.inputs if name in producer})),
        )
        for segment in server
    )
    return Instance(tuple(jobs), (), 0.0, download_s, server_jobs)


def with_encodings(program: Program, costs: Costs, outputs: Collection[str]) -> Program:
    """The program with tensors under the names and encodings with which they are sent.

    The device's segment that computes a tensor also encodes it (a segment of its own does where
    the caller gives the tensor); every segment of the server that needs it decodes it.

    Args:
        program: with plain tensors.
        costs: with the chosen transfer options.
        outputs: the model's outputs: those that the device computes are returned in plain form
            too.
    """
    sends = {s.tensor: _encoded(s, costs.upload_option(s.tensor)) for s in program.uploads}
    changed = {name: send for name, send in sends.items() if send.wire != name}
    device = program.on(Side.DEVICE)
    plain = {*outputs, *(name for segment in device for name in segment.inputs)}
    produced = {name for segment in device for name in segment.outputs}
    segments = []
    for segment in device:
        names: list[str] = []
        for name in segment.outputs:
            if name not in changed or name in plain:
                names.append(name)
            if name in changed:
                names += _wire_names(changed[name])
        segments.append(replace(segment, outputs=tuple(names)))
    encoders: dict[str, str] = {}  # by name on the wire: the segment that only encodes
    for name, send in changed.items():
        if name not in produced:
            encoders[send.wire] = f"device-{len(segments)}"
            ends = ((send.tensor,), _wire_names(send))
            segments.append(Segment(encoders[send.wire], Side.DEVICE, (), (), *ends))
    for segment in program.on(Side.SERVER):
        inputs = (changed[name].wire if name in changed else name for name in segment.inputs)
        segments.append(replace(segment, inputs=tuple(inputs)))
    steps = []
    for step in program.steps:
        if step.action is Action.RUN:
            steps.append(step)
        else:
            wire = sends[step.target].wire
            steps += [Step(Action.RUN, encoders[wire])] if wire in encoders else []
            steps.append(Step(Action.SEND, wire))
    return Program(
        tuple(segments),
        tuple(sends.values()),
        tuple(_encoded(send, costs.download_option(send.tensor)) for send in program.downloads),
        tuple(steps),
    )


def _encoded(send: Send, option: TransferOption | None) -> Send:
    if option is None:
        return send
    if option.encoding is RAW:
        varies = option.p95_bytes != option.size_bytes
        return replace(send, p95_bytes=option.p95_bytes if varies else None)
    return Send(
        send.tensor,
        option.size_bytes,
        option.encoding.name,
        option.p95_bytes if option.encoding.codec != RAW.codec else None,
        option.raw_bytes,
        option.affine,
    )


def _wire_names(send: Send) -> tuple[str, ...]:
    return (send.wire,) if send.guard is None else (send.wire, send.guard)
