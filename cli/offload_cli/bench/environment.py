"""Where an experiment runs: a testbed of namespaces, one machine, or hosts given by address."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import testbed as bed
from offload_runtimes.emulation.experiment import HostPair, LocalHost, SshHost


class Environment(Protocol):
    """Sets up the way between two sides."""

    @property
    def kind(self) -> str:
        """How the link comes about, in words."""

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """Where the sides run, with a quota for the device; and the link, if to be emulated."""


@dataclass(frozen=True)
class Shaped:
    """A testbed that is up.

    Attributes:
        made: the testbed.
    """

    made: bed.Testbed
    kind: str = "sockets through a shaped link between namespaces"

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """Shape the link; a slow-down above 1 becomes a CPU quota."""
        self.made.shape(link)
        device, server = (LocalHost(self.made, side) for side in Side)
        found = HostPair(device, server, self.made.address(Side.SERVER))
        if slowdown > 1:
            found = replace(found, slow=partial(self.made.slow, slowdown=slowdown))
        return found, None


@dataclass(frozen=True)
class Emulated:
    """Both sides on this machine; the device's process holds messages up as the link would."""

    kind: str = "sockets on loopback, link emulated in the device's process"

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """As it is.

        Raises:
            InputError: a quota was asked for, which takes a testbed.
        """
        if slowdown > 1:
            raise InputError("a CPU quota takes a testbed, which needs root: slow by pacing")
        return HostPair(), link


@dataclass(frozen=True)
class Hosts:
    """Real machines, reached by SSH, and the way there is between them.

    Attributes:
        device: as `ssh` takes it; empty: this machine.
        server: the same.
        listen: `HOST:PORT` of the server, as the device reaches it.
        python: the interpreter there.
    """

    device: str
    server: str
    listen: str
    python: str = "python3"
    kind: str = "real machines"

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """The hosts; their link is what it is.

        Raises:
            InputError: the address can't be used, or a quota was asked for.
        """
        del link
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"--listen {self.listen!r} is not understood: write it HOST:PORT")
        if slowdown > 1:
            raise InputError("a real device is as slow as it is: leave out --quota")
        device, server = (
            SshHost(name) if name else LocalHost() for name in (self.device, self.server)
        )
        return HostPair(device, server, host, int(port), python=self.python), None

    def clear(self) -> None:
        """Remove from the hosts what was brought there."""
        for name in {self.device, self.server} - {""}:
            SshHost(name).clear()


@contextmanager
def shaped(link: Link) -> Iterator[Environment]:
    """A testbed for the length of the block; InputError when this machine can't have one."""
    with bed.open_testbed(link) as made:
        yield Shaped(made)
