"""Two machines out of one: run commands on both sides, change the link, clean up."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side

from offload_runtimes.emulation import host
from offload_runtimes.emulation.namespaces import (
    Argv,
    TestbedNames,
    down_commands,
    leftovers,
    shape_commands,
    testbed_names,
    up_commands,
)


@dataclass(frozen=True)
class Testbed:
    """Two namespaces joined by a shaped link.

    Attributes:
        layout: its names and addresses.
    """

    layout: TestbedNames

    def command(self, side: Side, argv: Sequence[str]) -> Argv:
        """The command that runs `argv` on a side."""
        return ("ip", "netns", "exec", self.layout.namespace(side), *argv)

    def address(self, side: Side) -> str:
        """The address of a side, for the other one."""
        return self.layout.address(side)

    def shape(self, link: Link) -> None:
        """Change the rates of the link.

        Raises:
            InputError: this kernel can't shape it so.
        """
        for command in shape_commands(self.layout, link):
            host.run(command)

    def slow(self, process: int, slowdown: float) -> None:
        """Give a process 1 / slowdown of one CPU; InputError where there are no quotas."""
        host.limit(self.layout.group, process, slowdown)

    def down(self) -> None:
        """Remove all of it, whatever still runs there; may be called twice."""
        present = host.namespaces()
        for side in Side:
            if self.layout.namespace(side) in present:
                host.kill(host.processes_in(self.layout.namespace(side)))
        host.release(self.layout.group)
        for command in down_commands(self.layout, present):
            host.run(command)


def up(layout: TestbedNames, link: Link) -> Testbed:
    """Make a testbed that stays until it is taken down.

    Raises:
        InputError: no root, a tool or a part of the kernel is missing, or the name is taken.
    """
    _check()
    if layout in testbeds():
        raise InputError(
            f"a testbed named {layout.name!r} is up already: take it down with"
            f" `offload testbed down --name {layout.name}`, or choose another name"
        )
    bed = Testbed(layout)
    try:
        for command in up_commands(layout, link):
            host.run(command)
    except BaseException:
        bed.down()
        raise
    return bed


@contextmanager
def open_testbed(link: Link) -> Iterator[Testbed]:
    """A testbed of this process: taken down at the end of the block, whatever ends it.

    What a killed process has left behind is removed first.

    Raises:
        InputError: as `up`.
    """
    _check()
    sweep()
    process = os.getpid()
    bed = up(TestbedNames.of_process(process, host.started_of(process) or 0), link)
    try:
        yield bed
    finally:
        bed.down()


def sweep() -> tuple[TestbedNames, ...]:
    """Remove the testbeds of processes that are gone, and say which."""
    names = (*host.namespaces(), *(f"{group}-device" for group in host.groups()))
    gone = leftovers(names, host.started_of)
    for layout in gone:
        Testbed(layout).down()
    return gone


def testbeds() -> tuple[TestbedNames, ...]:
    """The testbeds of this machine that are up."""
    return testbed_names(host.namespaces())


def named(name: str) -> TestbedNames:
    """The layout of a testbed that a user named.

    Raises:
        InputError: not a name of letters, digits and dashes, 1 to 40 of them.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}", name) or name.startswith("run-"):
        raise InputError(
            f"testbed name {name!r} can't be used: take letters, digits and dashes, not run-..."
        )
    return TestbedNames(name)


def find(name: str) -> Testbed:
    """A testbed that is up.

    Raises:
        InputError: there is none of that name.
    """
    layout = named(name)
    if layout not in testbeds():
        raise InputError(f"no testbed named {name!r} is up: make it with `offload testbed up`")
    return Testbed(layout)


def _check() -> None:
    found = host.obstacle()
    if found:
        raise InputError(found)


_PREFIX = "offload-bench-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process, removed at the end of the block; those of killed ones go first."""
    root, process = Path(tempfile.gettempdir()), os.getpid()
    for left in root.glob(f"{_PREFIX}*"):
        owner = TestbedNames(left.name.removeprefix(_PREFIX)).owner
        if owner and host.started_of(owner[0]) != owner[1]:
            shutil.rmtree(left, ignore_errors=True)
    folder = (
        root / f"{_PREFIX}{TestbedNames.of_process(process, host.started_of(process) or 0).name}"
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
