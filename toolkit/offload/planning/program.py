"""From a cut and an order to what runs: the scheduling problem, the segments, the steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offload.graph.model import Graph
from offload.planning.costs import Costs
from offload.planning.cut import Cut
from offload.planning.plan import Action, Segment, Send, Side, Step
from offload.scheduling.instance import Instance, Job


@dataclass(frozen=True)
class SchedulingProblem:
    """The scheduling problem of a cut, and what its jobs stand for.

    Attributes:
        instance: jobs in topological order.
        layers: the layer each job computes; None for a job that only sends.
        tensors: the tensor each job sends; None for a job that only computes.
    """

    instance: Instance
    layers: tuple[int | None, ...]
    tensors: tuple[str | None, ...]


def scheduling_problem(graph: Graph, costs: Costs, cut: Cut) -> SchedulingProblem | None:
    """The scheduling problem of a cut; None when the device has nothing to do or to send.

    A layer with one tensor to send is one job. A graph input to send, and each tensor of a layer
    that sends several, is a job of its own that computes only what leaving costs.
    """
    rows = list(_rows(graph, cut))
    if not rows:
        return None
    job_of_layer = {layer: index for index, (layer, _) in enumerate(rows) if layer is not None}
    jobs, edges = [], []
    for index, (layer, tensor) in enumerate(rows):
        upload_s = 0.0 if tensor is None else costs.upload_s[tensor]
        leave_s = 0.0 if tensor is None else costs.leave_s(tensor)
        if layer is None:
            jobs.append(Job(f"send {tensor}", leave_s, upload_s))
            maker = graph.producer.get(tensor or "")
            edges += [] if maker is None else [(job_of_layer[maker], index)]
        else:
            compute_s = costs.device_s[layer] + leave_s
            jobs.append(Job(graph.layers[layer].name, compute_s, upload_s))
            edges += [(job_of_layer[before], index) for before in graph.predecessors[layer]]
    instance = Instance(tuple(jobs), tuple(edges), costs.rest_s(cut), costs.result_s(cut))
    return SchedulingProblem(
        instance, tuple(layer for layer, _ in rows), tuple(tensor for _, tensor in rows)
    )


def _rows(graph: Graph, cut: Cut) -> Iterable[tuple[int | None, str | None]]:
    sent: dict[int, list[str]] = {}
    for name in cut.uploads:
        if name in graph.producer:
            sent.setdefault(graph.producer[name], []).append(name)
        else:
            yield None, name
    for layer in sorted(cut.device):
        tensors = sent.get(layer, [])
        if len(tensors) == 1:
            yield layer, tensors[0]
        else:
            yield layer, None
            yield from ((None, name) for name in tensors)


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


def pipelined(
    graph: Graph, costs: Costs, cut: Cut, problem: SchedulingProblem | None, order: Sequence[int]
) -> Program:
    """Follow an order of the problem's jobs: a segment ends at each tensor to send."""
    blocks: list[tuple[tuple[int, ...], str | None]] = []
    pending: list[int] = []
    for job in order if problem else ():
        assert problem is not None
        layer, tensor = problem.layers[job], problem.tensors[job]
        if layer is not None:
            pending.append(layer)
        if tensor is not None:
            blocks.append((tuple(pending), tensor))
            pending = []
    if pending:
        blocks.append((tuple(pending), None))
    return _program(graph, costs, cut, blocks)


def serial(graph: Graph, costs: Costs, cut: Cut) -> Program:
    """Compute everything as one segment, then send: what partition-only schemes do."""
    blocks: list[tuple[tuple[int, ...], str | None]] = []
    if cut.device:
        blocks.append((tuple(sorted(cut.device)), None))
    blocks += [((), name) for name in cut.uploads]
    return _program(graph, costs, cut, blocks)


def _program(
    graph: Graph,
    costs: Costs,
    cut: Cut,
    blocks: Iterable[tuple[tuple[int, ...], str | None]],
) -> Program:
    steps: list[Step] = []
    runs: list[tuple[int, ...]] = []
    sent: list[str] = []
    for layers, tensor in blocks:
        if layers:
            steps.append(Step(Action.RUN, f"device-{len(runs)}"))
            runs.append(layers)
        if tensor is not None:
            steps.append(Step(Action.SEND, tensor))
            sent.append(tensor)
    free = tuple(name for name in graph.outputs if name not in graph.producer)
    if free and not runs:
        steps.append(Step(Action.RUN, "device-0"))
        runs.append(())
    segments = [
        _device_segment(graph, cut, index, layers, free if index == len(runs) - 1 else ())
        for index, layers in enumerate(runs)
    ]
    if len(cut.device) < len(graph.layers):
        rest = [index for index in range(len(graph.layers)) if index not in cut.device]
        segments.append(server_segment(graph, 0, rest))
    return Program(
        tuple(segments),
        tuple(Send(name, costs.size_bytes.get(name)) for name in sent),
        tuple(Send(name, costs.size_bytes.get(name)) for name in cut.downloads),
        tuple(steps),
    )


def _device_segment(
    graph: Graph, cut: Cut, index: int, layers: tuple[int, ...], free: tuple[str, ...]
) -> Segment:
    """`free` are graph outputs no layer makes: inputs passed through, or constants."""
    inside = set(layers)
    wanted = {*cut.uploads, *graph.outputs}
    made = [name for layer in sorted(inside) for name in graph.layers[layer].outputs]
    outputs = [
        name
        for name in made
        if name in wanted
        or any(user not in inside and user in cut.device for user in graph.consumers.get(name, ()))
    ]
    passed = tuple(name for name in free if name in graph.inputs)
    inputs = dict.fromkeys((*_inputs(graph, inside), *passed))
    return _segment(graph, f"device-{index}", Side.DEVICE, layers, inputs, (*outputs, *free))


def server_segment(graph: Graph, number: int, layers: Sequence[int]) -> Segment:
    """A segment of the server's: what it makes is what a later one or the caller needs."""
    inside = set(layers)
    outputs = [
        name
        for layer in layers
        for name in graph.layers[layer].outputs
        if name in graph.outputs or not inside.issuperset(graph.consumers.get(name, ()))
    ]
    inputs = dict.fromkeys(_inputs(graph, inside))
    return _segment(graph, f"server-{number}", Side.SERVER, layers, inputs, outputs)


def _inputs(graph: Graph, inside: set[int]) -> Iterable[str]:
    return (
        name
        for layer in sorted(inside)
        for name in graph.layers[layer].inputs
        if graph.producer.get(name, -1) not in inside
    )


def _segment(
    graph: Graph,
    segment_id: str,
    side: Side,
    layers: Sequence[int],
    inputs: Iterable[str],
    outputs: Iterable[str],
) -> Segment:
    return Segment(
        segment_id,
        side,
        tuple(graph.layers[layer].name for layer in layers),
        tuple(sorted(node for layer in layers for node in graph.layers[layer].nodes)),
        tuple(inputs),
        tuple(outputs),
    )
