"""`offload device` and `offload wheelhouse`: put the light runtime on targets."""

from pathlib import Path
from typing import Annotated, Any

import typer
from offload.errors import OffloadError
from offload.units import format_bytes
from offload_runtimes.deploy.provision import (
    Installed,
    RolledBack,
    fill_wheelhouse,
    init_devices,
    rollback_device,
)

from offload_cli.options import (
    DEFAULT_DEVICES,
    DevicesOption,
    FormatOption,
    ProviderOption,
    TargetsArgument,
    find_targets,
    on_each,
    report_errors,
)
from offload_cli.output import Format, Output

app = typer.Typer(help="Prepare devices and servers to run bundles.", no_args_is_help=True)

OrtOption = Annotated[
    str, typer.Option("--ort", help="A version of onnxruntime; default: the newest.")
]

SystemCudaOption = Annotated[
    bool,
    typer.Option(
        "--system-cuda",
        help="Leave out NVIDIA's wheels (2 GB): the target has CUDA and cuDNN installed.",
    ),
]


@app.callback()
def root() -> None:
    """Hold the group open, so that a single verb stays a verb."""


@app.command()
def init(
    targets: TargetsArgument,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(help="A folder made by `offload wheelhouse`, for targets without internet."),
    ] = None,
    ort: OrtOption = "",
    system_cuda: SystemCudaOption = False,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Install the light runtime on targets, and find out whether it works there.

    The `providers` of devices.toml choose the wheel of onnxruntime: `cuda` takes
    onnxruntime-gpu and NVIDIA's wheels of CUDA and cuDNN. A provider that does not work fails.

    The machine is checked (64-bit, glibc, Python, disk, memory, clock); the runtime goes into a
    virtual environment of its own beside the one in use, runs a tiny model, and takes its place.
    The one before is kept (`device rollback`); a service that runs is restarted.

    Example: `offload device init pi`
    """
    output = Output(form)
    places = find_targets(targets, devices)
    with output.steps() as step:
        found = init_devices(
            places,
            wheelhouse,
            ort or None,
            lambda place, text: step(f"{place.name}: {text}"),
            system_cuda,
        )
    done = [one for one in found if isinstance(one, Installed)]
    values = [_json(one) for one in done]
    text = "\n".join(
        f"{one.target.name}: ready ({one.machine}, {one.provider}),"
        f" {format_bytes(_size_bytes(one))} installed"
        for one in done
    )
    if done:
        output.result(values[0] if len(targets) == 1 else values, text)
    for one in done:
        _table(output, one)
    report_errors(output, [one for one in found if isinstance(one, OffloadError)])


@app.command()
def rollback(
    targets: TargetsArgument,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Switch back to the runtime that targets had before the last `device init`.

    It is tried first; a service that runs is restarted on it. Once more switches forth again.

    Example: `offload device rollback pi`
    """
    output = Output(form)
    found = on_each(find_targets(targets, devices), rollback_device)
    done = [one for one in found if isinstance(one, RolledBack)]
    values = [
        {
            "target": one.target.name,
            "runtime": one.runtime,
            "previous": one.previous,
            "version": one.version,
            "onnxruntime": one.onnxruntime,
        }
        for one in done
    ]
    text = "\n".join(
        f"{one.target.name}: runtime {one.runtime} is in use again (version {one.version},"
        f" onnxruntime {one.onnxruntime})"
        for one in done
    )
    if done:
        output.result(values[0] if len(targets) == 1 else values, text)
    report_errors(output, [one for one in found if isinstance(one, OffloadError)])


def _json(done: Installed) -> dict[str, Any]:
    return {
        "target": done.target.name,
        "python": done.python,
        "machine": done.machine,
        "provider": done.provider,
        "packages": [
            {"name": p.name, "version": p.version, "size_bytes": p.size_bytes}
            for p in done.packages
        ],
        "size_bytes": _size_bytes(done),
        "preflight_s": done.preflight_s,
    }


def _size_bytes(done: Installed) -> int:
    return sum(package.size_bytes for package in done.packages)


def _table(output: Output, done: Installed) -> None:
    rows = [(p.name, p.version, format_bytes(p.size_bytes)) for p in done.packages]
    output.table(["package", "version", ">size"], rows)


def wheelhouse(
    folder: Annotated[Path, typer.Argument(help="Where the wheels go.", show_default=False)],
    platform: Annotated[str, typer.Option(help="`aarch64` or `x86_64`.")] = "aarch64",
    python: Annotated[str, typer.Option(help="The target's Python.")] = "3.11",
    ort: OrtOption = "",
    provider: ProviderOption = [],  # noqa: B006  typer wants a list and copies it
    system_cuda: SystemCudaOption = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Download what a device without internet installs; `device init --wheelhouse` brings it.

    Example: `offload wheelhouse wheels --platform aarch64 --python 3.13`
    """
    output = Output(form)
    wheels = fill_wheelhouse(
        folder, platform, python, ort or None, provider, system_cuda=system_cuda
    )
    total_bytes = sum(path.stat().st_size for path in wheels)
    output.result(
        {
            "folder": str(folder),
            "wheels": [path.name for path in wheels],
            "size_bytes": total_bytes,
        },
        f"{len(wheels)} wheels, {format_bytes(total_bytes)}, in {folder}",
    )
