"""Export transformers' networks, from configurations with seeded random weights:
`python export_transformers.py NAME FOLDER`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import export_detection_operators  # noqa: F401  before torchvision, which transformers imports
import torch
import transformers as tr
from export_common import from_torch, main
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

EAGER = {"attn_implementation": "eager"}


class Picked(nn.Module):
    """A model whose named answers become a tuple."""

    def __init__(self, inner: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.inputs, self.outputs = inner, list(inputs), list(outputs)

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        found = self.inner(**dict(zip(self.inputs, args, strict=True)))
        return tuple(getattr(found, name) for name in self.outputs)


def whole(
    folder: Path, inner: nn.Module, feeds: dict[str, Tensor], outputs: Sequence[str], **more: Any
) -> None:
    """Export a model without a cache."""
    from_torch(folder, Picked(inner, list(feeds), outputs), feeds, outputs, **more)


def bert(folder: Path, dynamo: bool = True) -> None:
    """An encoder of text; batch and length are open."""
    config = tr.BertConfig(
        vocab_size=3000,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        **EAGER,
    )
    ids = torch.randint(0, 3000, (1, 64))
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dynamic = {name: {0: "batch", 1: "length"} for name in feeds}
    inner = tr.BertModel(config)
    outputs = ["last_hidden_state", "pooler_output"]
    whole(folder, inner, feeds, outputs, dynamic=dynamic, dynamo=dynamo)


class Decoder(nn.Module):
    """A decoder whose keys and values of the past come in and go out."""

    def __init__(self, inner: nn.Module, layers: int) -> None:
        super().__init__()
        self.inner, self.layers = inner, layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> Any:
        cache = DynamicCache(config=self.inner.config)
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        kept = [(layer.keys, layer.values) for layer in found.past_key_values.layers]
        return (found.logits, *(tensor for pair in kept for tensor in pair))


def decoder(folder: Path, inner: nn.Module, heads: int, width: int, dynamo: bool) -> None:
    """A decoder of text with its cache; the lengths of input and past are open."""
    layers = inner.config.num_hidden_layers
    past, step = 16, 4
    feeds = {
        "input_ids": torch.randint(0, inner.config.vocab_size, (1, step)),
        "attention_mask": torch.ones(1, past + step).long(),
    }
    dynamic: dict[str, dict[int, str]] = {
        "input_ids": {1: "length"},
        "attention_mask": {1: "total_length"},
    }
    present = []
    for layer in range(layers):
        for kind in ("key", "value"):
            name = f"past_key_values.{layer}.{kind}"
            feeds[name] = torch.randn(1, heads, past, width)
            dynamic[name] = {2: "past_length"}
            present.append(f"present.{layer}.{kind}")
    module = Decoder(inner, layers)
    from_torch(folder, module, feeds, ["logits", *present], dynamic=dynamic, dynamo=dynamo)


def llama(folder: Path) -> None:
    """Llama's decoder, small, with its cache; grouped queries."""
    config = tr.LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        **EAGER,
    )
    decoder(folder, tr.LlamaForCausalLM(config), 4, 32, dynamo=True)


def qwen3(folder: Path) -> None:
    """Qwen 3's decoder, small, with its cache."""
    config = tr.Qwen3Config(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        **EAGER,
    )
    decoder(folder, tr.Qwen3ForCausalLM(config), 2, 32, dynamo=True)


def gpt2(folder: Path) -> None:
    """GPT-2's decoder, small, with its cache."""
    config = tr.GPT2Config(
        vocab_size=2000, n_positions=256, n_embd=192, n_layer=3, n_head=6, **EAGER
    )
    decoder(folder, tr.GPT2LMHeadModel(config), 6, 32, dynamo=True)


def whisper_config() -> Any:
    """Whisper-tiny's sizes with a small vocabulary and two layers less."""
    return tr.WhisperConfig(
        vocab_size=2000,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **EAGER,
    )


def whisper_encoder(folder: Path) -> None:
    """Whisper-tiny's encoder over 30 s of sound."""
    inner = tr.WhisperModel(whisper_config()).get_encoder()
    feeds = {"input_features": torch.randn(1, 80, 3000)}
    whole(folder, inner, feeds, ["last_hidden_state"])


class WhisperDecoder(nn.Module):
    """Whisper's decoder: the cache of its own text comes in and goes out."""

    def __init__(self, inner: nn.Module, layers: int) -> None:
        super().__init__()
        self.inner, self.layers = inner, layers

    def forward(self, input_ids: Tensor, heard: Tensor, *past: Tensor) -> Any:
        own = DynamicCache()
        for layer in range(self.layers):
            own.update(past[2 * layer], past[2 * layer + 1], layer)
        cache = EncoderDecoderCache(own, DynamicCache())
        found = self.inner(
            input_ids=input_ids,
            encoder_hidden_states=heard,
            past_key_values=cache,
            use_cache=True,
        )
        kept = [(layer.keys, layer.values) for layer in own.layers]
        return (found.last_hidden_state, *(tensor for pair in kept for tensor in pair))


