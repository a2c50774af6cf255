"""Small models that each hold one thing which is easily split wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

Arrays = Mapping[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(7)
SIGNATURE = "g (float[N,4] x) => (float[N,4] y)"
WEIGHT = "<float[4] w = {1.5, -2, 3, 0.5}>"


@dataclass(frozen=True)
class Trap:
    """A model and what to feed it; `exact` is False where an engine rounds between kernels."""

    name: str
    model: ModelProto
    feeds: Arrays = field(default_factory=dict)
    exact: bool = True


def text(
    graph: str, ir: int = 8, opset: int = 17, more: str = "", functions: str = ""
) -> ModelProto:
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{more}]>'
    return onnx.parser.parse_model(f"{header}\n{graph}\n{functions}")


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names, in bodies too."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for held in (node.input, node.output):
            held[:] = [names.get(name, name) for name in held]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, names)


X = {"x": floats(3, 4)}
TRAPS: list[Trap] = []


def trap(
    graph: str, feeds: Arrays | None = None, *, exact: bool = True, **options: Any
) -> Callable[[Callable[[ModelProto], None]], None]:
    """Register the model written in a function's decorator, after the function changed it."""

    def register(change: Callable[[ModelProto], None]) -> None:
        model = text(graph, **options)
        change(model)
        TRAPS.append(Trap(change.__name__, model, X if feeds is None else feeds, exact))

    return register


def plain(name: str, graph: str, feeds: Arrays | None = None, **options: Any) -> None:
    exact = options.pop("exact", True)
    TRAPS.append(Trap(name, text(graph, **options), X if feeds is None else feeds, exact))


def if_body(name: str, body: str) -> str:
    return f"{name} () => (float[N,4] {name}_out) {{ {body} }}"


def either(then: str, otherwise: str) -> str:
    return f"<then_branch = {if_body('t', then)}, else_branch = {if_body('e', otherwise)}>"


CONDITION = (
    "s = ReduceSum <keepdims=0> (x) zero = Constant <value = float {0}> () c = Less(zero, s)"
)

plain(
    "if captures activations, weights and constants",
    f"""{SIGNATURE} {WEIGHT} {{ {CONDITION} a = Relu(x) b = Exp(x)
    k = Constant <value = float[1] {{2.5}}> ()
    r = If (c) {either("m = Mul(a, k) t_out = Add(m, w)", "e_out = Sub(b, a)")}
    y = Tanh(r) }}""",
)
for sign in (1, -1):
    plain(
        f"if whose branches capture different values ({sign})",
        f"""{SIGNATURE} {{ {CONDITION} a = Relu(x) b = Exp(x) d = Abs(x)
        r = If (c) {either("t_out = Add(a, d)", "e_out = Sub(b, d)")} y = Add(r, b) }}""",
        {"x": sign * np.abs(X["x"])},
    )
INNER = """If (c) <then_branch = i () => (float[N,4] i_out) { i_out = Add(a, w) },
                  else_branch = j () => (float[N,4] j_out) { j_out = Mul(b, x) }>"""
