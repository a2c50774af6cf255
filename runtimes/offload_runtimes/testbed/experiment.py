"""Run a job: a server process on one place, a device process on another, results as they come."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from offload.errors import OffloadError, ServerError

from offload_runtimes.testbed.job import Job, Run
from offload_runtimes.testbed.places import Here, Place

_PACKAGE = "offload_runtimes.testbed"
_GRACE_S = 20.0


@dataclass(frozen=True)
class Rig:
    """Where the two sides run.

    Attributes:
        device: the device's place.
        server: the server's place.
        listen: host of the server, as the device reaches it.
        port: of the server; 0 takes a free one.
        slow: called with the device's process number once it is ready, to put it under a quota.
        python: the interpreter on remote places.
    """

    device: Place = field(default_factory=Here)
    server: Place = field(default_factory=Here)
    listen: str = "127.0.0.1"
    port: int = 0
    slow: Callable[[int], None] | None = None
    python: str = sys.executable


def run_job(rig: Rig, job: Job, bundles: Sequence[str]) -> Iterator[Run]:
    """Serve bundles, run the job against them, give each run as it ends.

    Args:
        rig: where the sides run.
        job: what to run; its `server` is filled in here.
        bundles: folders of the bundles that need a server, as the server sees them.

    Raises:
        OffloadError: a side could not start, or failed.
        ServerError: a side died in the middle.
    """
    threads = str(job.threads or 0)
    serve = (rig.python, "-m", f"{_PACKAGE}.host_bundles", f"{rig.listen}:{rig.port}", threads)
    with _process(rig.server.command((*serve, *bundles)), "server") as server:
        address = _next(server, "server")["listening"] if bundles else ""
        with _process(rig.device.command((rig.python, "-m", f"{_PACKAGE}.drive")), "device") as it:
            _write(it, replace(job, server=address).to_line())
            ready = _next(it, "device")["ready"]
            if rig.slow:
                rig.slow(ready)
            _write(it, "go")
            for line in _lines(it, "device"):
                yield Run.from_json(line)


@contextmanager
def _process(command: Sequence[str], name: str) -> Iterator["subprocess.Popen[str]"]:
    """A child whose input ends with the block; one that does not end by then is killed.

    It has a session of its own: ^C is for us, who end it, and say one sentence.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
    except OSError as error:
        raise OffloadError(f"the {name} can't be started: {error}") from error
    with child:
        try:
            yield child
        except BaseException:
            child.kill()
            raise
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _write(child: "subprocess.Popen[str]", line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _lines(child: "subprocess.Popen[str]", name: str) -> Iterator[dict[str, Any]]:
    """What a side says, until it ends well."""
    assert child.stdout is not None
    for line in child.stdout:
        value = json.loads(line)
        if "error" in value:
            raise ServerError(f"the {name} stopped: {value['error']}")
        yield value
    if child.wait():
        raise ServerError(f"the {name} died with exit code {child.returncode}: try again")


def _next(child: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
    for value in _lines(child, name):
        return value
    raise ServerError(f"the {name} ended before it was ready: try again")
