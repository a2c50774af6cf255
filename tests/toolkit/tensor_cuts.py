"""Cut a model at tensors straight from the file: without layers, costs or a plan."""

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
    wanted = set(tensors)
    known = values.producer.keys() | values.inputs.keys() | values.initializers.keys()
    for name in wanted:
        if name not in known | values.sparse.keys():
            raise InputError(f"the model has no tensor {name!r} to cut at")
    needed, rest = set(values.outputs), []
    for index in reversed(values.order):
        if index in values.constant:
            continue
        if not wanted.isdisjoint(values.produces[index]):
            device.add(index)
            wanted.update(values.consumes[index])
        elif not needed.isdisjoint(values.produces[index]):
            rest.append(index)
            needed.update(values.consumes[index])
    made = [name for index in sorted(device) for name in values.produces[index] if name in needed]
    given = [name for name in values.inputs if name in wanted]
    later = {name for index in rest for name in values.consumes[index]}
    later.update(name for name in values.outputs if name in values.inputs)
    crosses = [name for name in (*values.inputs, *made) if name in later]
    answers = [name for name in values.outputs if name not in set(made)]
    return {
        DEVICE_FILE: Part(tuple(sorted(device)), tuple(given), tuple(made)),
        SERVER_FILE: Part(tuple(sorted(rest)), tuple(crosses), tuple(answers)),
    }