plain(
    "capture through two levels",
    f"""{SIGNATURE} {WEIGHT} {{ {CONDITION} a = Relu(x) b = Exp(x)
    r = If (c) {either(f"t_out = {INNER}", "e_out = Identity(b)")} y = Tanh(r) }}""",
)
plain(
    "if inside a loop captures from the main graph",
    f"""{SIGNATURE} {WEIGHT} {{ a = Relu(x) b = Exp(a)
    n = Constant <value = int64 {{3}}> () go = Constant <value = bool {{1}}> ()
    h = Loop (n, go, a) <body = body (int64 i, bool go_in, float[N,4] v) =>
        (bool go_out, float[N,4] v_out) {{
        go_out = Identity(go_in) one = Constant <value = int64 {{1}}> () first = Less(i, one)
        v_out = If (first) <then_branch = t () => (float[N,4] p) {{ p = Add(v, b) }},
                            else_branch = e () => (float[N,4] q) {{ q = Mul(v, w) }}> }}>
    y = Sub(h, a) }}""",
)
plain(
    "loop captures and scans out",
    """g (float[N,4] x) => (float[3,N,4] y, float[N,4] last) { a = Relu(x) b = Exp(x)
    n = Constant <value = int64 {3}> ()
    last, y = Loop (n, , a) <body = body (int64 i, bool go, float[N,4] v) =>
        (bool go_out, float[N,4] v_out, float[N,4] out) {
        go_out = Identity(go) v_out = Add(v, b) out = Tanh(v_out) }> }""",
)
plain(
    "scan captures",
    f"""g (float[5,4] x) => (float[5,4] y, float[4] total) {WEIGHT} {{ a = Relu(x)
    m = ReduceMean <axes=[0], keepdims=0> (x) z = Sub(m, m)
    total, y = Scan (z, a) <num_scan_inputs = 1, body = body (float[4] acc, float[4] row) =>
        (float[4] acc_out, float[4] out) {{ d = Sub(row, m) acc_out = Add(acc, d)
        out = Mul(acc_out, w) }}> }}""",
    {"x": floats(5, 4)},
)
plain(
    "an input used in a body only",
    f"""g (float[N,4] x, float[N,4] late) => (float[N,4] y) {{ {CONDITION} a = Relu(x) b = Exp(a)
    y = If (c) {either("t_out = Add(b, late)", "e_out = Mul(b, late)")} }}""",
    {**X, "late": floats(3, 4)},
)
plain(
    "a body with constants of its own only",
    f"""{SIGNATURE} {{ {CONDITION} a = Relu(x)
    r = If (c) <then_branch = t () => (float[1] u) {{ u = Constant <value = float[1] {{2}}> () }},
                else_branch = e () => (float[1] v) {{ v = Constant <value = float[1] {{3}}> () }}>
    y = Add(a, r) }}""",
)
FUNCTION = '<domain: "local", opset_import: ["" : 17]>\n'
plain(
    "functions that call functions",
    f"{SIGNATURE} {{ a = local.twice(x) b = Exp(a) y = local.twice(b) }}",
    more=', "local" : 1',
    functions=f"{FUNCTION}half (p) => (q) {{ t = Tanh(p) q = Sigmoid(t) }}\n"
    f"{FUNCTION}twice (p) => (q) {{ h = local.half(p) q = Add(h, h) }}".replace(
        '[""', '["local" : 1, ""'
    ),
)
plain(
    "a function reached from a body only",
    f"""{SIGNATURE} {{ {CONDITION} a = Relu(x)
    r = If (c) {either("t_out = local.half(a)", "e_out = Sub(a, x)")} y = Exp(r) }}""",
    more=', "local" : 1',
    functions=f"{FUNCTION}half (p) => (q) {{ t = Tanh(p) q = Sigmoid(t) }}",
)
plain(
    "optional inputs left out",
    """g (float[N,4] x) => (float[N,4] y) <float hi = {0.5}> { a = Abs(x) b = Clip(a, , hi)
    y = Exp(b) }""",
)


def lstm(outputs: str, states: bool) -> tuple[ModelProto, Arrays]:
    given = "seq, w, r, b, , h0, c0" if states else "seq, w, r"
    shapes = {"seq": (5, 2, 3), "h0": (1, 2, 4), "c0": (1, 2, 4)}
    inputs = "float[T,N,3] seq" + (", float[1,N,4] h0, float[1,N,4] c0" if states else "")
    model = text(
        f"""g ({inputs}) => (float[1,N,4] hn) {{ scaled = Tanh(seq)
        {outputs} = LSTM <hidden_size=4> ({given.replace("seq", "scaled")})
        z = Exp(h) hn = Sub(z, h) }}"""
    )
    weights = {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32)}
    model.graph.initializer.extend(
        numpy_helper.from_array(floats(*shape), name)
        for name, shape in weights.items()
        if states or name != "b"
    )
    if states:
        model.graph.output.append(helper.make_tensor_value_info("cn", TensorProto.FLOAT, None))
    feeds = {name: floats(*shape) for name, shape in shapes.items() if states or name == "seq"}
    return model, feeds


