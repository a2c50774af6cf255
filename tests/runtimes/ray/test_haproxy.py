"""HAProxy's configuration as Ray writes it, with metrics and statistics on loopback."""

from offload_runtimes.ray.haproxy import on_loopback, ports

CONFIG = """frontend prometheus
    bind :9101
    mode http
frontend grpc_frontend
    bind *:9000 proto h2
    bind 10.0.0.1:91010 proto h2
listen stats
  bind *:8404
  stats enable
"""


def test_metrics_and_statistics_listen_on_loopback() -> None:
    changed = on_loopback(CONFIG, ports())
    assert "    bind 127.0.0.1:9101\n" in changed
    assert "  bind 127.0.0.1:8404\n" in changed
    assert "bind *:9000 proto h2" in changed
    assert "bind 10.0.0.1:91010 proto h2" in changed
    assert on_loopback(changed, ports()) == changed
