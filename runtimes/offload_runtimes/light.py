"""What a device installs: the requirements of running bundles, without those of making them.

Installed with pip's `--no-deps`: onnxruntime's other requirements (flatbuffers, packaging) serve
its tools, not its inference.
"""

RUNTIME = "onnx-offload-runtime"
REQUIREMENTS = (
    "numpy>=1.26",
    "onnxruntime>=1.20",
    "grpcio>=1.70",
    "protobuf>=7.35.1",
    "zstandard>=0.23",
    "typing-extensions>=4.12",  # grpcio imports it
)
MODULES = ("numpy", "onnxruntime", "grpc", "google.protobuf", "zstandard")
MINIMUM_PYTHON = (3, 11)
