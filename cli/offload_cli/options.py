"""Options that several commands share: models, engine, links, certificates, targets."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from offload.errors import InputError, OffloadError, sentence
from offload_runtimes.deploy.targets import DEVICES, TargetConfig, find_target, read_devices
from offload_runtimes.security.credentials import ClientSecurity, read_tokens

from offload_cli.output import Format, Output

# Panels of `offload COMMAND --help`; options without one are listed first.
MACHINES, LINK, LIMITS, ENCODINGS = "Machines", "Link", "Limits", "Encodings"
SECURITY, EXPERT = "Security", "Expert"

FormatOption = Annotated[
    Format, typer.Option("--format", help="Print `text` for people or one `json` value.")
]
ModelArgument = Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)]
BundleArgument = Annotated[
    Path, typer.Argument(help="The folder that `offload split` wrote.", show_default=False)
]
PlanOption = Annotated[
    int | None, typer.Option("--plan", min=0, help="Plan index, for bundles with several plans.")
]
ShapeOption = Annotated[
    list[str],
    typer.Option(
        "--shape",
        metavar="SHAPE",
        help="Set the shape of an input with dynamic axes, like `x=1x3x224x224`; repeatable.",
    ),
]

ThreadsOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=EXPERT, help="Set onnxruntime's threads; default: one per physical core."
    ),
]
ProviderOption = Annotated[
    list[str],
    typer.Option(
        "--provider",
        rich_help_panel=EXPERT,
        metavar="NAME",
        help="Use `cpu`, `cuda`, `tensorrt` or `openvino`; repeat in order of preference. `cuda:1`"
        " is the second GPU. A missing provider is an error.",
    ),
]
AllowCpuOption = Annotated[
    bool,
    typer.Option(
        "--allow-cpu",
        rich_help_panel=EXPERT,
        help="Run on the CPU, with a warning, if a provider is missing.",
    ),
]

LinkOption = Annotated[
    str,
    typer.Option(
        metavar="LINK",
        help="Set the link: `3g`, `4g`, `wifi`, `50mbit`, `100mbit`, `'20 Mbit/s,10 ms'`, or a file"
        " from `offload probe`.",
    ),
]
LikeOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=LINK,
        metavar="LINK",
        help="For a range: take start-up times and download bandwidth from this link.",
    ),
]
PointsOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=LINK,
        metavar="N",
        min=2,
        max=200,
        help="For a range: plan for N bandwidths.",
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
    typer.Option(
        "--ca",
        rich_help_panel=SECURITY,
        help="Use TLS and trust this certificate authority (.pem).",
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--cert", rich_help_panel=SECURITY, help="Present this certificate (.pem), for mutual TLS."
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", rich_help_panel=SECURITY, help="Use this private key for --cert."),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        rich_help_panel=SECURITY,
        help=f"Read the token from this file; default: ${TOKEN_VARIABLE}.",
    ),
]


def client_security(
    ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None
) -> ClientSecurity:
    """The certificates and the token of a device, from its options."""
    return ClientSecurity(ca, certificate, key, read_token(token_file))


def read_token(path: Path | None) -> str | None:
    """The first token of a file, or that of the environment.

    A token is never a command-line argument: other users could see it.
    """
    return read_tokens(path)[0] if path else os.environ.get(TOKEN_VARIABLE) or None


WheelhouseOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Install from this folder of `offload wheelhouse`, without internet.",
    ),
]
DevicesOption = Annotated[
    Path, typer.Option("--devices", help="Read names of devices and servers from this file.")
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
    """The targets that the texts name, without duplicates.

    Raises:
        InputError: a text is not understood, or the devices file is wrong.
    """
    known = read_devices(devices)
    return list(dict.fromkeys(find_target(text, known) for text in texts))


Result = TypeVar("Result")


def on_each(
    texts: Sequence[str], devices: Path, action: Callable[[TargetConfig], Result]
) -> dict[str, Result | OffloadError]:
    """Call an action for all targets in parallel; results or errors by the target's name."""

    def attempt(target: TargetConfig) -> Result | OffloadError:
        try:
            return action(target)
        except OffloadError as error:
            return error

    targets = find_targets(texts, devices)
    with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        results = pool.map(attempt, targets)
        return dict(zip((target.name for target in targets), results, strict=True))


def report_each(
    output: Output,
    results: Mapping[str, Result | OffloadError],
    value: Callable[[str, Result], Any],
    text: Callable[[str, Result], str],
) -> None:
    """Print each target's result, then one sentence for each that failed; exit with 1 if any did.

    JSON is one value for one target, a list for several.

    Raises:
        OffloadError: if exactly one target failed.
    """
    done = {name: r for name, r in results.items() if not isinstance(r, OffloadError)}
    if done:
        values = [value(name, result) for name, result in done.items()]
        lines = "\n".join(text(name, result) for name, result in done.items())
        output.result(values[0] if len(results) == 1 else values, lines)
    errors = [result for result in results.values() if isinstance(result, OffloadError)]
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        output.error(sentence(error))
    if errors:
        raise typer.Exit(1)
