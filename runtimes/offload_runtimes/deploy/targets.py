"""Deployment targets: a directory, an account reached by SSH, or a name in devices.toml."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offload.errors import InputError
from offload.planning.plan import Side
from offload.units import parse_bytes

DEVICES = "devices.toml"
_ROOT = "offload"  # in the account's home
_LISTEN = "127.0.0.1:50051"
_ADDRESS = re.compile(
    r"(?P<user>[^@/\s:]+)@(?P<host>\[[0-9A-Fa-f:.]+(?:%[^]\s]+)?\]|[^@/\s:\[\]]+)(:(?P<port>\d+))?(?P<root>/.*)?"
)


@dataclass(frozen=True, slots=True)
class SshAccount:
    """An account on another machine; None leaves a value to the user's ssh configuration."""

    host: str
    user: str | None = None
    port: int | None = None
    key: str | None = None

    @property
    def login(self) -> str:
        """The `ssh` command that logs in to it."""
        port = "" if self.port is None else f"-p {self.port} "
        key = "" if self.key is None else f"-i {self.key} "
        return f"ssh {port}{key}{replace(self, port=None)}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        account = f"{self.user}@{host}" if self.user else host
        return account if self.port is None else f"{account}:{self.port}"


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """A target of deployments.

    Attributes:
        name: its name for the user.
        root: the directory of releases; a relative one is in the account's home.
        ssh: the account to log in to; None: it is on this machine.
        role: its side; None: unknown, it gets both sides' files.
        python: a Python on the target, to run the agent and to make environments.
        providers: execution providers of onnxruntime.
        allow_cpu: use the CPU, with a warning, where a provider is missing.
        threads: threads of one kernel.
        listen: address of its server.
        serving: command-line options of its server; paths are the target's.
    """

    name: str
    root: str = _ROOT
    ssh: SshAccount | None = None
    role: Side | None = None
    python: str = "python3"
    providers: tuple[str, ...] = ()
    allow_cpu: bool = False
    threads: int | None = None
    listen: str = _LISTEN
    serving: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """Command-line options of its runtime: providers and threads."""
        threads = () if self.threads is None else ("--threads", str(self.threads))
        return (*self.provider_options, *threads)

    @property
    def provider_options(self) -> tuple[str, ...]:
        """Command-line options for its execution providers."""
        words = (word for name in self.providers for word in ("--provider", name))
        return (*words, "--allow-cpu") if self.allow_cpu else tuple(words)


def find_target(text: str, devices: Mapping[str, TargetConfig]) -> TargetConfig:
    """Find a target by a device's name, `user@host[:port][/directory]`, or a directory.

    Raises:
        InputError: the text is empty, or not a valid address.
    """
    if text in devices:
        return devices[text]
    if "@" in text.split("/")[0]:
        match = _ADDRESS.fullmatch(text)
        port = int(match["port"]) if match and match["port"] else None
        if match is None or (port is not None and not 0 < port < 65536):
            raise InputError(f"target {text!r} is not understood: write it like pi@192.0.2.7:22")
        ssh = SshAccount(match["host"].strip("[]"), match["user"], port)
        return TargetConfig(text, root=match["root"] or _ROOT, ssh=ssh)
    if not text:
        raise InputError("a target's name is empty: give a directory, user@host or a device")
    return TargetConfig(text, root=str(Path(text).absolute()))


def read_devices(path: Path) -> dict[str, TargetConfig]:
    """Read the devices of a `devices.toml`, by name; none if the file does not exist.

    Raises:
        InputError: not TOML, an unknown key, or a value of the wrong kind.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error}): correct it") from error
    return {name: _read_device(path, name, entry) for name, entry in tables.items()}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 60


def _is_size(value: object) -> bool:
    try:
        return isinstance(value, str) and parse_bytes(value) > 0
    except InputError:
        return False


# Keys of devices.toml that become options of `serve`.
_SERVE_OPTIONS = {
    "cert": "--cert",
    "cert_key": "--key",
    "client_ca": "--client-ca",
    "token_file": "--token-file",
    "max_memory": "--max-memory",
    "workers": "--workers",
    "batch": "--batch",
    "batch_wait": "--batch-wait",
    "max_sessions": "--max-sessions",
    "metrics": "--metrics",
    "releases": "--releases",
}
_KEYS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "role": (lambda value: value in tuple(Side), '"device" or "server"'),
    "host": (_is_text, "a host name or address"),
    "user": (_is_text, "a user's name"),
    "port": (lambda value: _is_count(value) and int(str(value)) < 65536, "a port"),
    "key": (_is_text, "the path of a private key"),
    "root": (_is_text, "a directory on the target"),
    "python": (_is_text, "a Python on the target"),
    "providers": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        'a list like ["cuda"]',
    ),
    "allow_cpu": (lambda value: isinstance(value, bool), "true or false"),
    "threads": (_is_count, "a number of threads"),
    "listen": (_is_text, "HOST:PORT"),
    "workers": (_is_count, "a number of workers"),
    "batch": (_is_count, "a number of rows"),
    "batch_wait": (_is_seconds, "0 to 60 seconds"),
    "insecure": (lambda value: isinstance(value, bool), "true or false"),
    "max_memory": (_is_size, 'a size like "2 GB"'),
    "max_sessions": (_is_count, "a number of sessions"),
    "releases": (_is_count, "a number of releases"),
    "metrics": (_is_text, "HOST:PORT"),
    "cert": (_is_text, "the path of a certificate on the target"),
    "cert_key": (_is_text, "the path of the certificate's key on the target"),
    "client_ca": (_is_text, "the path of an authority's certificate on the target"),
    "token_file": (_is_text, "the path of a file on the target"),
}


def _read_device(path: Path, name: str, entry: Any) -> TargetConfig:
    """Check and read one table of devices.toml."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {name!r} is not a table: write [{name}] and its keys below")
    for key, value in entry.items():
        if key not in _KEYS:
            raise InputError(f"{path}: [{name}] has an unknown key {key!r}: use {', '.join(_KEYS)}")
        is_valid, expected = _KEYS[key]
        if not is_valid(value):
            raise InputError(f"{path}: [{name}] {key} is {value!r}: it must be {expected}")
    if "host" not in entry and "root" not in entry:
        raise InputError(f"{path}: [{name}] has neither host nor root: add one of them")
    ssh = None
    if "host" in entry:
        ssh = SshAccount(entry["host"], entry.get("user"), entry.get("port"), entry.get("key"))
    root = entry.get("root", _ROOT)
    serving: list[str] = []
    for key, option in _SERVE_OPTIONS.items():
        if key in entry:
            serving += [option, str(entry[key])]
    if entry.get("insecure"):
        serving.append("--insecure")
    return TargetConfig(
        name,
        root=root if ssh else str(Path(root).expanduser().absolute()),
        ssh=ssh,
        role=Side(entry["role"]) if "role" in entry else None,
        python=entry.get("python", "python3"),
        providers=tuple(entry.get("providers", ())),
        allow_cpu=entry.get("allow_cpu", False),
        threads=entry.get("threads"),
        listen=entry.get("listen", _LISTEN),
        serving=tuple(serving),
    )
