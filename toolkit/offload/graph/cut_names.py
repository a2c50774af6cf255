"""Names of tensors to cut a model at: read them from a text, and say why one can't be used."""

import difflib
from collections.abc import Sequence

from onnx import NodeProto

from offload.graph.load import Model
from offload.graph.value_index import nested_nodes


def cut_names(model: Model, text: str) -> list[str]:
    """Names of tensors in a text that separates them by commas.

    Names may have commas and blanks themselves: a name that the model has wins over a division
    of it, and a longer one over a shorter. What is no name stays as it is, without blanks at its
    ends.
    """
    values = model.values
    known = values.producer.keys() | values.inputs.keys() | values.initializers.keys()
    pieces, found, start = text.split(","), [], 0
    while start < len(pieces):
        for end in range(len(pieces), start, -1):
            piece = ",".join(pieces[start:end])
            name = piece if piece in known else piece.strip()
            if name in known or end == start + 1:
                break
        found += [name] if name else []
        start = end
    return found


def why_not_cuttable(model: Model, name: str) -> str:
    """One sentence: why a model cannot be cut at a name, and what to do."""
    values = model.values
    if name in values.defaults:
        return (
            f"cannot cut at {name!r}: it is an input with a default, which goes to each side that"
            " uses it; cut at a tensor that is computed from it"
        )
    if values.is_constant(name):
        return (
            f"cannot cut at {name!r}: it is a constant, of which both sides have a copy; cut at a"
            " tensor that depends on the model's inputs"
        )
    if name in values.producer:
        return f"cannot cut at {name!r}: {_why_together(model, name)}"
    for index in sorted(values.containers):
        holder = model.proto.graph.node[index]
        if any(name in inner.output for inner in nested_nodes(holder)):
            return (
                f"cannot cut at {name!r}: it is inside the body of {_called(holder)}, which runs as"
                f" a whole; cut at one of its outputs, like {holder.output[0]!r}"
            )
    for function in model.proto.functions:
        if any(name in inner.output for node in function.node for inner in nested_nodes(node)):
            return (
                f"cannot cut at {name!r}: it is inside the function {function.name!r}, which runs"
                " as a whole; cut at an output of a node that calls it"
            )
    computed = [made for made in values.producer if not values.is_constant(made)]
    return unknown_tensor(name, (*values.inputs, *computed))


def unknown_tensor(name: str, known: Sequence[str]) -> str:
    """The sentence for a tensor that does not exist, with the nearest of those that do."""
    near = difflib.get_close_matches(name, known, n=3) or list(known[-3:])
    return (
        f"model has no tensor {name!r} to cut at: did you mean {', '.join(map(repr, near))}?"
        " (`offload inspect` lists them)"
    )


def _why_together(model: Model, name: str) -> str:
    """Why a tensor that a node of the main graph makes has no layer to itself."""
    values = model.values
    needed = set(values.outputs)
    for index in reversed(values.order):
        if not needed.isdisjoint(values.produces[index]):
            needed.update(values.consumes[index])
    if name not in needed:
        return "no output of the model needs it; cut at a tensor that one needs"
    typed = model.types.inferred(name) or model.types.declared(name)
    if typed and not model.types.can_cross(name):
        kind = typed.WhichOneof("value") or ""
        what = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional"}
        return (
            f"it is {what.get(kind, 'text')}, and only tensors of numbers cross a link; cut before"
            " it is made or after it is read"
        )
    return (
        "a value that cannot cross a link (text, a sequence, a map or an optional) passes from a"
        " node before it to one behind it; cut before or after these"
    )


def _called(node: NodeProto) -> str:
    return f"the {node.op_type} {node.name!r}" if node.name else f"a node {node.op_type}"
