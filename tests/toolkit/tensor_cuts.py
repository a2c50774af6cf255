"""Cut a model at tensors by name, without layers, costs or a plan."""

from collections.abc import Iterable

from offload.bundle.subgraph import Part
from offload.bundle.verify import DEVICE_FILE, SERVER_FILE
from offload.errors import InputError
from offload.graph.load import Model


def parts_at(model: Model, tensors: Iterable[str]) -> dict[str, Part]:
    """The two parts of a cut at tensors.

    The device computes what the tensors need and the server the rest. Everything that the server
    then lacks crosses, so more tensors may cross than were named. O(nodes).

    Raises:
        InputError: the model has no such tensor.
    """
    values = model.values
    device: set[int] = set()
    before = set(tensors)
    known = values.producer.keys() | values.inputs.keys() | values.initializers.keys()
    for name in before:
        if name not in known | values.sparse.keys():
            raise InputError(f"the model has no tensor {name!r} to cut at")
    needed, server = set(values.outputs), []
    for index in reversed(values.order):
        if index in values.constant:
            continue
        if not before.isdisjoint(values.produces[index]):
            device.add(index)
            before.update(values.consumes[index])
        elif not needed.isdisjoint(values.produces[index]):
            server.append(index)
            needed.update(values.consumes[index])
    outputs = [
        name for index in sorted(device) for name in values.produces[index] if name in needed
    ]
    inputs = [name for name in values.inputs if name in before]
    later = {name for index in server for name in values.consumes[index]}
    later.update(name for name in values.outputs if name in values.inputs)
    crossing = [name for name in (*values.inputs, *outputs) if name in later]
    server_outputs = [name for name in values.outputs if name not in set(outputs)]
    return {
        DEVICE_FILE: Part(tuple(sorted(device)), tuple(inputs), tuple(outputs)),
        SERVER_FILE: Part(tuple(sorted(server)), tuple(crossing), tuple(server_outputs)),
    }
