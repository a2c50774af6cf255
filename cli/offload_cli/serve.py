"""`offload serve`: serve bundles to devices."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from offload.errors import InputError
from offload.units import parse_bytes
from offload_runtimes.daemon import serve_until_asked
from offload_runtimes.engine import EngineOptions
from offload_runtimes.security.credentials import ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.metrics import log_to_stderr
from offload_runtimes.serving.serve_options import ServeOptions

from offload_cli.options import (
    TOKEN_VARIABLE,
    AllowCpuOption,
    FormatOption,
    ProviderOption,
    ThreadsOption,
    read_token,
)
from offload_cli.output import Format, Output

_SOON_DAYS = 14.0
_RAY = "Ray Serve"


class ServeEngine(StrEnum):
    """What runs the server part."""

    BUILTIN = "builtin"
    RAY = "ray"


def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to serve.", show_default=False)],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT; port 0 takes a free one.")
    ] = "127.0.0.1:50051",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plaintext beyond this machine.")
    ] = False,
    cert: Annotated[
        Path | None, typer.Option(help="The server's certificate (.pem): use TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of --cert.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="Admit only devices with a certificate of this authority (.pem)."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="File of tokens, one a line; a session must bring one of them. Default:"
            f" ${TOKEN_VARIABLE}.",
        ),
    ] = None,
    reflection: Annotated[
        bool | None,
        typer.Option(
            help="Describe the services to clients such as grpcurl. Default: only on loopback.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="HOST:PORT where Prometheus reads /metrics; default: nowhere.")
    ] = "",
    log: Annotated[bool, typer.Option("--log", help="Write JSON lines to stderr.")] = False,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions at the same time.")] = 64,
    workers: Annotated[
        int, typer.Option(min=1, help="Segments at the same time; sessions take turns.")
    ] = 1,
    max_run: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which a segment is stopped.")
    ] = 60.0,
    max_memory: Annotated[
        str,
        typer.Option(
            help="What models and tensors may take, like `2 GB`: three quarters for onnxruntime,"
            " one for what crosses. Default: no limit."
        ),
    ] = "",
    releases: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of ROOT/current, serve up to N releases, the current one included. Default: all"
            " that the deployment keeps.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rows of several sessions to run at once, where the model's batch is open and its"
            " rows don't depend on each other. Last bits may differ from rows run alone.",
        ),
    ] = 1,
    batch_wait: Annotated[
        float,
        typer.Option(
            min=0.0, max=60.0, help="Seconds to wait for such rows; 0: take what waits already."
        ),
    ] = 0.0,
    drain: Annotated[
        float, typer.Option(min=0.0, help="Seconds that SIGTERM leaves for work under way.")
    ] = 30.0,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006  typer wants a list and copies it
    allow_cpu: AllowCpuOption = False,
    optimize: Annotated[
        bool,
        typer.Option(help="Without it, outputs are bit-equal to the whole model's, but slower."),
    ] = True,
    engine: Annotated[
        ServeEngine,
        typer.Option(
            rich_help_panel=_RAY,
            help="Serve in this process (`builtin`), or on a cluster with Ray Serve (`ray`).",
        ),
    ] = ServeEngine.BUILTIN,
    replicas: Annotated[
        str,
        typer.Option(
            rich_help_panel=_RAY,
            metavar="N",
            help="Number of replicas, or a range like `1..4` in which Ray chooses. Default: 1.",
        ),
    ] = "",
    gpus: Annotated[
        float,
        typer.Option(min=0.0, rich_help_panel=_RAY, help="GPUs of each replica, like 1 or 0.5."),
    ] = 0.0,
    ray_option: Annotated[
        list[str],
        typer.Option(
            "--ray-option",
            rich_help_panel=_RAY,
            metavar="NAME=VALUE",
            help="Set an option of a Ray Serve deployment, like `max_surge_percent=50` or"
            " `autoscaling_config.target_ongoing_requests=16`; repeatable.",
        ),
    ] = [],  # noqa: B006  typer wants a list and copies it
    ray_address: Annotated[
        str,
        typer.Option(
            rich_help_panel=_RAY,
            metavar="ADDRESS",
            help="Run on this Ray cluster (HOST:PORT or `auto`), and return when the replicas are"
            " ready. Default: start Ray on this machine, until SIGTERM.",
        ),
    ] = "",
    form: FormatOption = Format.TEXT,
) -> None:
    """Serve the server's part of bundles until SIGTERM, which lets running work finish.

    With ROOT/current of a deployment, the earlier releases that it keeps are served, too, so that
    devices can change later or earlier than the server; a new release is taken up within 2 s.

    SIGHUP reads certificates, tokens and bundles again, as does a change of certificates and
    tokens; sessions go on.

    Prints one line when ready. Devices are served by a bundle's digest, so a device and a server
    with different bundles never mix.

    Clients of KServe v2 (Open Inference Protocol), such as tritonclient, use the same port: each
    bundle is the models NAME.server, its server's part, and NAME, the whole model.

    Health follows the gRPC health checking protocol. Beyond this machine, use TLS (see
    `offload certs init`) or say --insecure.

    With --engine ray, replicas on a Ray cluster serve the bundles, which must be at the same path
    on each node. Ray needs `pip install 'onnx-offload[ray]'`.

    Example: `offload serve net.bundle --listen 0.0.0.0:50051 --insecure`
    """
    output = Output(form)
    options = ServeOptions(
        EngineOptions(tuple(provider), threads, optimize, allow_cpu=allow_cpu),
        workers=workers,
        max_sessions=max_sessions,
        max_run_s=max_run,
        max_memory_bytes=int(parse_bytes(max_memory)) if max_memory else None,
        max_releases=releases,
        batch_rows=batch,
        batch_wait_s=batch_wait,
        reflection=reflection,
        metrics=metrics or None,
        security=ServerSecurity(
            cert,
            key,
            client_ca,
            None if token_file else read_token(None),
            insecure,
            token_file,
        ),
    )
    if engine is ServeEngine.RAY:
        from offload_cli.serve_ray import RayRequest, serve_with_ray

        request = RayRequest(replicas, gpus, tuple(ray_option), ray_address)
        serve_with_ray(bundles, listen, options, request, drain, log=log, output=output)
        return
    if replicas or gpus or ray_option or ray_address:
        raise InputError(
            "--replicas, --gpus, --ray-option and --ray-address are for Ray: add --engine ray"
        )
    if log:
        log_to_stderr()
    server = Server(list(bundles), listen, options)

    def ready(address: str) -> None:
        digests = ", ".join(digest[:12] for digest in server.bundles)
        told = {
            "listening": address,
            "bundles": list(server.bundles),
            "providers": list(server.providers),
            "metrics": server.metrics_address,
        }
        using = ", ".join(name for name in server.providers if name != "cpu")
        output.result(told, f"serving {digests}{using and f' with {using}'} on {address}")
        for path, expiry_s in server.certificate_expiries_s.items():
            left_days = (expiry_s - time.time()) / 86400
            if left_days < _SOON_DAYS:
                when = f"ends in {left_days:.1f} days" if left_days > 0 else "has ended"
                output.warning(f"certificate {path} {when}: `offload certs renew`")
        for part, why in server.alone.items() if batch > 1 else ():
            output.remark(f"{part} runs each frame alone: {why}")

    def draining() -> None:
        output.remark("draining: finishing what was asked for")

    serve_until_asked(server, ready, draining, drain)
