"""Wheels for a target: the light runtime's own, and a house of all it needs."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import offload
from offload.errors import InputError

import offload_runtimes
from offload_runtimes.light import (
    CUDA_ORT,
    CUDA_WHEELS,
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
