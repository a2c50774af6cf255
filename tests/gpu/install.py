"""Install what `make test-gpu` needs into this environment, with the GPU's wheel of onnxruntime.

    python tests/gpu/install.py [FOLDER]              from the index, or from a folder of wheels
    python tests/gpu/install.py --download FOLDER     fill that folder, where there is an index

The project itself is not installed but found by a path file: building it would need a build
backend. One wheel of onnxruntime is installed, never two: they own the same module.
"""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("toolkit", "runtimes", "models", "cli")
TOOLS = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.120")
sys.path[:0] = [str(ROOT / name) for name in SOURCES]

from offload_runtimes.device_requirements import CUDA_ORT, CUDA_WHEELS  # noqa: E402


def requirements() -> list[str]:
    """The project's requirements, with onnxruntime-gpu and NVIDIA's wheels for onnxruntime."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = [text for text in project["dependencies"] if not text.startswith("onnxruntime>")]
    return [*others, f"onnxruntime-gpu>={CUDA_ORT}", *CUDA_WHEELS, *TOOLS]


def main(words: list[str]) -> int:
    """Install, or download with `--download`; pip's exit code."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if words[:1] == ["--download"]:
        command = [*pip, "download", "--dest", words[1], "--only-binary", ":all:", *requirements()]
        return subprocess.run(command, check=False).returncode
    source = ["--no-index", "--find-links", words[0]] if words else []
    command = [*pip, "install", "--quiet", *source, *requirements()]
    code = subprocess.run(command, check=False).returncode
    if not code:
        folder = Path(sysconfig.get_paths()["purelib"])
        lines = "".join(f"{ROOT / name}\n" for name in SOURCES)
        (folder / "onnx-offload.pth").write_text(lines)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
