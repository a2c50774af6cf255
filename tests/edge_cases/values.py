"""Inputs, outputs, defaults and constants in odd places."""

from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.edge_cases.edge_case import (
    EDGE_CASES,
    SIGNATURE,
    WEIGHT,
    Arrays,
    EdgeCase,
    X,
    edge_case,
    floats,
    plain,
    text,
)

plain(
    "optional inputs left out",
    """g (float[N,4] x) => (float[N,4] y) <float hi = {0.5}> { a = Abs(x) b = Clip(a, , hi)
    y = Exp(b) }""",
)


def lstm(outputs: str, states: bool) -> tuple[ModelProto, Arrays]:
    operands = "seq, w, r, b, , h0, c0" if states else "seq, w, r"
    shapes = {"seq": (5, 2, 3), "h0": (1, 2, 4), "c0": (1, 2, 4)}
    inputs = "float[T,N,3] seq" + (", float[1,N,4] h0, float[1,N,4] c0" if states else "")
    model = text(
        f"""g ({inputs}) => (float[1,N,4] hn) {{ scaled = Tanh(seq)
        {outputs} = LSTM <hidden_size=4> ({operands.replace("seq", "scaled")})
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


EDGE_CASES.append(EdgeCase("lstm with only its second output", *lstm(", h", states=False)))
EDGE_CASES.append(EdgeCase("lstm with states in and out", *lstm("all, h, cn", states=True)))
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


@edge_case(f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) y = Add(b, w) }}", ir=3, opset=9)
def initializers_listed_as_inputs(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@edge_case(f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) y = Add(b, w) }}")
def defaults_kept(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@edge_case(
    f"{SIGNATURE} {WEIGHT} {{ a = Mul(x, w) b = Relu(a) e = Exp(w) y = Add(b, e) }}",
    {**X, "w": floats(4)},
)
def defaults_overridden(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))


@edge_case(
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
