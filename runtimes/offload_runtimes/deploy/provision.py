"""Install the light runtime on a target: check the machine, install, try it, switch to it."""

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import offload
from offload.errors import InputError, OffloadError
from offload.records import to_json

import offload_runtimes
from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.deployment import send_whole
from offload_runtimes.deploy.service import installed_unit, is_running, restart
from offload_runtimes.deploy.stages import content_of, ending
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.device_requirements import (
    CUDA_ORT,
    CUDA_WHEELS,
    MINIMUM_PYTHON,
    ORT,
    PILLOW,
    REQUIREMENTS,
    RUNTIME,
    wheel_of,
)

# pip takes each tag literally: an older manylinux is not implied.
_MANYLINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PLATFORMS = ("aarch64", "x86_64")
_TIME = (1980, 1, 1, 0, 0, 0)  # zip's earliest: the same sources give the same wheel


def write_runtime_wheel(folder: Path) -> Path:
    """Write the light runtime that is installed on this machine as a wheel; returns its path.

    A target thus runs exactly the code that deploys to it, without a package index. The wheel holds
    the packages `offload` and `offload_runtimes`, not the models and the command line.
    """
    version = offload.__version__
    stem = f"{RUNTIME.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    files: dict[str, bytes] = {}
    for package in (offload, offload_runtimes):
        assert package.__file__ is not None
        source = Path(package.__file__).parent
        for file in sorted(source.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                files[file.relative_to(source.parent).as_posix()] = file.read_bytes()
    needs = "".join(f"Requires-Dist: {text}\n" for text in REQUIREMENTS)
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {RUNTIME}\nVersion: {version}\n"
        "Summary: Run the bundles of onnx-offload.\nLicense: Apache-2.0\n"
        f"Requires-Python: >=3.11\n{needs}"
    ).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: onnx-offload\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name, _TIME), data, zipfile.ZIP_DEFLATED)
    return path


def fill_wheelhouse(
    folder: Path,
    platform: str,
    python: str,
    ort: str | None = None,
    providers: Sequence[str] = (),
    *,
    system_cuda: bool = False,
) -> tuple[Path, ...]:
    """Download all wheels for a target of another platform that has no internet.

    Args:
        folder: where the wheels go; created if it is missing.
        platform: `aarch64` or `x86_64`.
        python: the target's Python, like `3.13`.
        ort: a version of onnxruntime; None: the newest.
        providers: execution providers of the target, which choose the wheel of onnxruntime.
        system_cuda: leave out NVIDIA's wheels: the target has CUDA's libraries.

    Raises:
        InputError: an unknown platform, or the index has no wheel for it; the text names it.
    """
    numbers = python.split(".")
    if platform not in PLATFORMS:
        raise InputError(f"platform {platform!r} is unknown: use {' or '.join(PLATFORMS)}")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise InputError(f"Python {python!r} is not understood: write it like 3.13")
    folder.mkdir(parents=True, exist_ok=True)
    tag = "cp" + "".join(numbers)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", "--python-version", python]
    command += ["--implementation", "cp"]
    for abi in (tag, "abi3", "none"):
        command += ["--abi", abi]
    for manylinux in _MANYLINUX:
        command += ["--platform", f"{manylinux}_{platform}"]
    command += requirements(ort, providers, system_cuda=system_cuda)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = errors[-1].removeprefix("ERROR: ") if errors else done.stderr.strip()[-200:]
        raise InputError(f"wheels for {platform}, Python {python} cannot be downloaded: {why}")
    write_runtime_wheel(folder)
    return tuple(sorted(folder.glob("*.whl")))


def requirements(
    ort: str | None = None, providers: Sequence[str] = (), *, system_cuda: bool = False
) -> tuple[str, ...]:
    """The requirements of a target, with the wheel of onnxruntime that has its providers.

    Args:
        ort: a version of onnxruntime; None: the newest.
        providers: the target's execution providers.
        system_cuda: leave out NVIDIA's wheels: the target has CUDA's libraries.
    """
    wheel = wheel_of(providers)
    oldest = CUDA_ORT if wheel == "onnxruntime-gpu" and not system_cuda else ORT
    chosen = f"{wheel}=={ort}" if ort else f"{wheel}>={oldest}"
    others = (text for text in REQUIREMENTS if not text.startswith("onnxruntime"))
    cuda = CUDA_WHEELS if wheel == "onnxruntime-gpu" and not system_cuda else ()
    return (chosen, *others, *cuda)


_MINIMUM_GLIBC = (2, 28)  # onnxruntime's wheels are manylinux_2_28
_MINIMUM_DISK_BYTES = 400_000_000
_CUDA_DISK_BYTES = 5_000_000_000  # 2.6 GB installed, and the wheels while pip unpacks them
_MINIMUM_MEMORY_BYTES = 256_000_000
_CLOCK_OFF_S = 300.0
_VENV_S = 300.0
_PIP_S = 1800.0
_PREFLIGHT_S = 300.0
_VENVS = "runtime/venvs"


