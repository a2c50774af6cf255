"""Put the light runtime on a target: check it, install beside what is there, try, switch."""

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import offload
from offload.errors import InputError, OffloadError

import offload_runtimes
from offload_runtimes.deploy.agent_client import Target
from offload_runtimes.deploy.connect import connect
from offload_runtimes.deploy.deployment import send_whole
from offload_runtimes.deploy.service import installed_unit, is_running, restart
from offload_runtimes.deploy.stages import content_of, ending
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.device_requirements import (
    CUDA_ORT,
    CUDA_WHEELS,
    MINIMUM_PYTHON,
    ORT,
    REQUIREMENTS,
    RUNTIME,
    wheel_of,
)

# pip takes each tag literally: an older manylinux is not implied.
_MANYLINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PLATFORMS = ("aarch64", "x86_64")
_TIME = (1980, 1, 1, 0, 0, 0)  # the zip format's zero: the same sources give the same wheel


def write_runtime_wheel(folder: Path) -> Path:
    """Write the light runtime, as it is installed here, as a wheel; returns its path.

    So a target runs exactly the code that deploys to it, whether or not there is an index. It
    holds the packages `offload` and `offload_runtimes`, not the models and the command line.
    """
    version = offload.__version__
    stem = f"{RUNTIME.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    files = dict(_sources())
    files[f"{info}/METADATA"] = _metadata(version).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: onnx-offload\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},{_record(data)}\n" for name, data in files.items())
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
    """Download all that a target of another platform installs, for one without internet.

    Args:
        folder: where the wheels go; made if it is missing.
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
        raise InputError(f"wheels for {platform}, Python {python} can't be had: {why}")
    write_runtime_wheel(folder)
    return tuple(sorted(folder.glob("*.whl")))


def requirements(
    ort: str | None = None, providers: Sequence[str] = (), *, system_cuda: bool = False
) -> tuple[str, ...]:
    """What a target installs: the one wheel of onnxruntime that has its providers.

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


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in (offload, offload_runtimes):
        assert package.__file__ is not None
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(folder.parent).as_posix(), path.read_bytes()


def _metadata(version: str) -> str:
    needs = "".join(f"Requires-Dist: {text}\n" for text in REQUIREMENTS)
    return (
        f"Metadata-Version: 2.1\nName: {RUNTIME}\nVersion: {version}\n"
        "Summary: Run the bundles of onnx-offload.\nLicense: Apache-2.0\n"
        f"Requires-Python: >=3.11\n{needs}"
    )


