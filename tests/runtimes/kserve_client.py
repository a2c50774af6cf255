"""A small client of KServe v2, for tests: raw contents, one channel."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import grpc
import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve

DATATYPES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "int64": "INT64", "int32": "INT32",
    "int16": "INT16", "int8": "INT8", "uint64": "UINT64", "uint32": "UINT32", "uint16": "UINT16",
    "uint8": "UINT8", "bool": "BOOL",
}  # fmt: skip


def infer_request(
    model: str, feeds: Mapping[str, np.ndarray], version: str = "", request_id: str = ""
) -> kserve.ModelInferRequest:
    """A request with raw contents."""
    request = kserve.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in feeds.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def arrays(response: kserve.ModelInferResponse) -> dict[str, np.ndarray]:
    """The outputs of an answer."""
    dtypes = {datatype: name for name, datatype in DATATYPES.items()}
    return {
        output.name: np.frombuffer(raw, dtypes[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


class KServeClient:
    """Calls a server by the names of the protocol's methods."""

    def __init__(self, address: str, token: str | None = None) -> None:
        # A connection of its own: gRPC would share one among the channels of a process.
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, method: str, request: Any = None) -> Any:
        """Any call that answers one message with one message."""
        request = getattr(kserve, f"{method}Request")() if request is None else request
        call: grpc.UnaryUnaryMultiCallable[Any, Any] = self.channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(kserve, f"{method}Response").FromString,
        )
        return call(request, timeout=30, metadata=self._metadata)

    def infer(self, model: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; the outputs by name."""
        return arrays(self.call("ModelInfer", infer_request(model, feeds)))

    def stream(
        self, requests: Iterable[kserve.ModelInferRequest]
    ) -> Iterator[kserve.ModelStreamInferResponse]:
        """One ModelStreamInfer; iterating gives the answers, `cancel` breaks it off."""
        call: grpc.StreamStreamMultiCallable[Any, Any] = self.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kserve.ModelStreamInferResponse.FromString,
        )
        return call(iter(requests), metadata=self._metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
