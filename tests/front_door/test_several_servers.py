"""`offload run` with several servers, one of which is killed or stopped meanwhile."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from tests.front_door.door import Door, plain_onnxruntime

FRAMES = 400
SLOW_LINK = ("--link", "100 Mbit/s,5 ms")  # emulated: the stream takes 2 s at least


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answered(metrics: str) -> int:
    """How many frames a server has answered, by its metrics."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=20) as reply:
        text = reply.read().decode()
    found = re.findall(
        r'^offload_frames_total\{.*outcome="answered".*\} (\S+)$', text, re.MULTILINE
    )
    return int(sum(map(float, found)))


@pytest.mark.door
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_stream_goes_on_with_the_next_server(door: Door, ending: signal.Signals) -> None:
    """The device has its half only, so that every answer needs a server."""
    door.split_two_layers()
    door.ok("deploy", "b", "pi", "--side", "device")
    metrics = f"127.0.0.1:{free_port()}"
    with (
        door.server("b", "--no-optimize", "--metrics", metrics) as (first, process),
        door.serving("b", "--no-optimize") as second,
    ):
        run = ["run", "pi/current", "--input", "in.npz", "--output", "out.npz", "--no-optimize"]
        options = ["--stream", "--repeat", str(FRAMES), "--format", "json", *SLOW_LINK]
        running = subprocess.Popen(
            [
                *(sys.executable, "-c", "from offload_cli.main import main; main()"),
                *(*run, *options, "--server", first, "--server", second),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=door.folder,
            env=door.environment(),
        )
        while answered(metrics) < 20:
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        process.send_signal(ending)
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    report = json.loads(out)
    assert report["frames"] == FRAMES
    assert sum(report["by_server"].values()) == FRAMES
    assert report["by_server"][first] >= 20
    assert report["by_server"][second] > 0
    x = np.load(door.folder / "in.npz")["x"]
    right = plain_onnxruntime(door.folder / "net.onnx", {"x": x})["y"]
    np.testing.assert_allclose(np.load(door.folder / "out.npz")["y"], right, rtol=1e-5)


def test_a_server_that_is_not_there_is_passed_over(door: Door) -> None:
    door.split_two_layers()
    run = ("run", "b", "--input", "in.npz")
    with door.serving("b") as address:
        gone = "127.0.0.1:1"
        said = door.ok(*run, "--repeat", "3", "--server", gone, "--server", address)
        assert f"inferences by server: {address}: 3" in said
        done = door.light(*run, "--server", gone, "--server", address)
        assert done.returncode == 0, done.stderr
    said = door.refused(*run, "--server", gone, "--server", address)
    assert said.startswith(
        "none of the 2 servers can be used: server 127.0.0.1:1 cannot be reached"
    )
    assert f"server {address} cannot be reached" in said


def test_wrong_lists_of_servers(door: Door) -> None:
    door.split_two_layers()
    run = ("run", "b", "--input", "in.npz", "--server", "127.0.0.1:1", "--server")
    assert "server 127.0.0.1:1 is listed twice" in door.refused(*run, "127.0.0.1:1")
    assert "servers of two kinds" in door.refused(*run, "kserve://127.0.0.1:2")
    assert "has no port" in door.refused(*run, "127.0.0.2")
    said = door.refused(*run, "127.0.0.1:2", "--on", "pi")
    assert "--on measures a device with one server: give --server once" in said
