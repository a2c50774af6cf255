"""Commands are imported when used; help and suggestions list all of them."""

import subprocess
import sys

from offload_cli.main import PANELS, app
from typer.testing import CliRunner

NAMES = [name for panel in PANELS.values() for name in panel]


def test_help_lists_every_command_in_its_panel() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    for panel, places in PANELS.items():
        assert panel in shown
        for name in places:
            assert f" {name} " in shown


def test_every_command_has_help() -> None:
    for name in NAMES:
        done = CliRunner().invoke(app, [name, "--help"])
        assert done.exit_code == 0, done.output
        assert "--install-completion" not in done.output


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    done = CliRunner().invoke(app, ["inspekt"])
    assert done.exit_code == 2
    assert "inspect" in done.output


def test_planning_starts_without_grpc() -> None:
    """Its import takes 20 MB, and `offload inspect` needs none of it."""
    commands = "inspect", "profile", "split", "simulate", "verify", "schedule"
    code = (
        "import sys; from offload_cli.main import app; from typer.testing import CliRunner\n"
        f"for name in {commands}: CliRunner().invoke(app, [name, '--help'])\n"
        "sys.exit('grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