def _record(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest},{len(data)}"


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
    """A package on a target and the disk it takes."""

    name: str
    version: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Installed:
    """A runtime that passed its preflight on a target.

    Attributes:
        place: the target.
        python: its interpreter there.
        machine: the target's processor.
        provider: the execution provider that ran the preflight's model.
        packages: what was installed, without pip.
        preflight_s: seconds that importing and running a tiny model took.
    """

    place: TargetConfig
    python: str
    machine: str
    provider: str
    packages: tuple[Package, ...]
    preflight_s: float


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A runtime that is in use again.

    Attributes:
        place: the target.
        runtime: its folder's name.
        previous: the folder's name of the one before.
        version: of this product.
        onnxruntime: its version.
    """

    place: TargetConfig
    runtime: str
    previous: str
    version: str
    onnxruntime: str


def objections(
    facts: Mapping[str, Any], now_s: float, disk_bytes: int = _MINIMUM_DISK_BYTES
) -> tuple[str, ...]:
    """Why a machine cannot run the light runtime, one sentence each; none if it can.

    Args:
        facts: as the agent tells them.
        now_s: the time here.
        disk_bytes: free disk that the runtime needs.
    """
    found = []
    python = ".".join(str(number) for number in facts["python"])
    if facts["bits"] != 64:
        found.append(
            f"its system is {facts['bits']}-bit ({facts['machine']}), onnxruntime has wheels for"
            " 64-bit ones only: install the 64-bit system"
        )
    libc, version = facts["libc"]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if libc != "glibc" or numbers < _MINIMUM_GLIBC:
        found.append(f"its C library is {libc or 'not glibc'} {version}: glibc 2.28 is needed")
    if tuple(facts["python"][:2]) < MINIMUM_PYTHON:
        found.append(f"its Python is {python}: 3.11 is needed, name a newer one as `python`")
    if facts["disk_free_bytes"] < disk_bytes:
        free_mb = facts["disk_free_bytes"] / 1e6
        found.append(f"its disk has {free_mb:.0f} MB free: {disk_bytes / 1e6:.0f} MB are needed")
    if facts["memory_bytes"] < _MINIMUM_MEMORY_BYTES:
        found.append(f"it has {facts['memory_bytes'] / 1e6:.0f} MB of memory: 256 MB are needed")
    off_s = facts["time_s"] - now_s
    if abs(off_s) > _CLOCK_OFF_S:
        found.append(f"its clock is off by {off_s:.0f} s: set it, secure downloads need it")
    return tuple(found)


def init_device(
    place: TargetConfig,
    wheelhouse: Path | None = None,
    ort: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    *,
    system_cuda: bool = False,
) -> Installed:
    """Install the light runtime on a target, beside the one that is there, and switch to it.

    The one that was there is kept, for `rollback_device`; a service that runs is restarted.

    The wheel of onnxruntime is the one that the target's providers need, and the preflight runs
    on these providers.

    Args:
        place: the target.
        wheelhouse: a folder of wheels to install from; None: the target's package index.
        ort: a version of onnxruntime; None: the newest.
        report: told of each step.
        system_cuda: install no CUDA libraries: the target has them.

    Raises:
        InputError: the machine is not fit, a package can't be had, onnxruntime crashes there, or
            a provider is missing there; the runtime that was there stays.
        ServerError: the target can't be reached.
    """

    (found,) = init_devices([place], wheelhouse, ort, lambda _, text: report(text), system_cuda)
    if isinstance(found, OffloadError):
        raise found
    return found


def init_devices(
    places: Sequence[TargetConfig],
    wheelhouse: Path | None,
    ort: str | None,
    report: Callable[[TargetConfig, str], None],
    system_cuda: bool,
) -> list[Installed | OffloadError]:
    """As `init_device`, for several targets at once; why it failed stands in a target's place."""

    async def one(place: TargetConfig) -> Installed | OffloadError:
        def told(text: str) -> None:
            report(place, text)

        try:
            async with connect(place) as target:
                return await Provisioning(target, wheelhouse, ort, told, system_cuda).run()
        except OffloadError as error:
            return error

    async def all_at_once() -> list[Installed | OffloadError]:
        return list(await asyncio.gather(*(one(place) for place in places)))

    return asyncio.run(all_at_once())


class Provisioning:
    """The steps of putting the runtime on one target."""

    def __init__(
        self,
        target: Target,
        wheelhouse: Path | None,
        ort: str | None,
        report: Callable[[str], None],
        system_cuda: bool,
    ) -> None:
        self._target = target
        self._name = target.place.name
        self._wheelhouse = wheelhouse
        self._requirements = requirements(ort, target.place.providers, system_cuda=system_cuda)
        self._report = report
        self._folder = f"{_VENVS}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"

    async def run(self) -> Installed:
        """Do them; a failure leaves what was there."""
        self._report("checking the machine")
        facts = await self._target.call("facts")
        has_cuda = set(CUDA_WHEELS) <= set(self._requirements)
        needed = _CUDA_DISK_BYTES if has_cuda else _MINIMUM_DISK_BYTES
        reasons = objections(facts, time.time(), needed)
        if reasons:
            raise InputError(f"{self._name} cannot run models: {'; '.join(reasons)}")
        await self._target.call("lock")
        python = f"{facts['root']}/{self._folder}/bin/python"
        try:
            await self._install(python)
            self._report("preflight: running a tiny model")
            found = await _preflight(self._target, python)
        except BaseException:
            await self._run("rm", "-rf", self._folder)
            raise
        before = await _current(self._target)
        await _switch(self._target, Path(self._folder).name)
        there = await self._target.call("listing", folder=_VENVS)
        kept = {Path(self._folder).name, before}
        old = [f"{_VENVS}/{name}" for name in there["names"] if name not in kept]
        if old:
            await self._run("rm", "-rf", *old)
        packages = tuple(Package(**package) for package in found["packages"])
        return Installed(
            self._target.place,
            f"{facts['root']}/runtime/current/bin/python",
            facts["machine"],
            found["provider"],
            packages,
            found["seconds"],
        )

    async def _install(self, python: str) -> None:
        self._report("making a virtual environment")
        base = self._target.place.python
        done = await self._run(base, "-m", "venv", self._folder, timeout_s=_VENV_S)
        if done["code"]:
            raise InputError(
                f"{self._name} makes no virtual environment ({_last(done)}): install python3-venv"
                " there"
            )
        names = await self._send_wheels()
        self._report("installing")
        source = ("--no-index", "--find-links", "wheels") if self._wheelhouse else ()
        wheel = next(f"wheels/{name}" for name in names if name.startswith("onnx_offload_runtime"))
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        words = (*pip, "--no-deps", *source, *self._requirements, wheel)
        done = await self._run(*words, timeout_s=_PIP_S)
        if done["code"]:
            raise InputError(f"pip on {self._name} {ending(done)}")

    async def _send_wheels(self) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="offload-wheel-") as folder:
            own = write_runtime_wheel(Path(folder))
            others = wheels_of(self._wheelhouse) if self._wheelhouse else []
            wheels = {path.name: path for path in [*others, own]}
            files = [content_of(path).to_json() for path in wheels.values()]
            lacking = await self._target.call("damaged", folder="wheels", files=files)
            for name in lacking["names"]:
                self._report(f"sending {name}")
                await send_whole(self._target, f"wheels/{name}", wheels[name])
            return list(wheels)

    async def _run(self, *command: str, timeout_s: float = _VENV_S) -> dict[str, Any]:
        return await self._target.call("run", command=list(command), timeout_s=timeout_s)


