"""The commands of `offload`, each imported when it is used or its help is shown.

So `offload inspect` starts without gRPC, which takes 20 MB and a tenth of a second.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

PANELS: dict[str, dict[str, str]] = {
    "Start here": {
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
    },
    "Research": {
        "schedule": "schedule:schedule",
        "bench": "bench.command:bench",
        "encode-report": "encode_report:encode_report",
        "testbed": "testbed:app",
    },
}
"""Name and place (`module:attribute`) of each command, by its panel of `offload --help`."""


class Commands(TyperGroup):
    """A group of commands that are imported on first use."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Names only, for suggestions after a wrong name; `get_command` replaces the values.
        self.commands = {name: self for panel in PANELS.values() for name in panel}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names in the order of the panels."""
        return [name for panel in PANELS.values() for name in panel]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command of this name, or None."""
        for panel, places in PANELS.items():
            if cmd_name in places:
                return _load(cmd_name, places[cmd_name], panel)
        return None


def _load(name: str, place: str, panel: str) -> Any:
    module, attribute = place.split(":")
    found = getattr(import_module(f"offload_cli.{module}"), attribute)
    app = typer.Typer(rich_markup_mode="markdown")
    app.callback()(lambda: None)  # a group even with one command
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=name, rich_help_panel=panel)
    else:
        app.command(name, rich_help_panel=panel)(found)
    return get_group(app).commands[name]
