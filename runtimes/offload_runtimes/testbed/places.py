"""Where a side of an experiment runs: here, in a namespace, or on a host reached by SSH."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offload.errors import InputError
from offload.planning.plan import Side

from offload_runtimes.testbed import host
from offload_runtimes.testbed.layout import Argv, Layout


class Place(Protocol):
    """Where commands run and files are."""

    def command(self, argv: Sequence[str]) -> Argv:
        """The command that runs `argv` there."""

    def bring(self, path: Path) -> str:
        """See that a file or folder is there, and give its path there."""


@dataclass(frozen=True, slots=True)
class Here:
    """This machine, as it is."""

    def command(self, argv: Sequence[str]) -> Argv:
        """The command itself."""
        return tuple(argv)

    def bring(self, path: Path) -> str:
        """It is here."""
        return str(path.resolve())


@dataclass(frozen=True, slots=True)
class Within:
    """A side of a testbed on this machine."""

    layout: Layout
    side: Side

    def command(self, argv: Sequence[str]) -> Argv:
        """Run in the side's namespace."""
        return ("ip", "netns", "exec", self.layout.namespace(self.side), *argv)

    def bring(self, path: Path) -> str:
        """Namespaces share the files of this machine."""
        return str(path.resolve())


@dataclass(frozen=True, slots=True)
class Remote:
    """A host reached by SSH, with onnx-offload installed.

    Attributes:
        host: as `ssh` takes it, like `pi@192.0.2.7`.
        folder: where files are put there.
    """

    host: str
    folder: str = "offload-experiments"

    def command(self, argv: Sequence[str]) -> Argv:
        """Run over SSH; it ends when the connection does, since its input ends."""
        return ("ssh", "-o", "BatchMode=yes", self.host, shlex.join(argv))

    def copy_commands(self, path: Path) -> tuple[Argv, ...]:
        """Put a file or folder into the folder there, in place of an older one."""
        target = shlex.quote(f"{self.folder}/{path.name}")
        make = f"mkdir -p {shlex.quote(self.folder)} && rm -rf {target}"
        return (
            ("ssh", "-o", "BatchMode=yes", self.host, make),
            ("scp", "-q", "-r", str(path), f"{self.host}:{self.folder}/{path.name}"),
        )

    def clear(self) -> None:
        """Remove all that was brought; a host that is gone keeps it."""
        with suppress(InputError):
            host.run(
                ("ssh", "-o", "BatchMode=yes", self.host, f"rm -rf {shlex.quote(self.folder)}")
            )

    def bring(self, path: Path) -> str:
        """Copy it.

        Raises:
            InputError: the host can't be reached, or the disk there refuses.
        """
        for command in self.copy_commands(path):
            host.run(command)
        return f"{self.folder}/{path.name}"
