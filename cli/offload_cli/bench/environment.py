"""Where the benchmark runs: in a testbed, or in processes of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import testbed as bed
from offload_runtimes.emulation.experiment import HostPair, LocalHost


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


Environment = Shaped | Emulated


@contextmanager
def shaped(link: Link) -> Iterator[Shaped]:
    """A testbed for the length of the block.

    Raises:
        InputError: this machine cannot run testbeds.
    """
    with bed.open_testbed(link) as testbed:
        yield Shaped(testbed)
