"""`offload device` and `offload wheelhouse`: install the runtime on targets."""

from pathlib import Path
from typing import Annotated, Any

import typer
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
    WheelhouseOption,
    find_targets,
    on_each,
    report_each,
)
from offload_cli.output import Format, Output

app = typer.Typer(
    help="Install the runtime on devices and servers, or switch back.", no_args_is_help=True
)

OrtOption = Annotated[
    str,
    typer.Option(
        "--ort", metavar="VERSION", help="Install this version of onnxruntime; default: the newest."
    ),
]
SystemCudaOption = Annotated[
    bool,
    typer.Option(
        "--system-cuda",
        help="Leave out NVIDIA's wheels (2 GB): the target has CUDA and cuDNN installed.",
    ),
]


@app.command()
def init(
    targets: TargetsArgument,
    wheelhouse: WheelhouseOption = None,
    ort: OrtOption = "",
    system_cuda: SystemCudaOption = False,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Install the light runtime on targets and check that it works there.

    Checks the machine (64-bit, glibc, Python, disk, memory, clock), installs into a new virtual
    environment, runs a tiny model with it and then switches to it. The previous runtime stays for
    `device rollback`; a running service is restarted.

    `providers` in devices.toml choose the wheel of onnxruntime: `cuda` installs onnxruntime-gpu and
    NVIDIA's wheels of CUDA and cuDNN. A provider that does not work is an error.

    Example: `offload device init pi`
    """
    output = Output(form)
    configs = find_targets(targets, devices)
    with output.steps() as step:
        runtimes = init_devices(
            configs,
            wheelhouse,
            ort or None,
            lambda target, text: step(f"{target.name}: {text}"),
            system_cuda,
        )
    results = {config.name: result for config, result in zip(configs, runtimes, strict=True)}
    for name, result in results.items():
        if isinstance(result, Installed):
            rows = [(p.name, p.version, format_bytes(p.size_bytes)) for p in result.packages]
            output.table(["package", "version", ">size"], rows, title=name)
    report_each(
        output,
        results,
        _installed_json,
        lambda name, runtime: (
            f"{name}: ready ({runtime.machine}, {runtime.provider}),"
            f" {format_bytes(sum(p.size_bytes for p in runtime.packages))} installed"
        ),
    )


def _installed_json(name: str, runtime: Installed) -> dict[str, Any]:
    packages = [
        {"name": p.name, "version": p.version, "size_bytes": p.size_bytes} for p in runtime.packages
    ]
    return {
        "target": name,
        "python": runtime.python,
        "machine": runtime.machine,
        "provider": runtime.provider,
        "packages": packages,
        "size_bytes": sum(p.size_bytes for p in runtime.packages),
        "preflight_s": runtime.preflight_s,
    }


@app.command()
def rollback(
    targets: TargetsArgument,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Switch back to the runtime before the last `device init`.

    Tests that runtime first; a running service is restarted on it. A second rollback switches
    forward again.

    Example: `offload device rollback pi`
    """

    def value(name: str, runtime: RolledBack) -> dict[str, Any]:
        return {
            "target": name,
            "runtime": runtime.runtime,
            "previous": runtime.previous,
            "version": runtime.version,
            "onnxruntime": runtime.onnxruntime,
        }

    report_each(
        Output(form),
        on_each(targets, devices, rollback_device),
        value,
        lambda name, runtime: (
            f"{name}: runtime {runtime.runtime} is in use again (version"
            f" {runtime.version}, onnxruntime {runtime.onnxruntime})"
        ),
    )


def wheelhouse(
    folder: Annotated[
        Path, typer.Argument(help="Download the wheels to this folder.", show_default=False)
    ],
    platform: Annotated[str, typer.Option(help="Choose `aarch64` or `x86_64`.")] = "aarch64",
    python: Annotated[
        str, typer.Option(metavar="VERSION", help="Choose the target's Python.")
    ] = "3.11",
    ort: OrtOption = "",
    provider: ProviderOption = [],  # noqa: B006  typer wants a list and copies it
    system_cuda: SystemCudaOption = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Download the wheels for a device without internet.

    `offload device init --wheelhouse` installs them.

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
