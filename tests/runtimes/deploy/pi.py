"""A 64-bit Raspberry Pi without the Pi: an arm64 Debian whose Python runs under qemu.

For right or wrong only, never for times: emulation is some 300 times slower.
"""

import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from offload_runtimes.deploy.provision import fill_wheelhouse

_TOOLS = ("mmdebstrap", "qemu-aarch64-static")
_PACKAGES = "python3,libstdc++6,ca-certificates,base-files,dash,coreutils"
# onnxruntime looks for the cores in these two and crashes when it finds the host's, of another
# architecture; qemu reads them here first. The text is a Raspberry Pi 4's.
_CORE = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
_CORES = 4


@dataclass(frozen=True)
class Pi:
    """An emulated device.

    Attributes:
        python: a program that behaves as the device's Python with the light runtime.
        wheels: what the runtime was installed from.
    """

    python: Path
    wheels: tuple[Path, ...]

    def run(self, *words: str | Path) -> str:
        """Run the device's Python; what it printed."""
        command = [self.python, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout


def missing_tools() -> str:
    """Why there can be no emulated device here; empty when there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)} here: apt-get install mmdebstrap qemu-user-static"
    return "" if os.getuid() == 0 else "unpacking a Debian for another processor needs root"


def make_pi(folder: Path) -> Pi:
    """Unpack an arm64 Debian and the runtime's wheels for it, as a Pi would have them."""
    root, site = folder / "root", folder / "site"
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"]
    subprocess.run([*command, f"--include={_PACKAGES}", "bookworm", str(root)], check=True)
    wheels = fill_wheelhouse(folder / "wheels", "aarch64", "3.11")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as held:
            held.extractall(site)
    _pretend_cores(root)
    qemu = shutil.which("qemu-aarch64-static")
    python = folder / "python"
    python.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={site} PYTHONDONTWRITEBYTECODE=1\n"
        f'exec {qemu} -cpu cortex-a72 -L {root} {root}/usr/bin/python3.11 "$@"\n'
    )
    python.chmod(0o755)
    return Pi(python, wheels)


def _pretend_cores(root: Path) -> None:
    (root / "proc").mkdir(exist_ok=True)
    text = "".join(_CORE.format(number=number) for number in range(_CORES))
    (root / "proc/cpuinfo").write_text(text)
    cores = root / "sys/devices/system/cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text(f"0-{_CORES - 1}\n")
    for number in range(_CORES):
        (cores / f"cpu{number}/topology").mkdir(parents=True)
