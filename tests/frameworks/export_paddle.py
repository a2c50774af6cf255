"""Export small PaddlePaddle models by paddle2onnx: `python export_paddle.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import paddle
from keep import Keeper
from paddle import nn
from paddle.static import InputSpec


class Squeeze(nn.Layer):
    """A block with squeeze and excitation, as PP-LCNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2D(8)
        self.deep = nn.Conv2D(8, 8, 3, padding=1, groups=8)
        self.down, self.up = nn.Conv2D(8, 2, 1), nn.Conv2D(2, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        x = nn.functional.hardswish(self.norm(self.stem(image)))
        x = nn.functional.hardswish(self.deep(x))
        weight = nn.functional.adaptive_avg_pool2d(x, 1)
        weight = nn.functional.hardsigmoid(self.up(nn.functional.relu(self.down(weight))))
        return nn.functional.softmax(self.head((x * weight).mean([2, 3])))


class Tagger(nn.Layer):
    """Token ids through an embedding and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.cell = nn.GRU(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.cell(self.embed(ids))[0])


def main(folder: Path) -> None:
    paddle.seed(0)
    rng = np.random.default_rng(0)
    keeper = Keeper(folder / "paddle")
    image = rng.standard_normal((2, 3, 16, 16)).astype(np.float32)
    for name, layer, spec, x in (
        ("squeeze", Squeeze(), InputSpec([None, 3, None, None], "float32", "image"), image),
        ("tagger", Tagger(), InputSpec([2, 7], "int64", "ids"), rng.integers(0, 20, (2, 7))),
    ):
        layer.eval()
        keeper.keep(
            name,
            lambda path, layer=layer, spec=spec: paddle.onnx.export(
                layer, str(path.with_suffix("")), input_spec=[spec], opset_version=15
            ),
            [x],
            [layer(paddle.to_tensor(x)).numpy()],
        )


main(Path(sys.argv[1]))
