"""The application for Ray Serve: how many replicas, on what, with which bundles."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Side

from offload_runtimes.serving.serve_options import ServeOptions

SERVICER = "offload_runtimes.transport.async_stream.add_to_server"
Replicas: TypeAlias = int | tuple[int, int]
_SPARE_CALLS = 32  # beyond the sessions: probes, sessions that are refused
_SESSIONS_EACH = 8.0  # per replica, where Ray decides how many there are
_TRIES = 3  # to load the bundles
_LEAST_GRACE_S = 10.0  # for Ray, beyond the time for work under way


def app(
    bundles: Iterable[str | Path | Bundle],
    options: ServeOptions | None = None,
    *,
    replicas: Replicas = 1,
    gpus: float = 0.0,
    drain_s: float = 30.0,
    ray_options: Mapping[str, Any] | None = None,
    log: bool = False,
) -> Any:
    """An application for `ray.serve.run`, of which every replica serves the bundles.

    Serve must run with the gRPC service of onnx-offload: `serve.start(grpc_options={"port": 50051,
    "grpc_servicer_functions": [offload_runtimes.ray.SERVICER]})`. Devices then use Ray's ingress as
    their server.

    Args:
        bundles: bundles or their directories, at the same place on each node of the cluster. Each
            replica verifies that it holds the same bundles. With `ROOT/current` of a deployment, it
            serves the releases that the node keeps, too, and takes up new ones.
        options: how each replica runs; None: the defaults of `ServeOptions`. `max_sessions` and
            `max_memory_bytes` hold for each replica.
        replicas: their number, or the least and the most, between which Ray chooses.
        gpus: GPUs of each replica; less than 1: replicas share one.
        drain_s: seconds that work under way may take when a replica is stopped.
        ray_options: further options of `ray.serve.deployment`, which win over these.
        log: each replica writes its log to stderr, as JSON lines.

    Returns:
        A `ray.serve.Application`.

    Raises:
        BundleError: a bundle is missing or damaged here.
        InputError: Ray is not installed, it has no such option, or it cannot do what is asked.
    """
    options = options or ServeOptions()
    settings = deployment_options(
        options, replicas=replicas, gpus=gpus, drain_s=drain_s, ray_options=ray_options
    )
    paths, digests = bundle_paths(bundles)
    serve = import_serve()
    from offload_runtimes.ray.replica import Replica

    try:
        deployment = serve.deployment(**settings)(Replica)
    except (TypeError, ValueError) as error:
        raise InputError(f"Ray does not take these options: {_one_line(error)}") from error
    return deployment.bind(paths, digests, options, drain_s, log)


def deployment_options(
    options: ServeOptions,
    *,
    replicas: Replicas,
    gpus: float,
    drain_s: float,
    ray_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Options of `ray.serve.deployment`; see `app`.

    Raises:
        InputError: Ray Serve cannot do what is asked.
    """
    check(options, replicas, gpus)
    chosen: dict[str, Any] = {
        "name": "offload",
        "max_ongoing_requests": options.max_sessions + _SPARE_CALLS,
        "graceful_shutdown_timeout_s": drain_s + _LEAST_GRACE_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": _TRIES,
        "ray_actor_options": {
            "num_cpus": 1,
            "num_gpus": gpus,
            # One event loop for Ray and for the streams, so that a device that sends faster than
            # its frames are taken is slowed down instead of filling the memory.
            "runtime_env": {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}},
        },
    }
    if isinstance(replicas, int):
        chosen["num_replicas"] = replicas
    else:
        chosen["autoscaling_config"] = {
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_ongoing_requests": _SESSIONS_EACH,
        }
    for name, value in (ray_options or {}).items():
        both = isinstance(value, Mapping) and isinstance(chosen.get(name), dict)
        chosen[name] = chosen[name] | value if both else value
    return chosen


def bundle_paths(bundles: Iterable[str | Path | Bundle]) -> tuple[list[str], list[str | None]]:
    """The bundles' absolute paths, and the digests that they must have; None: any.

    Raises:
        BundleError: a bundle is missing or damaged here.
    """
    paths, digests = [], []
    for bundle in bundles:
        path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(path, (Side.SERVER,))
        paths.append(os.path.abspath(path))  # noqa: PTH100  keeps links
        # The release behind ROOT/current changes while the application runs.
        digests.append(None if path.is_symlink() else opened.digest)
    return paths, digests


def check(options: ServeOptions, replicas: Replicas, gpus: float) -> None:
    """Raise an InputError for what Ray Serve cannot do."""
    if options.security.certificate is not None:
        raise InputError(
            "Ray's ingress has no TLS: leave the certificates out and end TLS in a balancer before"
            " Ray (nginx or haproxy, see docs/scale.md)"
        )
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 1 <= least <= most:
        raise InputError(f"replicas must be 1 or more, or a range such as 1..4, not {replicas}")
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"a replica takes a whole number of GPUs or a part of one, not {gpus:g}")


def import_serve() -> Any:
    """Ray Serve; InputError if it is not installed."""
    try:
        from ray import serve
    except ImportError as error:
        raise InputError(
            f"Ray Serve is not installed ({error}): pip install 'onnx-offload[ray]'"
        ) from error
    return serve


def _one_line(error: Exception) -> str:
    """The message of pydantic's or Ray's error, without advice and links."""
    lines = [line.partition(" [type=")[0].strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("For further"))[:300]
