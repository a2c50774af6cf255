"""Export small Keras and TensorFlow models by tf2onnx: `python export_keras.py FOLDER`."""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keep import Keeper
from keras import layers


def convolutional() -> keras.Model:
    """Channels last, two branches, a skip."""
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    one = layers.Conv2D(4, 1, activation="relu")(x)
    two = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Concatenate()([one, two, x])
    x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, activation="softmax")(x))


def recurrent() -> keras.Model:
    """A GRU over a sequence."""
    steps = keras.Input((7, 4), name="steps")
    x = layers.GRU(6, return_sequences=True)(steps)
    return keras.Model(steps, layers.Dense(3)(x))


@tf.function(
    input_signature=[tf.TensorSpec((None, 4), name="x"), tf.TensorSpec((), tf.int32, name="count")]
)
def looping(x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """A while loop that captures values from outside."""
    factor = tf.reduce_mean(tf.abs(x), axis=0)
    y = tf.zeros_like(x)
    step = tf.constant(0)
    while step < count:
        y = tf.tanh(y * factor + x)
        step += 1
    return y - x


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    keeper = Keeper(folder / "keras")
    for name, model in (("convolutional", convolutional()), ("recurrent", recurrent())):
        x = rng.standard_normal((2, *model.inputs[0].shape[1:])).astype(np.float32)
        keeper.keep(
            name,
            lambda path, model=model: model.export(str(path), format="onnx", verbose=False),
            [x],
            [np.asarray(model(x))],
        )
    x, count = rng.standard_normal((3, 4)).astype(np.float32), np.array(4, np.int32)
    keeper.keep(
        "looping",
        lambda path: tf2onnx.convert.from_function(
            looping, looping.input_signature, opset=17, output_path=str(path)
        ),
        {"x": x, "count": count},
        [looping(x, count).numpy()],
    )


main(Path(sys.argv[1]))
