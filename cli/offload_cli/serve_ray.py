"""`offload serve --engine ray`: serve bundles with Ray Serve."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.errors import InputError
from offload_runtimes.address import parse_address
from offload_runtimes.daemon import Request, StopSignal, notify
from offload_runtimes.ray import app
from offload_runtimes.ray.cluster import Ingress, deploy, joined_cluster, local_cluster
from offload_runtimes.serving.serve_options import ServeOptions

from offload_cli.output import Output


@dataclass(frozen=True)
class RayRequest:
    """Options of the command line for Ray.

    Attributes:
        replicas: their number, or a range like `1..4`; empty: 1.
        gpus: GPUs of each replica.
        options: `NAME=VALUE`, options of a deployment.
        cluster: address of a running cluster; empty: start one here.
    """

    replicas: str
    gpus: float
    options: tuple[str, ...]
    cluster: str


def serve_with_ray(
    bundles: Sequence[Path],
    listen: str,
    options: ServeOptions,
    request: RayRequest,
    drain_s: float,
    *,
    log: bool,
    output: Output,
) -> None:
    """Start a cluster and serve until SIGTERM; with `--ray-address`, deploy to it and return.

    Raises:
        InputError: an option is wrong, Ray is not installed, or there is no cluster.
        BundleError: a bundle is missing here or on a node.
    """
    replicas = _replicas(request.replicas)
    least = replicas if isinstance(replicas, int) else replicas[0]
    address = parse_address(listen)
    options.security.check(address)
    ray_options = _ray_options(request.options)
    application = app(
        bundles,
        options,
        replicas=replicas,
        gpus=request.gpus,
        drain_s=drain_s,
        ray_options=ray_options,
        log=log,
    )

    actor = ray_options.get("ray_actor_options", {})
    resources = {"GPU": request.gpus, "CPU": float(actor.get("num_cpus", 1))}

    def ready(ingress: Ingress, about: dict[str, Any]) -> None:
        digests = ", ".join(digest[:12] for digest in about["bundles"])
        told = {
            "listening": str(ingress.address),
            "bundles": about["bundles"],
            "providers": about["providers"],
            "metrics": about["metrics"],
            "replicas": request.replicas or "1",
            "cluster": ingress.cluster,
        }
        using = ", ".join(name for name in about["providers"] if name != "cpu")
        output.result(told, f"serving {digests}{using and f' with {using}'} on {ingress.address}")
        output.remark(f"{told['replicas']} replicas on the Ray cluster {ingress.cluster}")
        for part, why in about["alone"].items() if options.batch_rows > 1 else ():
            output.remark(f"{part} runs each frame alone: {why}")
        if not ingress.is_haproxy:
            output.remark("the ingress is Ray's own proxy, which is slower than HAProxy")

    if request.cluster:
        with joined_cluster(request.cluster, address) as ingress:
            ready(ingress, deploy(application, least, resources))
        return
    with local_cluster(address, log=log) as ingress:
        about = deploy(application, least, resources)
        with StopSignal() as signals:
            ready(ingress, about)
            notify(f"READY=1\nSTATUS=serving on {ingress.address}")
            while signals.wait() is not Request.STOP:
                pass
            notify("STOPPING=1")
            output.remark("draining: finishing what was asked for")


def _replicas(text: str) -> int | tuple[int, int]:
    parts = text.split("..") if text else ["1"]
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--replicas {text!r} is not understood: write it like 2 or 1..4")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _ray_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a deployment; `a.b=1` sets `b` in `a`, values are JSON or else text."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(
                f"--ray-option {text!r} is not understood: write it like max_surge_percent=50"
            )
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        place = options
        *outer, last = name.split(".")
        for key in outer:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise InputError(f"--ray-option {text!r}: {key} has a value of its own already")
        place[last] = parsed
    return options
