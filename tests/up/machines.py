"""A device and a server for `offload up`: two real OpenSSH servers, perhaps with a shaped link."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from offload.costs.link import Link
from offload.planning.plan import Side
from offload_runtimes.emulation.testbed import Testbed, open_testbed

from tests.runtimes.deploy.sshd import Sshd, User, make_user, running

SLOW = Path(__file__).parent / "slow"
BARE_PYTHON = str(Path(sys.base_prefix) / "bin/python3")
"""A Python without the product's packages."""

_RELAY = """
import os, socket, sys, threading
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def pump():
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=pump, daemon=True).start()
while data := peer.recv(65536):
    os.write(1, data)
"""


@dataclass(frozen=True)
class Machines:
    """Two running machines.

    Attributes:
        folder: of the user, who plans there; holds `devices.toml`.
        user: the user's home.
        device: the SSH server of the device `pi`.
        server: the SSH server of the server `hub`.
        testbed: the namespaces that they are in; None: both are on loopback.
    """

    folder: Path
    user: User
    device: Sshd
    server: Sshd
    testbed: Testbed | None

    def root(self, name: str) -> Path:
        """The directory of releases of `pi` or `hub`."""
        return {"pi": self.device, "hub": self.server}[name].folder / "offload"

    @property
    def environment(self) -> dict[str, str]:
        """For the `offload` command."""
        return {
            **os.environ,
            "HOME": str(self.user.home),
            "SSH_AUTH_SOCK": "",
            "XDG_CACHE_HOME": str(self.user.home / "cache"),
            "COLUMNS": "200",
        }

    def ssh_config(self) -> Path:
        """A configuration for OpenSSH's `ssh`, which does not follow HOME."""
        path = self.user.home / "openssh"
        own = self.user.home / ".ssh/config"
        path.write_text(
            f"IdentityFile {self.user.home}/.ssh/id_ed25519\n"
            f"UserKnownHostsFile {self.user.home}/.ssh/known_hosts\n"
            + (own.read_text() if own.exists() else "")
        )
        return path

    def offload(
        self, *words: str | Path, timeout_s: float = 280
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command; it ends with its output."""
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.folder,
            env=self.environment,
            check=False,
        )

    def command(self, *words: str | Path) -> list[str]:
        """The words of an `offload` command."""
        code = "from offload_cli.main import main; main()"
        return [sys.executable, "-c", code, *map(str, words)]

    def ok(self, *words: str | Path, timeout_s: float = 280) -> str:
        """Run the command, check that it succeeds, and return what it wrote to stdout."""
        done = self.offload(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"offload {' '.join(map(str, words))}: {done.stderr[-2000:]}"
        return done.stdout

    def refused(self, *words: str | Path) -> str:
        """Run the command, check that it fails with one sentence, and return the sentence."""
        done = self.offload(*words)
        assert done.returncode == 1, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        return errors[0].removeprefix("error: ")

    def configure(self, *, python: str = sys.executable, **changes: str) -> None:
        """Write `devices.toml`; changes are lines for `pi` or `hub`, in place of the default's."""
        address = self.testbed.address(Side.SERVER) if self.testbed else "127.0.0.1"
        lines = []
        for name, sshd in (("pi", self.device), ("hub", self.server)):
            values = {
                "host": f'"{name}"' if self.testbed else '"127.0.0.1"',
                "port": str(sshd.port),
                "root": f'"{self.root(name)}"',
                "python": f'"{python}"',
                "threads": "1",
            }
            if name == "hub":
                values["listen"] = f'"{address}:{free_port_of(self)}"'
            for line in changes.get(name, "").splitlines():
                key, _, value = line.partition("=")
                values[key.strip()] = value.strip()
            lines += [f"[{name}]", *(f"{key} = {value}" for key, value in values.items())]
        (self.folder / "devices.toml").write_text("\n".join(lines) + "\n")


def free_port_of(machines: Machines) -> int:
    """A port that is free on the server."""
    code = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"
    words: Sequence[str] = [sys.executable, "-c", code]
    if machines.testbed:
        words = machines.testbed.command(Side.SERVER, words)
    return int(subprocess.run(words, capture_output=True, check=True).stdout)


def _with_boot_id(path: Path) -> tuple[str, ...]:
    """Words before a command that then is on another machine by its boot id, where root may."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        return ()
    path.write_text(f"{uuid.uuid4()}\n")
    shown = "/proc/sys/kernel/random/boot_id"
    return ("unshare", "-m", "sh", "-c", f'mount --bind "$0" {shown} && exec "$@"', str(path))


@contextmanager
def two_machines(
    folder: Path,
    *,
    link: Link | None = None,
    slowdown: float = 1.0,
    python: str = sys.executable,
    apart: bool = False,
) -> Iterator[Machines]:
    """Start both machines, and write `devices.toml` for `pi` and `hub`.

    Args:
        folder: of the test.
        link: shape the link between the two, which are then in namespaces of their own.
        slowdown: how many times slower onnxruntime is on the device.
        python: the Python that the machines have.
        apart: give each a boot id of its own, as with a link, so that `up` profiles both at once;
            they do not see what is mounted afterwards.
    """
    with ExitStack() as stack:
        testbed = stack.enter_context(open_testbed(link)) if link else None
        user = make_user(folder / "user")
        sshds = []
        for side, name in ((Side.DEVICE, "pi"), (Side.SERVER, "hub")):
            environment = {"HOME": str(folder / name)}
            if side is Side.DEVICE and slowdown > 1:
                environment |= {"PYTHONPATH": str(SLOW), "OFFLOAD_TEST_SLOWDOWN": str(slowdown)}
            prefix = testbed.command(side, ()) if testbed else ()
            boot = _with_boot_id(folder / f"{name}-boot") if link or apart else ()
            machine = (*prefix, *boot)
            sshd = stack.enter_context(running(folder / name, user, environment, machine))
            sshds.append(sshd)
            if testbed:
                script = folder / "relay.py"
                script.write_text(_RELAY)
                proxy = " ".join([*prefix, sys.executable, str(script), str(sshd.port)])
                with (user.home / ".ssh/config").open("a") as config:
                    config.write(
                        f"Host {name}\n  HostName 127.0.0.1\n  Port {sshd.port}\n"
                        f"  ProxyCommand {proxy}\n"
                    )
        work = folder / "work"
        work.mkdir()
        machines = Machines(work, user, sshds[0], sshds[1], testbed)
        machines.configure(python=python)
        yield machines
