"""Parse names of tensors to cut a model at, and explain why a model can't be cut at one."""

import difflib
from collections.abc import Sequence

from offload.graph.load import Model
from offload.graph.value_index import nested_nodes


def cut_names(model: Model, text: str) -> list[str]:
    """Names of tensors in a list separated by commas.

    Names may contain commas and blanks: the longest name that the model has is taken first. Text
    that is not a name in the model is kept, without blanks at its ends.
    """
    values = model.values
    known = values.producer.keys() | values.inputs.keys() | values.initializers.keys()
    pieces, names, start = text.split(","), [], 0
    while start < len(pieces):
        for end in range(len(pieces), start, -1):
            piece = ",".join(pieces[start:end])
            name = piece if piece in known else piece.strip()
            if name in known or end == start + 1:
                break
        names += [name] if name else []
        start = end
    return names


def why_not_cuttable(model: Model, name: str) -> str:
    """One sentence: why a model cannot be cut at a name, and what to do."""
    values = model.values
    if name in values.defaults:
        return (
            f"cannot cut at {name!r}: it is an input with a default, and each side that uses it"
            " gets it; cut at a tensor that is computed from it"
        )
    if values.is_constant(name):
        return (
            f"cannot cut at {name!r}: it is a constant, and both sides have a copy; cut at a tensor"
            " that depends on the model's inputs"
        )
    if name in values.producer:
        return f"cannot cut at {name!r}: {_why_together(model, name)}"
    for index in sorted(values.containers):
        container = model.proto.graph.node[index]
        if any(name in inner.output for inner in nested_nodes(container)):
            op, named = container.op_type, container.name
            what = f"the {op} {named!r}" if named else f"a node {op}"
            return (
                f"cannot cut at {name!r}: it is inside the body of {what}, which runs as a whole;"
                f" cut at one of its outputs, like {container.output[0]!r}"
            )
    for function in model.proto.functions:
        if any(name in inner.output for node in function.node for inner in nested_nodes(node)):
            return (
                f"cannot cut at {name!r}: it is inside the function {function.name!r}, which runs"
                " as a whole; cut at an output of a node that calls it"
            )
    computed = [tensor for tensor in values.producer if not values.is_constant(tensor)]
    return unknown_tensor(name, (*values.inputs, *computed))


def unknown_tensor(name: str, known: Sequence[str]) -> str:
    """An error message for a tensor that does not exist, with the most similar names."""
    near = difflib.get_close_matches(name, known, n=3) or list(known[-3:])
    return (
        f"model has no tensor {name!r} to cut at: did you mean {', '.join(map(repr, near))}?"
        " (`offload inspect` lists them)"
    )


def _why_together(model: Model, name: str) -> str:
    """Why no layer ends at a tensor that a node of the main graph produces."""
    values = model.values
    needed = set(values.outputs)
    for index in reversed(values.order):
        if not needed.isdisjoint(values.produces[index]):
            needed.update(values.consumes[index])
    if name not in needed:
        return "no output of the model depends on it; cut at another tensor"
    typed = model.types.inferred(name) or model.types.declared(name)
    if typed and not model.types.can_cross(name):
        kind = typed.WhichOneof("value") or ""
        what = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional"}
        return (
            f"it is {what.get(kind, 'text')}, and only tensors of numbers can be sent; cut before"
            " the node that produces it or after the nodes that use it"
        )
    return (
        "a value that cannot cross a link (text, a sequence, a map or an optional) passes from a"
        " node before it to a node after it; cut before or after these nodes"
    )
