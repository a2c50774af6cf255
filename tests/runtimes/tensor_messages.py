"""Messages with a tensor, for tests that play one end of a session."""

from collections.abc import Iterable
from typing import Any

from offload_runtimes.protocol.messages import SpanRecord, pack, tensor_message


def encode_tensor(
    frame: int,
    name: str,
    value: Any,
    codec_name: str,
    sent_s: float = 0.0,
    spans: Iterable[SpanRecord] = (),
    plan: int = 0,
) -> bytes:
    return tensor_message(frame, name, pack(value, codec_name), sent_s, spans, plan)