@dataclass(frozen=True, slots=True)
class Package:
    """A package on a target, and the disk space that it takes."""

    name: str
    version: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Installed:
    """A runtime that passed its preflight on a target.

    Attributes:
        target: the target.
        python: its interpreter there.
        machine: the target's processor.
        provider: the execution provider that ran the preflight's model.
        packages: what was installed, without pip.
        preflight_s: seconds that importing and running a tiny model took.
    """

    target: TargetConfig
    python: str
    machine: str
    provider: str
    packages: tuple[Package, ...]
    preflight_s: float


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A runtime that a rollback switched to.

    Attributes:
        target: the target.
        runtime: its folder's name.
        previous: name of the folder of the runtime before.
        version: of this product.
        onnxruntime: its version.
    """

    target: TargetConfig
    runtime: str
    previous: str
    version: str
    onnxruntime: str


def objections(
    facts: Mapping[str, Any], now_s: float, disk_bytes: int = _MINIMUM_DISK_BYTES
) -> tuple[str, ...]:
    """Why a machine cannot run the light runtime, one sentence each; none if it can.

    Args:
        facts: as the agent reports them.
        now_s: the time on this machine.
        disk_bytes: free disk space that the runtime needs.
    """
    reasons = []
    python = ".".join(str(number) for number in facts["python"])
    if facts["bits"] != 64:
        reasons.append(
            f"its system is {facts['bits']}-bit ({facts['machine']}), onnxruntime has wheels for"
            " 64-bit ones only: install the 64-bit system"
        )
    libc, version = facts["libc"]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if libc != "glibc" or numbers < _MINIMUM_GLIBC:
        reasons.append(f"its C library is {libc or 'not glibc'} {version}: glibc 2.28 is needed")
    if tuple(facts["python"][:2]) < MINIMUM_PYTHON:
        reasons.append(f"its Python is {python}: 3.11 is needed, name a newer one as `python`")
    if facts["disk_free_bytes"] < disk_bytes:
        free_mb = facts["disk_free_bytes"] / 1e6
        reasons.append(f"its disk has {free_mb:.0f} MB free: {disk_bytes / 1e6:.0f} MB are needed")
    if facts["memory_bytes"] < _MINIMUM_MEMORY_BYTES:
        reasons.append(f"it has {facts['memory_bytes'] / 1e6:.0f} MB of memory: 256 MB are needed")
    off_s = facts["time_s"] - now_s
    if abs(off_s) > _CLOCK_OFF_S:
        reasons.append(f"its clock is off by {off_s:.0f} s: set it, secure downloads need it")
    return tuple(reasons)


def init_devices(
    targets: Sequence[TargetConfig],
    wheelhouse: Path | None,
    ort: str | None,
    report: Callable[[TargetConfig, str], None],
    system_cuda: bool,
    *,
    pictures: bool = False,
) -> list[Installed | OffloadError]:
    """Install the light runtime on targets, all at once, and switch to it.

    The runtime before is kept, for `rollback_device`; a running service is restarted. The wheel of
    onnxruntime is the one that the target's providers need, and the preflight runs on them.

    Args:
        targets: the targets.
        wheelhouse: a folder of wheels to install from; None: the target's package index.
        ort: a version of onnxruntime; None: the newest.
        report: called with each step.
        system_cuda: install no CUDA libraries: the target has them.
        pictures: also install Pillow, which encodes pictures as png and jpeg.

    Returns:
        For each target what was installed, or the error. InputError: the machine does not meet the
        requirements, a package is missing, onnxruntime crashes there, or lacks a provider; then the
        runtime before stays. ServerError: the target cannot be reached.
    """

    async def install(target: TargetConfig) -> Installed | OffloadError:
        wheels = requirements(ort, target.providers, system_cuda=system_cuda)
        wheels = (*wheels, *([PILLOW] if pictures else []))
        try:
            async with connect(target) as agent:
                steps = lambda text: report(target, text)  # noqa: E731
                return await _provision(agent, wheels, wheelhouse, steps)
        except OffloadError as error:
            return error

    async def install_all() -> list[Installed | OffloadError]:
        return list(await asyncio.gather(*map(install, targets)))

    return asyncio.run(install_all())


async def _provision(
    agent: AgentClient,
    wheels: Sequence[str],
    wheelhouse: Path | None,
    report: Callable[[str], None],
) -> Installed:
    """Check the machine, install, run the preflight, switch; an error keeps the runtime before."""
    report("checking the machine")
    facts = await agent.call("facts")
    needed = _CUDA_DISK_BYTES if set(CUDA_WHEELS) <= set(wheels) else _MINIMUM_DISK_BYTES
    reasons = objections(facts, time.time(), needed)
    if reasons:
        raise InputError(f"{agent.target.name} cannot run models: {'; '.join(reasons)}")
    await agent.call("lock")
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    python = f"{facts['root']}/{_VENVS}/{name}/bin/python"
    try:
        await _install(agent, f"{_VENVS}/{name}", python, wheels, wheelhouse, report)
        report("preflight: running a tiny model")
        result = await _preflight(agent, python)
    except BaseException:
        await _run(agent, "rm", "-rf", f"{_VENVS}/{name}")
        raise
    before = await _current(agent)
    await _switch(agent, name)
    names = (await agent.call("listing", folder=_VENVS))["names"]
    old = [f"{_VENVS}/{other}" for other in names if other not in (name, before)]
    if old:
        await _run(agent, "rm", "-rf", *old)
    return Installed(
        agent.target,
        f"{facts['root']}/runtime/current/bin/python",
        facts["machine"],
        result["provider"],
        tuple(Package(**package) for package in result["packages"]),
        result["seconds"],
    )


async def _install(
    agent: AgentClient,
    folder: str,
    python: str,
    requirements: Sequence[str],
    wheelhouse: Path | None,
    report: Callable[[str], None],
) -> None:
    """Make a virtual environment, send the wheels that are missing, and install them."""
    target = agent.target
    report("making a virtual environment")
    done = await _run(agent, target.python, "-m", "venv", folder)
    if done["code"]:
        lines = f"{done['out']}\n{done['err']}".strip().splitlines()
        reason = lines[-1].strip() if lines else f"exit code {done['code']}"
        raise InputError(
            f"{target.name} cannot make a virtual environment ({reason}): install python3-venv"
            " there"
        )
    with tempfile.TemporaryDirectory(prefix="offload-wheel-") as temporary:
        own = write_runtime_wheel(Path(temporary))
        wheels = {path.name: path for path in wheels_of(wheelhouse)} if wheelhouse else {}
        wheels[own.name] = own
        files = to_json([content_of(path) for path in wheels.values()])
        missing = await agent.call("damaged", folder="wheels", files=files)
        for name in missing["names"]:
            report(f"sending {name}")
            await send_whole(agent, f"wheels/{name}", wheels[name])
    report("installing")
    source = ("--no-index", "--find-links", "wheels") if wheelhouse else ()
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    command = (*pip, *source, *requirements, f"wheels/{own.name}")
    done = await _run(agent, *command, timeout_s=_PIP_S)
    if done["code"]:
        raise InputError(f"pip on {target.name} {ending(done)}")


async def _run(agent: AgentClient, *command: str, timeout_s: float = _VENV_S) -> dict[str, Any]:
    return await agent.call("run", command=list(command), timeout_s=timeout_s)


def rollback_device(target: TargetConfig) -> RolledBack:
    """Switch back to the runtime that a target had before; a second call switches forth again.

    It is tried first, on the providers of the target. A running service is restarted on it.

    Raises:
        InputError: there is no earlier runtime, or it does not work; the current one stays.
        ServerError: the target cannot be reached.
    """

    async def roll_back() -> RolledBack:
        async with connect(target) as agent:
            root = (await agent.call("facts"))["root"]
            await agent.call("lock")
            before = await _current(agent)
            names = (await agent.call("listing", folder=_VENVS))["names"]
            others = [name for name in names if name != before]
            if before is None or not others:
                raise InputError(
                    f"{target.name} has no earlier runtime: `offload device init` keeps one"
                )
            result = await _preflight(agent, f"{root}/{_VENVS}/{others[-1]}/bin/python")
            await _switch(agent, others[-1])
            packages = {package["name"]: package["version"] for package in result["packages"]}
            version = packages.get(RUNTIME, "")
            ort = result["versions"]["onnxruntime"]
            return RolledBack(target, others[-1], before, version, ort)

    return asyncio.run(roll_back())


async def _current(agent: AgentClient) -> str | None:
    """The name of the runtime in use; None: there is none."""
    to = (await agent.call("target", name="runtime/current"))["to"]
    return None if to is None else Path(to).name


async def _switch(agent: AgentClient, name: str) -> None:
    """Switch to another runtime; back to the one before if the service does not start on it.

    Raises:
        InputError: the service does not start.
    """
    before = await _current(agent)
    await agent.call("link", name="runtime/current", to=f"venvs/{name}")
    unit = await installed_unit(agent)
    if unit is None or not await is_running(agent, unit):
        return
    try:
        await restart(agent, unit)
    except InputError:
        if before is not None:
            await agent.call("link", name="runtime/current", to=f"venvs/{before}")
            await restart(agent, unit)
        raise


async def _preflight(agent: AgentClient, python: str) -> dict[str, Any]:
    words = [python, "-m", "offload_runtimes", "preflight", *agent.target.provider_options]
    done = await agent.call("run", command=words, timeout_s=_PREFLIGHT_S)
    try:
        result: dict[str, Any] = json.loads(done["out"].strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise InputError(f"the preflight on {agent.target.name} {ending(done)}") from error
    return result


def wheels_of(folder: Path) -> list[Path]:
    """The wheels in a folder.

    Raises:
        InputError: there are none.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise InputError(f"{folder} holds no wheels: fill it with `offload wheelhouse`")
    return wheels
