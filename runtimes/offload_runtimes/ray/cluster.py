"""Start or join a Ray cluster, and run the application in it."""

import contextlib
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offload.errors import BundleError, InputError, OffloadError, ServerError

from offload_runtimes.address import Address
from offload_runtimes.ray import haproxy
from offload_runtimes.ray.application import SERVICER, import_serve

NAME = "onnx-offload"  # of the application
_FALLBACKS = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT")
_HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_ALL_ADDRESSES = ("0.0.0.0", "::")
_POLL_S = 0.2
_JOIN_S = 15.0  # to start Python, import Ray and reach a cluster
_START_S = 600.0  # for all replicas to load the bundles, or to be replaced one by one
_WINDOW_BYTES = 1 << 22

# Ray reads these once, when it is imported. Variables that the user has set are kept.
SETTINGS = {
    _HA_PROXY: "1",  # streams go straight to the replicas: 0.1 ms instead of 1.5 ms a message
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray sends nothing to its makers
    # A session is one stream. When the replicas change, Ray starts a new HAProxy, and the old
    # process keeps its streams, for two minutes by default.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # HTTP/2's default of 64 kB would allow a stream 64 kB for each round trip of the link.
    "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE": str(_WINDOW_BYTES),
    "RAY_SERVE_HAPROXY_H2_BE_INITIAL_WINDOW_SIZE": str(_WINDOW_BYTES),
    # 16 kB each by default: a message of 150 kB took 0.49 ms longer than without Ray, now 0.31 ms.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(1 << 17),
    "RAY_SERVE_HAPROXY_H2_MAX_FRAME_SIZE": str(1 << 16),
    # How long a stopped replica stays reachable, for the ingress to learn of it: 30 s by default.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@dataclass(frozen=True)
class Ingress:
    """Where devices reach the application.

    Attributes:
        address: of the ingress.
        cluster: address of the Ray cluster.
        is_haproxy: whether HAProxy passes the streams on, not Ray's own slower proxy.
    """

    address: Address
    cluster: str
    is_haproxy: bool


@contextmanager
def local_cluster(listen: Address, *, log: bool = False) -> Iterator[Ingress]:
    """Start Ray on this machine, and end all its processes after the block.

    `log`: write to stderr what the replicas write there.

    Ingress, metrics (port 9101) and statistics (8404) of HAProxy listen on `listen`'s host and on
    loopback; the cluster's own ports on loopback as far as Ray can.

    Raises:
        InputError: Ray is not installed, a port is taken, or Ray does not start.
    """
    if listen.path:
        raise InputError(f"Ray's ingress cannot listen on {listen}: give HOST:PORT")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="offload-ray-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        listen = replace(listen, port=listen.port or _free_port(listen.host))
        settings = SETTINGS | _own_files(folder)
        settings |= {name: str(_free_port("")) for name in _FALLBACKS}
        stack.enter_context(_environment(settings))
        use_haproxy = os.environ[_HA_PROXY] == "1"
        _check_port(listen.host, listen.port, "the ingress", "--listen HOST:PORT takes another")
        if use_haproxy:
            for name, port in haproxy.ports().items():
                _check_port("127.0.0.1", port, "HAProxy", f"set {name} to a free port")
        serve = _import_quiet_serve()
        import ray

        if use_haproxy:
            _write_haproxy(Path(os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]))
        try:
            context = ray.init(
                "local",
                include_dashboard=False,
                log_to_driver=log,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
            )
            stack.callback(ray.shutdown)
            stack.callback(_shut_down_serve, serve)
            _start_serve(serve, listen)
        except OffloadError:
            raise
        except Exception as error:
            raise InputError(f"Ray does not start here: {_last_line(error)}") from error
        yield Ingress(listen, str(context.address_info["gcs_address"]), use_haproxy)


@contextmanager
def joined_cluster(cluster: str, listen: Address) -> Iterator[Ingress]:
    """Join a cluster; Serve is started there if it does not run.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, or Serve runs there
            without the gRPC service of onnx-offload.
    """
    with ExitStack() as stack:
        stack.enter_context(_environment(SETTINGS))
        serve = _import_quiet_serve()
        import ray

        _use_token()
        _check_cluster(cluster)
        try:
            ray.init(
                cluster,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {name: os.environ[name] for name in SETTINGS}},
            )
        except Exception as error:
            raise _no_cluster(cluster, _last_line(error)) from error
        stack.callback(ray.shutdown)
        from ray.serve.context import _get_global_client

        client = _get_global_client(raise_if_no_controller_running=False)
        if client is None:
            if len(ray.nodes()) > 1 and listen.host not in _ALL_ADDRESSES:
                raise InputError(
                    f"the ingress listens on each machine of {cluster}, and {listen.host} belongs"
                    " to one: give --listen 0.0.0.0:PORT --insecure"
                )
            listen = replace(listen, port=listen.port or _free_port(listen.host))
            _start_serve(serve, listen)
        else:
            grpc = ray.get(client._controller.get_grpc_config.remote())  # noqa: SLF001
            if SERVICER not in grpc.grpc_servicer_functions:
                raise InputError(
                    f"Serve runs in {cluster} without onnx-offload's gRPC service: add {SERVICER}"
                    " to its grpc_servicer_functions, or end it with `serve shutdown`"
                )
            host = client.http_config.host or "127.0.0.1"
            listen = Address("127.0.0.1" if host in _ALL_ADDRESSES else host, grpc.port)
        yield Ingress(listen, cluster, os.environ[_HA_PROXY] == "1")