def rollback_device(place: TargetConfig) -> RolledBack:
    """Switch back to the runtime that a target had before; again, and forth.

    It is tried first, on the providers of the target. A service that runs is restarted on it.

    Raises:
        InputError: there is no earlier runtime, or it does not work; the current one stays.
        ServerError: the target can't be reached.
    """

    async def do() -> RolledBack:
        async with connect(place) as target:
            return await _rollback(target)

    return asyncio.run(do())


async def _rollback(target: Target) -> RolledBack:
    root = (await target.call("facts"))["root"]
    await target.call("lock")
    before = await _current(target)
    names = (await target.call("listing", folder=_VENVS))["names"]
    others = [name for name in names if name != before]
    if before is None or not others:
        raise InputError(
            f"{target.place.name} has no earlier runtime: `offload device init` keeps one"
        )
    found = await _preflight(target, f"{root}/{_VENVS}/{others[-1]}/bin/python")
    await _switch(target, others[-1])
    packages = {package["name"]: package["version"] for package in found["packages"]}
    return RolledBack(
        target.place,
        others[-1],
        before,
        packages.get(RUNTIME, ""),
        found["versions"]["onnxruntime"],
    )


async def _current(target: Target) -> str | None:
    """The name of the runtime in use; None: there is none."""
    to = (await target.call("target", name="runtime/current"))["to"]
    return None if to is None else Path(to).name


async def _switch(target: Target, name: str) -> None:
    """Use another runtime; where the service does not come up on it, the one before again.

    Raises:
        InputError: the service does not come up.
    """
    before = await _current(target)
    await target.call("link", name="runtime/current", to=f"venvs/{name}")
    unit = await installed_unit(target)
    if unit is None or not await is_running(target, unit):
        return
    try:
        await restart(target, unit)
    except InputError:
        if before is not None:
            await target.call("link", name="runtime/current", to=f"venvs/{before}")
            await restart(target, unit)
        raise


async def _preflight(target: Target, python: str) -> dict[str, Any]:
    words = [python, "-m", "offload_runtimes", "preflight", *target.place.provider_options]
    done = await target.call("run", command=words, timeout_s=_PREFLIGHT_S)
    try:
        found: dict[str, Any] = json.loads(done["out"].strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise InputError(f"the preflight on {target.place.name} {ending(done)}") from error
    return found


def wheels_of(folder: Path) -> list[Path]:
    """The wheels of a house.

    Raises:
        InputError: there are none.
    """
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise InputError(f"{folder} holds no wheels: fill it with `offload wheelhouse`")
    return found


def _last(done: Mapping[str, Any]) -> str:
    lines = f"{done['out']}\n{done['err']}".strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {done['code']}"
