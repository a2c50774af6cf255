"""Types, and operators that choose or hide shapes."""

from tests.edge_cases.edge_case import SIGNATURE, WEIGHT, plain

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
