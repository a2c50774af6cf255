"""Export small JAX and Flax models by jax2onnx: `python export_jax.py FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax2onnx import to_onnx
from keep import Keeper


class Mixer(nnx.Module):
    """Two linear layers with a skip and a norm."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(6, 12, rngs=rngs)
        self.second = nnx.Linear(12, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(self.norm(x + self.second(nnx.gelu(self.first(x)))))


def looping(x: jax.Array) -> jax.Array:
    """A loop that carries two values."""
    scale = jnp.tanh(x)
    y, _ = jax.lax.fori_loop(0, 4, lambda _, c: (jnp.sin(c[0] + c[1]), c[1]), (x, scale))
    return y - scale


def conditional(x: jax.Array) -> jax.Array:
    """A branch that depends on the data."""
    a, b = jnp.tanh(x), jnp.exp(x)
    return jax.lax.cond(x.sum() > 0, lambda u, v: u * 2 + v, lambda u, v: v - u, a, b) + a


def step(
    carried: tuple[jax.Array, jax.Array], row: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One row of `scanning`: the sum so far and the mean are carried."""
    total, mean = carried
    return (total + row, mean), (total + row) * mean


def scanning(x: jax.Array) -> jax.Array:
    """A running sum over rows."""
    mean = x.mean(axis=0)
    (total, _), rows = jax.lax.scan(step, (jnp.zeros(6), mean), x)
    return rows + total


def main(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    keeper = Keeper(folder / "jax")
    cases: dict[str, Callable[[jax.Array], jax.Array]] = {
        "mixer": Mixer(),
        "looping": looping,
        "conditional": conditional,
        "scanning": scanning,
    }
    for name, function in cases.items():
        sizes = ("B", 6) if name == "mixer" else x.shape
        keeper.keep(
            name,
            lambda path, f=function, s=sizes: to_onnx(
                f,
                [jax.ShapeDtypeStruct(s, jnp.float32)] if s == x.shape else [s],
                return_mode="file",
                output_path=str(path),
            ),
            [x],
            [np.asarray(function(jnp.asarray(x)))],
        )


main(Path(sys.argv[1]))