TRAPS.append(Trap("lstm with only its second output", *lstm(", h", states=False)))
TRAPS.append(Trap("lstm with states in and out", *lstm("all, h, cn", states=True)))
plain(
    "split and top k",
    """g (float[N,4] x) => (float[N,2] y, int64[N,2] where) { a = Relu(x)
    p, q = Split <axis=1> (a) s = Sub(p, q) k = Constant <value = int64[1] {2}> ()
    best, where = TopK (s, k) y = Add(best, q) }""",
)
plain(
    "tied weights and inputs needed on both sides",
    f"""{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) d = Mul(b, w) e = Add(d, x)
    y = Sub(e, a) }}""",
)
plain(
    "an input needed late",
    """g (float[N,4] x, float[N,4] z) => (float[N,4] y) { a = Relu(x) b = Exp(a) d = Tanh(b)
    y = Add(d, z) }""",
    {**X, "z": floats(3, 4)},
)
plain(
    "outputs that are cut tensors, inputs, constants and stored",
    f"""g (float[N,4] x) => (float[N,4] a, float[N,4] x, float[4] w, float[1] k, float[N,4] y)
    {WEIGHT} {{ k = Constant <value = float[1] {{2.5}}> () a = Relu(x) b = Exp(a)
    y = Mul(b, k) }}""",
)
plain("identity passed through", "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }")
plain("nothing but an input", "g (float[N,4] x) => (float[N,4] x) { }")
plain(
    "an answer without a question",
    "g () => (float[2] y) { k = Constant <value = float[2] {1, 2}> () y = Exp(k) }",
    {},
)
plain(
    "chains of constant nodes first",
    """g (float[N,4] x) => (float[N,4] y) { n = Constant <value = int64[1] {4}> ()
    c = ConstantOfShape <value = float[1] {0.7}> (n) e = Exp(c) m = Mul(e, c)
    a = Mul(x, m) b = Relu(a) d = Add(b, e) y = Sub(d, c) }""",
)


@trap(f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) y = Add(b, w) }}", ir=3, opset=9)
def initializers_listed_as_inputs(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@trap(f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) y = Add(b, w) }}")
def defaults_kept(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@trap(
    f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) e = Exp(w) y = Add(b, e) }}",
    {**X, "w": floats(4)},
)
def defaults_overridden(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@trap(
    """g (float[N,3,H,W] x) => (float[N,2,H2,W2] y) <float[4] scales = {1, 1, 2, 2}> {
    a = Conv (x, k) b = Relu(a) p = MaxPool <kernel_shape=[2,2]> (b) y = Resize (p, , scales) }""",
    {"x": floats(2, 3, 9, 7)},
)
def dynamic_batch_height_and_width(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(floats(2, 3, 3, 3), "k"))


plain(
    "sizes computed from the input",
    """g (float[N,C,4] x) => (float[M] y) { s = Shape(x) zero = Constant <value = int64 {0}> ()
    n = Gather(s, zero) axis = Constant <value = int64[1] {0}> () n1 = Unsqueeze(n, axis)
    m = Constant <value = int64[1] {-1}> () t = Concat <axis=0> (n1, m) a = Relu(x)
    r = Reshape(a, t) y = ReduceSum <keepdims=0> (r, one) }""".replace(
        "r = Reshape", "one = Constant <value = int64[1] {1}> () r = Reshape"
    ),
    {"x": floats(2, 3, 4)},
)
plain(
    "sizes that depend on the data",
    """g (float[N,4] x) => (float[M] y) { a = Relu(x) z = NonZero(a) t = Transpose(z)
    v = GatherND(a, t) y = Exp(v) }""",
)
plain(
    "empty tensors",
    f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) y = Add(b, x) }}",
    {"x": floats(0, 4)},
)
plain(
    "nothing is selected",
    """g (float[N,4] x) => (float[M] y) { a = Abs(x) n = Neg(a) r = Relu(n) z = NonZero(r)
    t = Transpose(z) v = GatherND(a, t) y = Exp(v) }""",
)
QUANTISED = """<float scale = {0.02}, uint8 zero = {128}, float wscale = {0.01}, int8 wzero = {0},
    int8[4,4] w = {1,-2,3,4, 50,6,-70,8, 9,10,-11,12, 13,-14,15,16}>"""
