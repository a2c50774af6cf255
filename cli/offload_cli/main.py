"""The `offload` command: its group of commands, and one sentence for every error."""

import os
import sys
import traceback
import warnings
from functools import cache
from importlib import metadata
from typing import Annotated

import typer
from offload.errors import exit_code, sentence, wants_traceback
from offload_runtimes.versions import versions

from offload_cli.commands import Commands
from offload_cli.output import Output, write_any_encoding

app = typer.Typer(
    name="offload",
    cls=Commands,
    help="Run one ONNX model across a small device and a big server, faster than either alone.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        Output().text(show_version())
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of offload, onnxruntime, onnx and Python, and exit.",
        ),
    ] = False,
) -> None:
    """Run one ONNX model across a small device and a big server, faster than either alone."""
    del version  # printed by its callback


def show_version() -> str:
    """The versions of what runs here, one a line."""
    found = versions()
    return "\n".join(
        [
            f"offload {found.version}",
            f"onnxruntime {found.onnxruntime} ({', '.join(found.providers)})",
            f"onnx {metadata.version('onnx')}",
            f"Python {found.python}",
            found.platform,
        ]
    )


def main() -> None:
    """Entry point of the `offload` command.

    Exit code 0: success; 1: failure, one sentence on stderr; 2: wrong usage; 70: a bug, one
    sentence too.
    """
    write_any_encoding()
    warnings.showwarning = _show_warning
    try:
        app()
    except KeyboardInterrupt:
        Output().error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the last resort: a sentence, not a traceback
        if wants_traceback():
            traceback.print_exc()
        Output().error(sentence(error))
        sys.exit(exit_code(error))


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one line for people, without the place in our sources."""
    _warn_once(str(message))


@cache
def _warn_once(text: str) -> None:
    Output().warning(text)
