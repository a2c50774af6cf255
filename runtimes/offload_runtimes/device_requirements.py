"""The packages that a device installs to run bundles, without those to make them.

Installed with pip's `--no-deps`: onnxruntime's other requirements (flatbuffers, packaging) serve
its tools, not its inference.
"""

from collections.abc import Sequence

RUNTIME = "onnx-offload-runtime"
ORT = "1.20"  # the oldest onnxruntime
CUDA_ORT = "1.31"  # the oldest onnxruntime-gpu that takes CUDA 13 from CUDA_WHEELS
REQUIREMENTS = (
    "numpy>=1.26",
    f"onnxruntime>={ORT}",
    "grpcio>=1.70",
    "protobuf>=7.35.1",
    "zstandard>=0.23",
    "prometheus-client>=0.22",  # the server's metrics
    "grpcio-health-checking>=1.70",  # the server's health checks
    "typing-extensions>=4.12",  # grpcio imports it
)
PILLOW = "pillow>=10.1"  # encodes pictures as png and jpeg
# The wheels of onnxruntime: all contain the same module, so only one may be installed.
ORT_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
# The libraries of CUDA 13 that PyPI's onnxruntime-gpu loads; the driver comes from the system.
CUDA_WHEELS = (
    "nvidia-cublas~=13.0",
    "nvidia-cuda-nvrtc~=13.0",
    "nvidia-cuda-runtime~=13.0",
    "nvidia-cudnn-cu13~=9.0",
    "nvidia-cufft~=12.0",
    "nvidia-curand~=10.0",
    "nvidia-nvjitlink~=13.0",
)
MODULES = (
    "numpy",
    "onnxruntime",
    "grpc",
    "grpc_health",
    "google.protobuf",
    "zstandard",
    "prometheus_client",
)
MINIMUM_PYTHON = (3, 11)


def wheel_of(providers: Sequence[str]) -> str:
    """The wheel of onnxruntime for the first of these providers that is not the CPU."""
    for name in providers:
        stem = name.lower().partition(":")[0].removesuffix("executionprovider")
        if stem in ("cuda", "tensorrt"):
            return "onnxruntime-gpu"
        if stem == "openvino":
            return "onnxruntime-openvino"
    return "onnxruntime"
