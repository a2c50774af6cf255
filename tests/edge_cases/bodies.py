"""Bodies that capture, and functions."""

import numpy as np

from tests.edge_cases.edge_case import CONDITION, SIGNATURE, WEIGHT, X, either, floats, plain

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
