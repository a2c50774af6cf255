"""Messages with a tensor, for tests that play one end of a session."""

from collections.abc import Iterable
from typing import Any

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.protocol.messages import pack, tensor_message


def encode_tensor(
    frame: int,
    name: str,
    value: Any,
    codec_name: str,
    sent_s: float = 0.0,
    spans: Iterable[pb.Span] = (),
    plan: int = 0,
) -> bytes:
    return tensor_message(frame, name, pack(value, codec_name), sent_s, spans, plan)
