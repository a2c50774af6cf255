"""Testbeds in the kernel: needs root and network namespaces."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from offload.costs.link import PRESETS, Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import host
from offload_runtimes.emulation import testbed as bed

OWNER = """
import sys, time
from offload.costs.link import PRESETS
from offload.planning.plan import Side
from offload_runtimes.emulation import testbed as bed
import subprocess
with bed.open_testbed(PRESETS["wifi"]) as made:
    subprocess.Popen(made.command(Side.SERVER, ["sleep", "100"]))
    print(made.name, flush=True)
    time.sleep(100)
"""
RECEIVE = """
import socket, sys, time
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    stream, _ = server.accept()
    size = 0
    while data := stream.recv(1 << 16):
        size += len(data)
    print(size, flush=True)
"""


def _why_not() -> str:
    """Why namespaces can't be made here; empty when they can."""
    found = host.obstacle()
    if found is None:
        try:
            with bed.open_testbed(PRESETS["wifi"]):
                return ""
        except InputError as error:
            found = str(error)
    return found


WHY_NOT = _why_not()
pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "namespaces can be made"),
]


def test_bytes_pass_between_the_sides_at_the_rate_asked_for() -> None:
    size = 100_000
    with bed.open_testbed(Link(8e6, 8e6)) as made:
        server = subprocess.Popen(
            made.command(Side.SERVER, [sys.executable, "-c", RECEIVE, made.address(Side.SERVER)]),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        send = (
            "import socket, sys\n"
            f"with socket.create_connection(({made.address(Side.SERVER)!r}, 5000)) as stream:\n"
            f"    stream.sendall(bytes({size}))"
        )
        start_s = time.monotonic()
        subprocess.run(made.command(Side.DEVICE, [sys.executable, "-c", send]), check=True)
        assert server.stdout.readline() == f"{size}\n"
        took_s = time.monotonic() - start_s
        server.stdout.close()
        server.wait()
    # 100 kB at 8 Mbit/s are 100 ms at least; less would mean that nothing is shaped.
    assert took_s > 0.09


def test_nothing_stays_behind() -> None:
    with bed.open_testbed(PRESETS["4g"]) as made:
        sleeper = subprocess.Popen(made.command(Side.DEVICE, ["sleep", "100"]))
        if host.cpu_controller():
            made.slow(sleeper.pid, 5)
            assert made.group in host.groups()
        assert made in bed.testbeds()
    assert sleeper.wait() == -signal.SIGKILL
    assert made not in bed.testbeds()
    assert made.group not in host.groups()


def test_an_error_or_interrupt_within_takes_it_down() -> None:
    with pytest.raises(KeyboardInterrupt), bed.open_testbed(PRESETS["4g"]) as made:
        raise KeyboardInterrupt
    assert made not in bed.testbeds()


def test_what_a_killed_run_left_is_removed_at_the_next_start() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        left = bed.Testbed(owner.stdout.readline().strip())
        bed.sweep()
        assert left in bed.testbeds()  # its process lives
        owner.kill()
        owner.wait()
    assert left in bed.testbeds()
    with bed.open_testbed(PRESETS["wifi"]):
        assert left not in bed.testbeds()


def test_a_quota_slows_what_runs_long_enough() -> None:
    if host.cpu_controller() is None:
        pytest.skip("no CPU quotas on this machine")
    with bed.open_testbed(PRESETS["wifi"]) as made:
        work = "import time\nx = 0\nwhile time.process_time() < 0.2: x += 1"
        child = subprocess.Popen(made.command(Side.DEVICE, [sys.executable, "-c", work]))
        made.slow(child.pid, 10)
        start_s = time.monotonic()
        assert child.wait() == 0
        assert time.monotonic() - start_s > 0.2 * 10 / 2


def test_a_kept_testbed_outlives_its_maker_until_taken_down() -> None:
    layout = bed.Testbed(f"test-{os.getpid()}")
    try:
        bed.up(layout, PRESETS["wifi"])
        bed.sweep()
        assert bed.find(layout.name) == layout
        with pytest.raises(InputError, match="is up already"):
            bed.up(layout, PRESETS["wifi"])
    finally:
        layout.down()
    with pytest.raises(InputError, match="no testbed named"):
        bed.find(layout.name)


def test_the_sides_do_not_see_this_machines_network() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        bed.open_testbed(PRESETS["wifi"]) as made,
    ):
        port = listening.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        done = subprocess.run(
            made.command(Side.DEVICE, [sys.executable, "-c", code]), capture_output=True
        )
    assert done.returncode != 0