plain(
    "quantise and dequantise pairs",
    f"""{SIGNATURE} {QUANTISED} {{ q = QuantizeLinear(x, scale, zero)
    d = DequantizeLinear(q, scale, zero) v = DequantizeLinear(w, wscale, wzero) m = MatMul(d, v)
    q2 = QuantizeLinear(m, scale, zero) d2 = DequantizeLinear(q2, scale, zero)
    r = Relu(d2) q3 = QuantizeLinear(r, scale, zero) y = DequantizeLinear(q3, scale, zero) }}""",
)
plain(
    "dynamic quantisation",
    f"""{SIGNATURE} {QUANTISED} {{ a = Tanh(x) q, s, z = DynamicQuantizeLinear(a)
    m = MatMulInteger(q, w, z, wzero) f = Cast <to=1> (m) t = Mul(s, wscale) y = Mul(f, t) }}""",
)
plain(
    "float16",
    f"""{SIGNATURE} {WEIGHT} {{ h = Cast <to=10> (x) v = Cast <to=10> (w) m = Mul(h, v)
    e = Exp(m) r = Relu(e) y = Cast <to=1> (r) }}""",
    exact=False,
)
plain(
    "bfloat16",
    f"""{SIGNATURE} {{ h = Cast <to=16> (x) f = Cast <to=1> (h) e = Exp(f) b = Cast <to=16> (e)
    y = Cast <to=1> (b) }}""",
)
plain(
    "int4",
    """g (float[N,4] x) => (float[N,4] y) <float scale = {0.4}> { a = Tanh(x)
    q = QuantizeLinear <output_dtype=22> (a, scale) d = DequantizeLinear(q, scale) y = Exp(d) }""",
    ir=10,
    opset=21,
)
plain(
    "double, int and bool across the cut",
    """g (float[N,4] x) => (double[N,4] y) { d = Cast <to=11> (x) e = Exp(d) i = Cast <to=6> (e)
    one = Constant <value = int32 {1}> () b = Greater(i, one) y = Where(b, e, d) }""",
)
plain(
    "text inside",
    """g (float[N,4] x) => (float[N,4] y) { a = Relu(x) t = Cast <to=8> (a) f = Cast <to=1> (t)
    y = Exp(f) }""",
)
plain(
    "sequences inside",
    """g (float[N,4] x) => (float[N,4] y) { a = Relu(x) s = SplitToSequence <axis=1> (a)
    i = Constant <value = int64 {1}> () b = Exp(x) one = SequenceAt(s, i)
    whole = ConcatFromSequence <axis=1> (s) d = Mul(whole, one) y = Add(d, b) }""",
)
plain(
    "a sequence grown in a loop",
    """g (float[N,4] x) => (float[M,4] y) { a = Relu(x) empty = SequenceEmpty () b = Exp(a)
    n = Constant <value = int64 {3}> ()
    s = Loop (n, , empty) <body = body (int64 i, bool go, seq(float[N,4]) v) =>
        (bool go_out, seq(float[N,4]) v_out) {
        go_out = Identity(go) f = Cast <to=1> (i) t = Add(b, f) v_out = SequenceInsert(v, t) }>
    c = ConcatFromSequence <axis=0> (s) y = Tanh(c) }""",
)
plain(
    "optionals inside",
    """g (float[N,4] x) => (float[N,4] y) { a = Relu(x) o = Optional(a)
    e = OptionalGetElement(o) y = Exp(e) }""",
)
plain(
    "operators of another vendor",
    """g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> {
    a = Tanh(x) f = com.microsoft.FusedMatMul <alpha=0.5> (a, w) g1 = com.microsoft.Gelu(f)
    r = Relu(g1) y = Sub(r, f) }""",
    more=', "com.microsoft" : 1',
)


