"""The `offload` command: its subcommands by panel, and one sentence for every error.

Each subcommand is imported when it is used or its help is shown, so that `offload inspect` starts
without gRPC, which takes 20 MB and a tenth of a second.
"""

import os
import sys
import traceback
import warnings
from functools import cache
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from offload.errors import exit_code, sentence, wants_traceback
from offload_runtimes.installation import versions
from typer.core import TyperGroup
from typer.main import get_group

from offload_cli.output import Output, replace_missing_characters

PANELS: dict[str, dict[str, str]] = {
    "Start here": {
        "up": "up:up",
        "down": "up:down",
        "demo": "demo.command:demo",
        "models": "models:app",
        "inspect": "inspect:inspect",
    },
    "Plan": {
        "profile": "profile:profile",
        "probe": "probe:probe",
        "split": "split:split",
        "simulate": "simulate:simulate",
        "verify": "verify:verify",
    },
    "Machines": {
        "device": "device:app",
        "wheelhouse": "device:wheelhouse",
        "service": "service:app",
        "certs": "certs:app",
        "deploy": "deploy:deploy",
        "releases": "releases:releases",
        "rollback": "releases:rollback",
        "status": "status:status",
    },
    "Run": {
        "serve": "serve:serve",
        "run": "run:run",
        "export": "export:app",
    },
    "Research": {
        "schedule": "schedule:schedule",
        "bench": "bench.command:bench",
        "encode-report": "encode_report:encode_report",
        "testbed": "testbed:app",
    },
}
"""Name and place (`module:attribute`) of each subcommand, by its panel of `offload --help`."""


class LazyGroup(TyperGroup):
    """A group of commands that imports a command on first use."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Only the names matter here, for "did you mean": `get_command` loads the commands.
        self.commands = {name: self for panel in PANELS.values() for name in panel}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names in the order of the panels."""
        return [name for panel in PANELS.values() for name in panel]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command of this name, or None."""
        for panel, places in PANELS.items():
            if cmd_name in places:
                module, attribute = places[cmd_name].split(":")
                command = getattr(import_module(f"offload_cli.{module}"), attribute)
                app = typer.Typer(rich_markup_mode="markdown")
                app.callback()(lambda: None)  # a group even with one command
                if isinstance(command, typer.Typer):
                    app.add_typer(command, name=cmd_name, rich_help_panel=panel)
                else:
                    app.command(cmd_name, rich_help_panel=panel)(command)
                return get_group(app).commands[cmd_name]
        return None


app = typer.Typer(
    name="offload",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def print_versions(requested: bool) -> None:
    """Print the versions that a bug report needs, one a line, and exit."""
    if requested:
        installed = versions()
        Output().text(
            f"offload {installed.version}\n"
            f"onnxruntime {installed.onnxruntime}\n"
            f"onnx {metadata.version('onnx')}\n"
            f"Python {installed.python}\n"
            f"platform {installed.platform}\n"
            f"providers {', '.join(installed.providers)}"
        )
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=print_versions,
            is_eager=True,
            help="Print the versions, platform and execution providers; exit.",
        ),
    ] = False,
) -> None:
    """Run one ONNX model across a small device and a big server, faster than either alone.

    `offload COMMAND --help` explains a command with an example. Start with `offload demo`.
    """


def main() -> None:
    """Entry point of the `offload` command.

    Exit code 0: success; 1: failure, one sentence on stderr; 2: wrong usage; 70: a bug, also with
    one sentence.
    """
    replace_missing_characters()
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
    """Print a Python warning as one line, without its place in our sources."""
    _warn_once(str(message))


@cache
def _warn_once(text: str) -> None:
    Output().warning(text)
