"""Whether a part computes each row of axis 0 of its inputs from that row alone.

Open sizes prove nothing: a mean over axis 0 or a folded batch has them too. So every operator is
looked at (`offload.bundle.rows.rules`), and what isn't known to keep rows apart is taken to mix
them. Linear in the part's size.
"""

from onnx import NodeProto

from offload.bundle.extract import Part
from offload.bundle.rows.look import ROWS, SAME, Facts, Known, Look
from offload.bundle.rows.rules import RULES
from offload.graph.load import Model
from offload.graph.scope import function_key, is_repeatable

_OLDEST = 7  # before it, broadcasting and batch normalisation followed other rules


def why_alone(model: Model, part: Part) -> str:
    """Why rows of several callers may not run through a part together; empty: they may.

    Where they may, every input and output has an open axis 0 of one length, and what is
    computed of a row does not depend on the others, but for the last bits: engines add in
    another order when there is more to do.

    Args:
        model: the source.
        part: the nodes and what goes in and out.
    """
    facts = Facts(model)
    if facts.opset < _OLDEST:
        return f"operator set {facts.opset} is too old to tell"
    closed = _closed_input(model, part)
    if closed or not part.inputs:
        return closed or "it has no inputs"
    facts.states.update(dict.fromkeys(part.inputs, ROWS))
    inside = set(part.nodes)
    nodes = list(model.proto.graph.node)
    for index in model.wiring.order:
        if index in inside and index not in model.wiring.constant:
            found = _state(facts, nodes[index], model.wiring.reads[index])
            if found is None:
                return _mixing(nodes[index])
            facts.states.update(dict.fromkeys(filter(None, nodes[index].output), found))
    lost = [name for name in part.outputs if facts.state(name) is not ROWS]
    return f"output {lost[0]!r} has no row for each of the inputs'" if lost else ""


def _state(facts: Facts, node: NodeProto, reads: tuple[str, ...]) -> Known | None:
    if all(facts.state(name) is SAME for name in reads):
        return SAME if is_repeatable(node, facts.calls) else None
    own = node.domain in ("", "ai.onnx") and function_key(node) not in facts.functions
    rule = RULES.get(node.op_type) if own else None
    return rule(Look(node, facts)) if rule else None


def _mixing(node: NodeProto) -> str:
    named = f" {node.name!r}" if node.name else ""
    return f"{node.op_type}{named} may mix rows"


def _closed_input(model: Model, part: Part) -> str:
    """What is wrong with an input's axis 0; empty: nothing."""
    leading: set[str] = set()
    inner: set[str] = set()
    for name in part.inputs:
        typed = model.types.inferred(name)
        if typed is None or not typed.tensor_type.HasField("shape"):
            return f"the first axis of input {name!r} is not known"
        if not typed.tensor_type.shape.dim:
            return f"input {name!r} is a single number, which has no rows"
        first, *rest = typed.tensor_type.shape.dim
        if first.HasField("dim_value"):
            return f"the first axis of input {name!r} is fixed at {first.dim_value}"
        leading.add(first.dim_param)
        inner.update(dim.dim_param for dim in rest)
    shared = sorted((leading & inner) - {""})
    return f"{shared[0]!r} is the size of first and of other axes" if shared else ""
