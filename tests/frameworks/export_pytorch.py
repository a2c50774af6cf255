"""Export small PyTorch models by both exporters: `python export_pytorch.py FOLDER`."""

import sys
from pathlib import Path

import torch
from keep import Keeper
from torch import Tensor, nn


class Inception(nn.Module):
    """Four branches, as in GoogLeNet, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Conv2d(8, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
        self.five = nn.Sequential(nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 4, 1))
        self.head = nn.Linear(20, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = torch.relu(torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1))
        return torch.softmax(self.head(x.mean((2, 3))), 1)


class Residual(nn.Module):
    """A skip connection around two convolutions; two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.first(image))
        y = torch.relu(x + self.third(torch.relu(self.second(x))))
        return y.amax((2, 3)), x.mean(1)


class Encoder(nn.Module):
    """Token ids through an embedding and one transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.embed(ids))


class Recurrent(nn.Module):
    """Two LSTM layers whose states come in and go out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.head(y), h, c


class Conditional(nn.Module):
    """A branch that depends on the data and captures values from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.linear(x)), torch.tanh(x)

        def then(u: Tensor, v: Tensor) -> Tensor:
            return u * 2 + v

        def otherwise(u: Tensor, v: Tensor) -> Tensor:
            return u - v

        return torch.cond(x.sum() > 0, then, otherwise, (a, b)) + a


class Looping(nn.Module):
    """A loop whose count is an input and whose body captures the input."""

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for step in range(int(count)):
            y = torch.tanh(y + x) if step % 2 == 0 else y - 0.5 * x
        return y


def main(folder: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 20, 20)
    state = torch.randn(2, 3, 8)
    cases = {
        "inception": (Inception(), (image,), {"image": {0: "batch"}}),
        "residual": (Residual(), (image,), {"image": {0: "batch", 2: "height", 3: "width"}}),
        "encoder": (Encoder(), (torch.randint(0, 50, (2, 7)),), {"ids": {0: "batch", 1: "length"}}),
        "recurrent": (Recurrent(), (torch.randn(5, 3, 6), state, state.clone()), None),
        "conditional": (Conditional(), (torch.randn(4, 6),), None),
        "half": (Residual().half(), (image.half(),), None),
    }
    new, old = Keeper(folder / "pytorch"), Keeper(folder / "pytorch-legacy")
    for name, (module, args, sizes) in cases.items():
        module.eval()
        with torch.no_grad():
            answers = module(*args)
        answers = answers if isinstance(answers, tuple) else (answers,)
        shown = [answer.numpy() for answer in answers]
        feeds = [arg.numpy() for arg in args]
        named = {
            key: {a: torch.export.Dim(s) for a, s in v.items()} for key, v in (sizes or {}).items()
        }
        new.keep(
            name,
            lambda path, m=module, a=args, d=named: torch.onnx.export(
                m, a, path, dynamo=True, dynamic_shapes=d or None, verbose=False
            ),
            feeds,
            shown,
        )
        if name == "conditional":
            continue  # the legacy exporter knows no torch.cond
        old.keep(
            name,
            lambda path, m=module, a=args, d=sizes: torch.onnx.export(
                m, a, path, dynamo=False, dynamic_axes=d, input_names=list(d) if d else None
            ),
            feeds,
            shown,
        )
    looping, args = torch.jit.script(Looping()), (torch.randn(3, 4), torch.tensor(5))
    old.keep(
        "looping",
        lambda path: torch.onnx.export(looping, args, path, dynamo=False),
        [arg.numpy() for arg in args],
        [looping(*args).numpy()],
    )


main(Path(sys.argv[1]))