def whisper_decoder(folder: Path) -> None:
    """Whisper-tiny's decoder, one step after a past of 12."""
    inner = tr.WhisperModel(whisper_config()).get_decoder()
    feeds = {"input_ids": torch.randint(0, 2000, (1, 1)), "heard": torch.randn(1, 1500, 384)}
    dynamic: dict[str, dict[int, str]] = {}
    present = []
    for layer in range(4):
        for kind in ("key", "value"):
            name = f"past.{layer}.{kind}"
            feeds[name] = torch.randn(1, 6, 12, 64)
            dynamic[name] = {2: "past_length"}
            present.append(f"present.{layer}.{kind}")
    module = WhisperDecoder(inner, 4)
    from_torch(folder, module, feeds, ["hidden", *present], dynamic=dynamic)


def clip(folder: Path) -> None:
    """CLIP: a picture against four texts."""
    config = tr.CLIPConfig(
        text_config={
            "vocab_size": 1000,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "eos_token_id": 999,
            **EAGER,
        },
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 32,
            **EAGER,
        },
        projection_dim=128,
        **EAGER,
    )
    ids = torch.randint(0, 998, (4, 16))
    ids[:, -1] = 999
    feeds = {
        "input_ids": ids,
        "pixel_values": torch.rand(1, 3, 224, 224),
        "attention_mask": torch.ones(4, 16).long(),
    }
    whole(folder, tr.CLIPModel(config), feeds, ["logits_per_image", "image_embeds"])


def detr(folder: Path) -> None:
    """RT-DETR v2: a transformer that detects, with deformable attention."""
    config = tr.RTDetrV2Config(num_queries=100, decoder_layers=3, **EAGER)
    feeds = {"pixel_values": torch.rand(1, 3, 320, 320)}
    inner = tr.RTDetrV2ForObjectDetection(config)
    whole(folder, inner, feeds, ["logits", "pred_boxes"], dynamo=False, opset=17)


def yolos(folder: Path) -> None:
    """YOLOS: a plain vision transformer that detects."""
    config = tr.YolosConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[224, 224],
        use_mid_position_embeddings=False,
        **EAGER,
    )
    feeds = {"pixel_values": torch.rand(1, 3, 224, 224)}
    whole(folder, tr.YolosForObjectDetection(config), feeds, ["logits", "pred_boxes"])


def segformer(folder: Path) -> None:
    """SegFormer-B0: scores of each pixel."""
    config = tr.SegformerConfig(num_labels=20, **EAGER)
    feeds = {"pixel_values": torch.rand(1, 3, 256, 256)}
    whole(folder, tr.SegformerForSemanticSegmentation(config), feeds, ["logits"], dynamo=False)


def t5_encoder(folder: Path) -> None:
    """T5's encoder, with relative positions; the length is open."""
    config = tr.T5Config(
        vocab_size=2000, d_model=256, d_kv=32, d_ff=1024, num_layers=4, num_heads=8
    )
    feeds = {"input_ids": torch.randint(0, 2000, (1, 48))}
    dynamic = {"input_ids": {1: "length"}}
    whole(folder, tr.T5EncoderModel(config), feeds, ["last_hidden_state"], dynamic=dynamic)


def wav2vec2(folder: Path) -> None:
    """wav2vec 2.0 over one second of sound."""
    config = tr.Wav2Vec2Config(
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=768,
        conv_dim=(128,) * 7,
        **EAGER,
    )
    feeds = {"input_values": torch.randn(1, 16000)}
    whole(folder, tr.Wav2Vec2Model(config), feeds, ["last_hidden_state"])


def dinov2(folder: Path) -> None:
    """DINOv2: a vision transformer."""
    config = tr.Dinov2Config(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, image_size=224, **EAGER
    )
    feeds = {"pixel_values": torch.rand(1, 3, 224, 224)}
    whole(folder, tr.Dinov2Model(config), feeds, ["last_hidden_state", "pooler_output"])


NETWORKS: dict[str, Callable[[Path], None]] = {
    "bert": bert,
    "bert-legacy": lambda folder: bert(folder, dynamo=False),
    "llama": llama,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "whisper-encoder": whisper_encoder,
    "whisper-decoder": whisper_decoder,
    "clip": clip,
    "rtdetr_v2-legacy": detr,
    "yolos": yolos,
    "segformer-legacy": segformer,
    "t5-encoder": t5_encoder,
    "wav2vec2": wav2vec2,
    "dinov2": dinov2,
}

torch.manual_seed(0)
main(NETWORKS)
