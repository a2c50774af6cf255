"""Wire the verbs together and turn every expected error into one sentence."""

import errno
import os
import sys
import traceback

import typer
from offload.errors import OffloadError

from offload_cli import (
    certs,
    deploy,
    device,
    encode_report,
    inspect,
    models,
    probe,
    profile,
    releases,
    run,
    schedule,
    serve,
    service,
    simulate,
    split,
    status,
    testbed,
    verify,
)
from offload_cli.bench.verb import bench
from offload_cli.demo.verb import demo
from offload_cli.output import Output, write_any_encoding

app = typer.Typer(
    name="offload",
    help="Run one ONNX model across a small device and a big server, faster than either alone.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")
app.add_typer(certs.app, name="certs")
app.add_typer(testbed.app, name="testbed")
app.add_typer(device.app, name="device")
app.add_typer(service.app, name="service")
for verb in (
    inspect.inspect,
    profile.profile,
    split.split,
    simulate.simulate,
    schedule.schedule,
    deploy.deploy,
    device.wheelhouse,
    releases.releases,
    releases.rollback,
    status.status,
    serve.serve,
    probe.probe,
    run.run,
    bench,
    verify.verify,
    encode_report.encode_report,
    demo,
):
    app.command()(verb)


@app.callback()
def root() -> None:
    """Hold the group open, so that a single verb stays a verb."""


def sentence(error: BaseException) -> str | None:
    """One sentence for an error a user can meet; None for a bug, which keeps its traceback."""
    if isinstance(error, OffloadError):
        flag = f" (--{error.option})" if error.option else ""
        hint = " (this may pass: try again)" if error.retry and not flag else ""
        return f"{error}{flag}{hint}"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        advice = {
            errno.ENOSPC: "the disk is full: free some space; nothing half-written was left",
            errno.EACCES: "permission denied: choose a place you may use",
            errno.ENOENT: "no such file or folder: check the path",
            errno.ENOTDIR: "a file stands where a folder is needed: choose another place",
            errno.EISDIR: "a folder stands where a file is needed: choose another place",
            errno.EADDRINUSE: "the port is in use: choose another with --listen",
        }.get(error.errno or 0, error.strerror or str(error))
        return f"{advice}{where}"
    return None


def main() -> None:
    """Entry point of the `offload` command: exit 0 on success, 1 on failure, 2 on bad usage."""
    write_any_encoding()
    try:
        app()
    except KeyboardInterrupt:
        Output().error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OffloadError, OSError) as error:
        if os.environ.get("OFFLOAD_DEBUG"):
            traceback.print_exc()
        Output().error(sentence(error) or str(error))
        sys.exit(1)
