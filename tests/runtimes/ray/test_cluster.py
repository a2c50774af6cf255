"""What a cluster's errors say, without Ray."""

import os
import socket

import pytest
from offload.errors import BundleError, InputError, ServerError
from offload_runtimes.address import Address
from offload_runtimes.ray import cluster, haproxy
from offload_runtimes.ray.application import Replicas, check, deployment_options
from offload_runtimes.serving.serve_options import ServeOptions


def test_the_error_of_a_replica_is_found_in_rays_report() -> None:
    report = """The deployment failed to start 3 times in a row. Error:
\x1b[36mray::ServeReplica()\x1b[39m
  File "replica.py", line 60, in __init__
    raise BundleError(
offload.errors.BundleError: node pi5 of the cluster has no bundle at /srv/b: deploy it
"""
    error = cluster._failure(report)
    assert isinstance(error, BundleError)
    assert str(error) == "node pi5 of the cluster has no bundle at /srv/b: deploy it"
    assert isinstance(cluster._failure("offload.errors.InputError: no cuda"), InputError)
    other = cluster._failure("Waiting.\nNo node has 3 GPUs.")
    assert isinstance(other, ServerError)
    assert "No node has 3 GPUs" in str(other)


def test_more_than_the_cluster_has_is_refused() -> None:
    there = {"CPU": 2.0, "memory": 1e9}
    cluster._check_resources(there, 2, {"CPU": 1.0, "GPU": 0.0})
    with pytest.raises(InputError, match=r"2 replicas with 1 GPU each need 2 GPUs.*has 0"):
        cluster._check_resources(there, 2, {"GPU": 1.0})
    with pytest.raises(InputError, match=r"need 3 CPUs.*has 2"):
        cluster._check_resources(there, 3, {"CPU": 1.0})


def test_a_port_that_is_taken_is_named_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"port {port} .* for the ingress"),
            cluster.local_cluster(Address("127.0.0.1", port)),
        ):
            pass
        assert dict(os.environ) == before
        name = next(iter(haproxy.ports()))
        monkeypatch.setenv(name, str(port))
        with (
            pytest.raises(InputError, match=rf"port {port} .* for HAProxy .*{name}"),
            cluster.local_cluster(Address("127.0.0.1", 0)),
        ):
            pass


def test_a_unix_socket_is_refused() -> None:
    with (
        pytest.raises(InputError, match="give HOST:PORT"),
        cluster.local_cluster(Address("", 0, "/tmp/socket")),
    ):
        pass


@pytest.mark.parametrize("replicas", [0, (0, 2), (3, 2)])
def test_at_least_one_replica(replicas: Replicas) -> None:
    with pytest.raises(InputError, match="replicas must be 1 or more"):
        check(ServeOptions(), replicas, 0.0)


def test_options_of_ray_win() -> None:
    chosen = deployment_options(
        ServeOptions(max_sessions=10),
        replicas=(1, 4),
        gpus=0.5,
        drain_s=20.0,
        ray_options={
            "autoscaling_config": {"target_ongoing_requests": 3},
            "ray_actor_options": {"num_cpus": 2},
            "max_surge_percent": 50,
        },
    )
    assert chosen["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 3,
    }
    actor = chosen["ray_actor_options"]
    assert (actor["num_cpus"], actor["num_gpus"]) == (2, 0.5)
    assert chosen["max_surge_percent"] == 50
    assert chosen["max_ongoing_requests"] > 10
    assert chosen["graceful_shutdown_timeout_s"] > 20