@trap(f"{SIGNATURE} {{ a = Add(x, w) b = Exp(a) y = Sub(b, a) }}")
def sparse_initializer(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.array([5, -3], np.float32), "w")
    where = numpy_helper.from_array(np.array([1, 3], np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4]))


plain(
    "max unpool with indices",
    """g (float[N,1,4,4] x) => (float[N,1,4,4] y) { a = Tanh(x)
    p, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a) e = Exp(p)
    y = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (e, i) }""",
    {"x": floats(2, 1, 4, 4)},
)


@trap(
    f"""{SIGNATURE} {WEIGHT} {{ {CONDITION} a = Relu(x) b = Mul(a, w)
    y = If (c) {either("t_out = Add(a, b)", "e_out = Sub(a, b)")} }}"""
)
def odd_names(model: ModelProto) -> None:
    odd = {
        "x": "in put:0",
        "a": "/layer.1/Relu;1",
        "b": "größe/層",
        "w": "w\t1",
        "y": "../y",
        "c": " ",
    }
    rename(model.graph, odd)


TRAPS[-1] = Trap(TRAPS[-1].name, TRAPS[-1].model, {"in put:0": X["x"]})
plain(
    "dead nodes and dead weights",
    f"""{SIGNATURE} {WEIGHT} {{ dead = Exp(x) deader = Mul(dead, w) a = Relu(x) b = Tanh(a)
    k = Constant <value = float[1] {{1}}> () y = Exp(b) }}""",
)


@trap(f"{SIGNATURE} {{ a = Relu(x) b = Exp(a) y = Tanh(b) }}")
def metadata(model: ModelProto) -> None:
    helper.set_model_props(model, {"alphabet": "abc", "größe": "1"})
    model.producer_name, model.doc_string, model.domain = "maker", "what it is", "org.example"
    model.graph.doc_string = "a graph"
    model.model_version = 7


@trap(f"{SIGNATURE} {{ a = Relu(x) b = Exp(a) d = Tanh(b) y = Neg(d) }}")
def wrong_declared_shapes(model: ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [7, 4]))
    model.graph.value_info.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, [1, 4]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]))


@trap(f"{SIGNATURE} {{ b = Exp(a) a = Relu(x) y = Sub(d, a) d = Tanh(b) }}")
def nodes_out_of_order(model: ModelProto) -> None:
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"


plain(
    "many tensors cross",
    f"""{SIGNATURE} {{ a = Relu(x) b = Exp(x) d = Tanh(x) e = Neg(x) f = Abs(x) h = Sigmoid(x)
    i = Add(a, b) j = Mul(d, e) k = Sub(f, h) l = Add(i, j) m = Add(k, a) n = Mul(l, d)
    y = Sub(m, n) }}""",
)
plain(
    "two answers from two sides",
    """g (float[N,4] x) => (float[N,4] p, float[N,4] q) { a = Relu(x) p = Exp(a) b = Tanh(x)
    q = Neg(b) }""",
)
plain(
    "random numbers of a fixed seed",
    f"""{SIGNATURE} {{ a = Relu(x) r = RandomNormalLike <seed=3.0> (a) z = Mul(r, a)
    b = Sub(z, z) y = Add(a, b) }}""",
)
plain(
    "dropout with a mask",
    """g (float[N,4] x) => (float[N,4] y, bool[N,4] mask) { a = Relu(x) d, mask = Dropout(a)
    y = Exp(d) }""",
)


@trap(f"{SIGNATURE} {{ a = Relu(x) k = Constant () b = Mul(a, k) y = Add(b, k) }}")
def sparse_constant(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.array([5, -3], np.float32), "")
    where = numpy_helper.from_array(np.array([1, 3], np.int64), "")
    sparse = helper.make_sparse_tensor(values, where, [4])
    model.graph.node[1].attribute.append(helper.make_attribute("sparse_value", sparse))


@trap(f"{SIGNATURE} {{ a = Relu(x) b = Exp(a) y = Tanh(b) }}")
def sizes_written_as_minus_one(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