def deploy(application: Any, replicas: int, resources: Mapping[str, float]) -> dict[str, Any]:
    """Run the application, or replace the one that runs, and wait until all replicas are ready.

    Args:
        application: of `app`.
        replicas: how many there will be at least.
        resources: what each reserves, by Ray's names: `CPU` and `GPU`.

    Returns:
        What a replica says about itself.

    Raises:
        InputError: the cluster has too few CPUs or GPUs.
        BundleError: a node lacks a bundle.
        ServerError: the replicas do not start.
    """
    serve = import_serve()
    import ray

    _check_resources(ray.cluster_resources(), replicas, resources)
    (handle,) = serve.run_many(
        [serve.RunTarget(application, name=NAME, route_prefix="/")],
        wait_for_applications_running=False,
    )
    give_up_s = time.monotonic() + _START_S
    while True:
        status = serve.status().applications[NAME]
        text = "\n".join([status.message, *(d.message for d in status.deployments.values())])
        if status.status == "RUNNING":
            about: dict[str, Any] = handle.about.remote().result(timeout_s=_START_S)
            return about
        if status.status == "DEPLOY_FAILED" or time.monotonic() > give_up_s:
            raise _failure(text)
        time.sleep(_POLL_S)


def _import_quiet_serve() -> Any:
    serve = import_serve()
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return serve


def _start_serve(serve: Any, listen: Address) -> None:
    """Start Serve with its ingress on an address, and with the gRPC service of onnx-offload.

    Raises:
        InputError: the ingress does not start.
    """
    try:
        serve.start(
            http_options={"host": listen.host, "port": _free_port(listen.host)},
            grpc_options={
                "port": listen.port,
                "grpc_servicer_functions": [SERVICER],
                "enable_reflection": False,
            },
            logging_config={"enable_access_log": False},
        )
    except Exception as error:
        with contextlib.suppress(Exception):  # it may not have begun
            serve.shutdown()
        taken = re.search(r"cannot bind socket \((.*?)\) for \[(.*?)\]", str(error))
        if taken is None:
            raise InputError(f"Ray Serve does not start: {_last_line(error)}") from error
        raise InputError(
            f"HAProxy cannot listen on {taken[2]} ({taken[1]}): choose another port, by --listen"
            f" for the ingress, or by {' and '.join(haproxy.ports())}"
        ) from error


def _shut_down_serve(serve: Any) -> None:
    """End the replicas, whose sessions end by Goodbye, then the ingress."""
    with contextlib.suppress(Exception):  # the cluster may be gone
        serve.delete(NAME)
        serve.shutdown()


def _check_cluster(cluster: str) -> None:
    """Raise an InputError unless a cluster answers: connecting to another would end the process."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if cluster == "auto" else ["--address", cluster]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_JOIN_S, check=False)
    except subprocess.TimeoutExpired:
        raise _no_cluster(cluster, f"no answer in {_JOIN_S:g} s") from None
    if done.returncode:
        raise _no_cluster(cluster, "it does not answer")


def _no_cluster(cluster: str, why: str) -> InputError:
    return InputError(
        f"there is no Ray cluster at {cluster} that this machine may join ({why}): start one with"
        " `ray start --head`, give its token (RAY_AUTH_TOKEN), or leave --ray-address out"
    )


def _use_token() -> None:
    """Send the token that this account has, as Ray does for the address `auto`, but for no other.

    Ray has read its environment when it was imported, so RAY_AUTH_MODE would be too late.
    """
    with contextlib.suppress(ImportError):  # another release of Ray: set RAY_AUTH_MODE=token
        from ray._private.authentication.authentication_token_setup import (
            maybe_enable_token_auth_if_token_available,
        )

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_resources(
    cluster: Mapping[str, float], replicas: int, resources: Mapping[str, float]
) -> None:
    """Raise an InputError if the cluster cannot run that many replicas."""
    for name, each in resources.items():
        wanted, there = replicas * each, cluster.get(name, 0.0)
        if wanted > there:
            raise InputError(
                f"{replicas} replicas with {each:g} {name} each need {wanted:g} {name}s, the Ray"
                f" cluster has {there:g}: ask for fewer replicas, or add nodes"
            )


def _failure(text: str) -> OffloadError:
    """The error that a replica raised, from Ray's report of it."""
    match = re.search(r"(?:offload\.errors\.)?(Bundle|Input)Error: (.*)", text)
    if match is None:
        return ServerError(f"the replicas do not start: {_last_line(text) or 'see the log of Ray'}")
    kind = BundleError if match[1] == "Bundle" else InputError
    return kind(match[2].strip())


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300].rstrip(".") if lines else type(error).__name__


def _check_port(host: str, port: int, what: str, advice: str) -> None:
    """Raise an InputError if nothing can listen there."""
    try:
        _listener(host, port).close()
    except OSError as error:
        raise InputError(
            f"port {port} of {host} cannot be taken for {what} ({error.strerror}): {advice}"
        ) from error


def _free_port(host: str) -> int:
    with _listener(host, 0) as listener:
        return int(listener.getsockname()[1])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set, for Ray and its processes, until the block ends."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _own_files(folder: Path) -> dict[str, str]:
    """Settings that keep HAProxy's files in a folder that only this account can read."""
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }


def _write_haproxy(path: Path) -> None:
    """Write the program that Ray starts as HAProxy, unless the user has another one."""
    if not path.exists():
        command = shlex.join([sys.executable, "-P", haproxy.__file__])
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o700)
