"""Options that several commands share: models, machines, certificates, targets."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from offload.errors import InputError, OffloadError, sentence
from offload_runtimes.deploy.targets import DEVICES, TargetConfig, find_target, read_devices
from offload_runtimes.security.credentials import ClientSecurity, read_tokens

from offload_cli.output import Format, Output

FormatOption = Annotated[
    Format,
    typer.Option("--format", help="`text` for people; `json` for scripts: one value on stdout."),
]

ModelArgument = Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)]
BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle's folder, made by `offload split`.", show_default=False)
]
PlanOption = Annotated[
    int | None,
    typer.Option("--plan", min=0, help="Of a bundle of several plans: this one, by its number."),
]
ShapeOption = Annotated[
    list[str],
    typer.Option(
        "--shape",
        help="Sizes for an input with dynamic dimensions, like `x=1x3x224x224`; repeatable.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads of onnxruntime; default: one per physical core.")
]
ProviderOption = Annotated[
    list[str],
    typer.Option(
        "--provider",
        help="Execution provider: `cpu`, `cuda`, `tensorrt`, `openvino`; repeatable, in order of"
        " preference. A provider that is missing is an error.",
    ),
]
AllowCpuOption = Annotated[
    bool,
    typer.Option(
        "--allow-cpu", help="Run on the CPU, with a warning, where a provider is missing."
    ),
]
LikeOption = Annotated[
    str, typer.Option(help="A link whose start-up times and way down a range shares.")
]
PointsOption = Annotated[int, typer.Option(min=2, max=200, help="Links in a range.")]
LinkOption = Annotated[
    str,
    typer.Option(
        help="The link: `3g`, `4g`, `wifi`, `50mbit`, `100mbit`, `'20 Mbit/s,10 ms'`, or a file"
        " written by `offload probe`."
    ),
]


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from `name=1x3x224x224`; `name=` is a scalar.

    Raises:
        InputError: not of that form, or a size below zero.
    """
    shapes = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.lower().split("x") if sizes else []
        if not equals or not name or not all(part.isdecimal() for part in parts):
            raise InputError(f"--shape {text!r} is not understood: write it like x=1x3x224x224")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


TOKEN_VARIABLE = "OFFLOAD_TOKEN"

CaOption = Annotated[
    Path | None,
    typer.Option("--ca", help="Authority (.pem) the server's certificate comes from: use TLS."),
]
CertificateOption = Annotated[
    Path | None, typer.Option("--cert", help="Own certificate (.pem), for mutual TLS.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", help="Private key of --cert.")]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", help=f"File with the token; default: ${TOKEN_VARIABLE}."),
]


def client_security(
    ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None
) -> ClientSecurity:
    """What a device was told about certificates and tokens."""
    return ClientSecurity(ca, certificate, key, read_token(token_file))


def read_token(path: Path | None) -> str | None:
    """The first token of a file, or that of the environment.

    Never of the command line, which others see.
    """
    return read_tokens(path)[0] if path else os.environ.get(TOKEN_VARIABLE) or None


DevicesOption = Annotated[
    Path, typer.Option("--devices", help="The file that names your devices and servers.")
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        help="A name from devices.toml, `user@host[:port][/directory]`, or a directory.",
        show_default=False,
    ),
]
TargetsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Names from devices.toml, `user@host[:port][/directory]`, or directories.",
        show_default=False,
    ),
]
DEFAULT_DEVICES = Path(DEVICES)


def find_targets(texts: Sequence[str], devices: Path) -> list[TargetConfig]:
    """The targets a user means, each once.

    Raises:
        InputError: one isn't understood, or the file of devices is wrong.
    """
    known = read_devices(devices)
    return list(dict.fromkeys(find_target(text, known) for text in texts))


Found = TypeVar("Found")


def on_each(
    places: Sequence[TargetConfig], do: Callable[[TargetConfig], Found]
) -> list[Found | OffloadError]:
    """Do something at each target, all at once; why it failed stands in a target's place."""

    def one(place: TargetConfig) -> Found | OffloadError:
        try:
            return do(place)
        except OffloadError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(places))) as pool:
        return list(pool.map(one, places))


def report_errors(output: Output, errors: Sequence[OffloadError]) -> None:
    """Print one sentence for each target that failed; exits with 1 if any did.

    Raises:
        OffloadError: the only one.
    """
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        output.error(sentence(error))
    if errors:
        raise typer.Exit(1)
