"""The least that a KServe server of grpcio does: parse a request, run onnxruntime, answer.

`python -m tests.benchmarks.bare_server MODEL.onnx NAME OTHER` serves one model with one input and
one output, and checks nothing. It passes calls about the model on to the server at the address
OTHER. It prints its own address.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import grpc
import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.transport import KSERVE

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def main(model: str, name: str, other: str) -> None:
    engine = load(model, EngineOptions(threads=1))
    (h,), (y,) = engine.inputs, engine.outputs
    count = 0

    def answer(request: kserve.ModelInferRequest) -> kserve.ModelInferResponse:
        nonlocal count
        count += 1
        shape = tuple(request.inputs[0].shape)
        array = np.ndarray(shape, np.float32, request.raw_input_contents[0])
        (output,) = engine.run([y.name], {h.name: array})
        response = kserve.ModelInferResponse(model_name=name, model_version="1", id=request.id)
        response.outputs.add(name=y.name, datatype="FP32", shape=output.shape)
        response.raw_output_contents.append(output.tobytes())
        return response

    def infer(request: kserve.ModelInferRequest, _: grpc.ServicerContext) -> bytes:
        return answer(request).SerializeToString()

    def stream(
        requests: Iterator[kserve.ModelInferRequest], _: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for request in requests:
            response = kserve.ModelStreamInferResponse(infer_response=answer(request))
            yield response.SerializeToString()

    def statistics(data: bytes, _: grpc.ServicerContext) -> bytes:
        # perf_analyzer reports an error if these counts do not grow.
        response = kserve.ModelStatisticsResponse.FromString(channel_call("ModelStatistics")(data))
        each = kserve.StatisticDuration(count=count, ns=1000 * count)
        for model in response.model_stats:
            model.inference_count = model.execution_count = count
            model.inference_stats.CopyFrom(
                kserve.InferStatistics(
                    success=each,
                    queue=each,
                    compute_input=each,
                    compute_infer=each,
                    compute_output=each,
                )
            )
        return response.SerializeToString()

    def channel_call(method: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        return channel.unary_unary(f"/{KSERVE}/{method}")

    def passed_on(method: str) -> Handler:
        call = channel_call(method)
        return grpc.unary_unary_rpc_method_handler(lambda data, _: call(data))

    parse = kserve.ModelInferRequest.FromString
    with grpc.insecure_channel(other) as channel:
        handlers: dict[str, Handler] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(infer, parse),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream, parse),
            "ModelStatistics": grpc.unary_unary_rpc_method_handler(statistics),
            **{
                method: passed_on(method)
                for method in (
                    "ServerLive",
                    "ServerReady",
                    "ServerMetadata",
                    "ModelReady",
                    "ModelMetadata",
                    "ModelConfig",
                )
            },
        }
        server = grpc.server(ThreadPoolExecutor(32))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(KSERVE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(f"127.0.0.1:{port}", flush=True)
        sys.stdin.read()
        server.stop(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
