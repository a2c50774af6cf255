"""Where the benchmark runs: in a testbed, on this machine, or on real machines over SSH."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import testbed as bed
from offload_runtimes.emulation.experiment import HostPair, LocalHost, SshHost


@dataclass(frozen=True)
class Shaped:
    """A testbed of two namespaces that is up.

    Attributes:
        testbed: the testbed.
        kind: how the link comes about, in words.
    """

    testbed: bed.Testbed
    kind: str = "sockets through a shaped link between namespaces"

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """The sides in the testbed, its link shaped; a slow-down above 1 is a CPU quota."""
        self.testbed.shape(link)
        device, server = (LocalHost(self.testbed, side) for side in Side)
        hosts = HostPair(device, server, self.testbed.address(Side.SERVER))
        if slowdown > 1:
            hosts = replace(hosts, slow=partial(self.testbed.slow, slowdown=slowdown))
        return hosts, None


@dataclass(frozen=True)
class Emulated:
    """Both sides on this machine; the device's process delays messages as the link would."""

    kind: str = "sockets on loopback, link emulated in the device's process"

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """Both sides here, and the link to emulate.

        Raises:
            InputError: a CPU quota was requested, which needs a testbed.
        """
        if slowdown > 1:
            raise InputError("--quota needs a testbed, which needs root: leave out --quota")
        return HostPair(), link


@dataclass(frozen=True)
class Hosts:
    """Real machines, reached by SSH, and the network between them.

    Attributes:
        device: the destination for `ssh`; empty: this machine.
        server: the same.
        listen: `HOST:PORT` of the server, as the device reaches it.
        python: the interpreter there.
        kind: how the link comes about, in words.
    """

    device: str
    server: str
    listen: str
    python: str = "python3"
    kind: str = "real machines"

    def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
        """The hosts; their link is neither shaped nor emulated.

        Raises:
            InputError: the address is not understood, or a CPU quota was requested.
        """
        del link
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"--listen {self.listen!r} is not understood: write it HOST:PORT")
        if slowdown > 1:
            raise InputError("--quota does not slow down a real device: leave it out")
        device, server = (
            SshHost(name) if name else LocalHost() for name in (self.device, self.server)
        )
        return HostPair(device, server, host, int(port), python=self.python), None

    def clear(self) -> None:
        """Remove the files that were copied to the hosts."""
        for name in {self.device, self.server} - {""}:
            SshHost(name).clear()


Environment = Shaped | Emulated | Hosts


@contextmanager
def shaped(link: Link) -> Iterator[Shaped]:
    """A testbed for the length of the block.

    Raises:
        InputError: this machine cannot run testbeds.
    """
    with bed.open_testbed(link) as testbed:
        yield Shaped(testbed)
