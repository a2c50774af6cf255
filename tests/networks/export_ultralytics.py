"""Export ultralytics' networks with seeded random weights, by its own exporter:
`python export_ultralytics.py NAME FOLDER`."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(__file__).parents[2] / "build/ultralytics"))
Path(os.environ["YOLO_CONFIG_DIR"]).mkdir(parents=True, exist_ok=True)

import export_detection_operators  # noqa: E402, F401  before torchvision, which ultralytics imports
import torch  # noqa: E402
from export_common import main, save_inputs  # noqa: E402
from ultralytics import RTDETR, YOLO  # noqa: E402


def detector(config: str, folder: Path, *, size: int = 320, **options: Any) -> None:
    """A network from its description, as `yolo export` writes it."""
    torch.manual_seed(0)
    os.chdir(folder)  # the exporter writes to the working directory
    kind = RTDETR if config.startswith("rtdetr") else YOLO
    written = kind(config).export(format="onnx", imgsz=size, **options)
    if Path(written).resolve() != (folder / "model.onnx").resolve():
        shutil.move(written, folder / "model.onnx")
    save_inputs(folder, [torch.rand(1, 3, size, size).numpy()])


NETWORKS: dict[str, Callable[[Path], None]] = {
    "yolo11n": partial(detector, "yolo11n.yaml", simplify=False),
    "yolo11n-slim-open": partial(detector, "yolo11n.yaml", dynamic=True, simplify=True),
    "yolov8n-seg": partial(detector, "yolov8n-seg.yaml", simplify=False),
    "yolo12n": partial(detector, "yolo12n.yaml", simplify=False),
    "yolo26n": partial(detector, "yolo26n.yaml", simplify=True),
    "yolo11n-pose": partial(detector, "yolo11n-pose.yaml", simplify=True),
    "rtdetr-l": partial(detector, "rtdetr-l.yaml", simplify=False),
}

main(NETWORKS)
