"""What a cut costs: seconds of each resource, bytes sent, memory of the device's process."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from offload.costs.encoding_table import (
    EncodingTable,
    TransferOption,
    TransferOptions,
    transfer_options,
)
from offload.costs.encodings import ENCODINGS, RAW, Encoding
from offload.costs.link import Link
from offload.costs.profile import Profile
from offload.graph.model import Graph, Tensor
from offload.planning.cut import Cut

_WORD_BYTES = 32  # assumed for each text of an input
_STRUCTURE_BYTES = 4096  # assumed for an input that is a sequence or a map
# A client process before it has loaded a model, where it was not measured: 79 to 96 MB were seen
# on x86-64.
CLIENT_BYTES = 100_000_000
# What the process takes in addition for each byte of a model, measured with onnxruntime 1.2x on
# 46 cuts of zoo models and rounded up, because the limit must hold. A file of weights is read,
# unpacked and packed anew for the kernels: 1.2 to 3.2. Tensors live in arenas that grow in leaps:
# up to 2.9. A tensor that is sent is copied by packing, by the message and by gRPC, on threads
# whose heaps keep what they had: up to 11.
WEIGHT_COPIES = 3.3
TENSOR_COPIES = 3.0
UPLOAD_COPIES = 12.0
SPARE_BYTES = 6_000_000  # more segments, other threads


@dataclass(frozen=True)
class Costs:
    """What the layers and tensors of one graph cost on one device, link and server.

    Attributes:
        device_s: seconds per layer on the device, in the graph's order.
        server_s: seconds per layer on the server.
        upload_s: seconds to upload a tensor, by name; only the link's start-up where unsized.
        download_s: seconds to download a graph output, by name, with encoding and decoding.
        size_bytes: bytes of a tensor on the wire, by name, where known.
        unsized: tensors whose size depends on data; no search cuts there.
        upload_options: the encodings a tensor may be uploaded with; absent: raw only.
        download_options: the encodings a graph output may be downloaded with; absent: raw only.
        device_segment_s: seconds of the device for each segment in addition to its layers,
            unless the segment is the whole model.
        server_segment_s: the same for the server.
        produced: tensors that layers compute: sending one ends a segment on the device.
    """

    device_s: tuple[float, ...]
    server_s: tuple[float, ...]
    upload_s: Mapping[str, float]
    download_s: Mapping[str, float]
    size_bytes: Mapping[str, int]
    unsized: frozenset[str] = frozenset()
    upload_options: TransferOptions = field(default_factory=dict)
    download_options: TransferOptions = field(default_factory=dict)
    device_segment_s: float = 0.0
    server_segment_s: float = 0.0
    produced: frozenset[str] = frozenset()

    @cached_property
    def encode_s(self) -> Mapping[str, float]:
        """Seconds of the device to encode a tensor; 0 where absent."""
        return {name: choices[0].encode_s for name, choices in self.upload_options.items()}

    @cached_property
    def decode_s(self) -> Mapping[str, float]:
        """Seconds of the server to decode a tensor; 0 where absent."""
        return {name: choices[0].decode_s for name, choices in self.upload_options.items()}

    def leave_s(self, tensor: str) -> float:
        """Seconds that sending a tensor costs the device: ending a segment, and encoding."""
        segment_s = self.device_segment_s if tensor in self.produced else 0.0
        return segment_s + self.encode_s.get(tensor, 0.0)

    def device_time_s(self, cut: Cut) -> float:
        """Device seconds of a cut, with encoding."""
        leave_s = sum(map(self.leave_s, cut.uploads))
        return sum(self.device_s[layer] for layer in cut.device) + leave_s

    def upload_time_s(self, cut: Cut) -> float:
        """Seconds of all uploads of a cut, one after the other."""
        return sum(self.upload_s[name] for name in cut.uploads)

    def server_work_s(self, cut: Cut) -> float:
        """Server seconds of a cut for its layers and decoding."""
        decoding_s = sum(self.decode_s.get(name, 0.0) for name in cut.uploads)
        layers_s = sum(s for layer, s in enumerate(self.server_s) if layer not in cut.device)
        return layers_s + decoding_s

    def server_time_s(self, cut: Cut) -> float:
        """Server seconds of a cut: layers, decoding, and the cost of a segment."""
        is_split = 0 < len(cut.device) < len(self.server_s)
        return self.server_work_s(cut) + (self.server_segment_s if is_split else 0.0)

    def download_time_s(self, cut: Cut) -> float:
        """Seconds of all downloads of a cut, one after the other."""
        return sum(self.download_s[name] for name in cut.downloads)

    def stages_s(self, cut: Cut) -> tuple[float, float, float, float]:
        """Seconds of device, uplink, server and downlink; their sum is the serial latency."""
        return (
            self.device_time_s(cut),
            self.upload_time_s(cut),
            self.server_time_s(cut),
            self.download_time_s(cut),
        )

    def upload_bytes(self, cut: Cut) -> int:
        """Payload bytes that a cut uploads, without tensors of unknown size."""
        return sum(self.size_bytes.get(name, 0) for name in cut.uploads)

    def upload_option(self, tensor: str) -> TransferOption | None:
        """The encoding chosen for an upload; None where raw is the only one."""
        return next(iter(self.upload_options.get(tensor, ())), None)

    def download_option(self, tensor: str) -> TransferOption | None:
        """The encoding chosen for a download; None where raw is the only one."""
        return next(iter(self.download_options.get(tensor, ())), None)

    def options_of(self, cut: Cut) -> list[TransferOption]:
        """The options chosen for a cut's tensors, up and down, where there is a choice."""
        uploads = [self.upload_option(name) for name in cut.uploads]
        downloads = [self.download_option(name) for name in cut.downloads]
        return [option for option in (*uploads, *downloads) if option is not None]

    def allowing(self, is_allowed: Callable[[Encoding], bool]) -> "Costs":
        """The costs with raw and the allowed encodings only."""

        def allowed(options: TransferOptions) -> TransferOptions:
            return {
                name: tuple(o for o in choices if o.encoding is RAW or is_allowed(o.encoding))
                for name, choices in options.items()
            }

        uploads, downloads = allowed(self.upload_options), allowed(self.download_options)
        return self.with_uploads(uploads).with_downloads(downloads)

    def with_downloads(self, options: TransferOptions) -> "Costs":
        """The costs when each graph output is downloaded with the quickest of its options."""
        ranked = _quickest_first(options)
        quickest_s = {name: choices[0].total_s for name, choices in ranked.items()}
        return replace(self, download_s={**self.download_s, **quickest_s}, download_options=ranked)

    def with_uploads(self, options: TransferOptions) -> "Costs":
        """The costs when each tensor is uploaded with the quickest of its options."""
        return self._uploading(_quickest_first(options))

    def with_cheapest_uploads(self, price: Callable[[TransferOption], float]) -> "Costs":
        """The costs when each tensor is uploaded with the option of the lowest price."""
        ranked = {name: tuple(sorted(o, key=price)) for name, o in self.upload_options.items()}
        return self._uploading(ranked)

    def with_upload(self, tensor: str, option: TransferOption) -> "Costs":
        """The costs when one tensor is uploaded with another of its options."""
        others = (other for other in self.upload_options[tensor] if other != option)
        return self._uploading({**self.upload_options, tensor: (option, *others)})

    def _uploading(self, options: TransferOptions) -> "Costs":
        first = {name: choices[0] for name, choices in options.items()}
        return replace(
            self,
            upload_s={**self.upload_s, **{name: o.link_s for name, o in first.items()}},
            size_bytes={**self.size_bytes, **{name: o.size_bytes for name, o in first.items()}},
            upload_options=options,
        )


def _quickest_first(options: TransferOptions) -> TransferOptions:
    return {
        name: tuple(sorted(choices, key=lambda option: option.total_s))
        for name, choices in options.items()
    }


def costs_of(
    graph: Graph,
    device: Profile,
    server: Profile,
    link: Link,
    table: EncodingTable | None = None,
) -> Costs:
    """The costs of a graph from two profiles and a link.

    Args:
        graph: the layers.
        device: their seconds on the device.
        server: their seconds on the server.
        link: seconds per byte.
        table: encodings that tensors may be sent with; downloads use the lossless ones. None: all
            are sent raw (a tensor whose size was measured may still vary).

    Raises:
        InputError: a profile belongs to another graph.
    """
    sizes = {name: t.size_bytes for name, t in graph.tensors.items() if t.size_bytes is not None}
    for name in graph.inputs:
        if name not in sizes and (assumed := _assumed_bytes(graph.tensors[name])) is not None:
            sizes[name] = assumed
    movable = (*graph.inputs, *graph.producer)
    raw = Costs(
        device.costs_of(graph),
        server.costs_of(graph),
        {name: link.upload_s(sizes.get(name, 0)) for name in movable},
        {name: link.download_s(sizes.get(name, 0)) for name in graph.outputs},
        sizes,
        frozenset(movable) - sizes.keys(),
        device_segment_s=device.segment_s,
        server_segment_s=server.segment_s,
        produced=frozenset(graph.producer),
    )
    measured = table or EncodingTable()
    lossless = measured.allowing(
        [encoding for encoding in ENCODINGS.values() if encoding.is_lossless]
    )
    varying = {*device.sizes, *server.sizes}
    optional = {name: sizes[name] for name in sizes if table is not None or name in varying}
    uploads = {name: optional[name] for name in movable if name in optional}
    downloads = {name: optional[name] for name in graph.outputs if name in optional}
    return raw.with_uploads(
        transfer_options(uploads, measured, device, server, link.upload_s)
    ).with_downloads(transfer_options(downloads, lossless, server, device, link.download_s))


def _assumed_bytes(tensor: Tensor) -> int | None:
    """Bytes assumed for a model input that is not an array of numbers; None: not known."""
    if tensor.dtype is None:
        return _STRUCTURE_BYTES
    if tensor.dtype != "string" or tensor.shape is None or None in tensor.shape:
        return None
    return _WORD_BYTES * math.prod(size or 0 for size in tensor.shape)


def process_bytes(
    graph: Graph, cut: Cut, order: Sequence[int], client_bytes: int = CLIENT_BYTES
) -> int:
    """Memory of the device's process that runs a cut in this order, rounded up.

    Args:
        graph: the layers.
        cut: the device's layers and the tensors to send.
        order: the device's layers, in order.
        client_bytes: memory of the process before it has loaded a model.
    """
    weights = sum(graph.layers[layer].weight_bytes for layer in cut.device)
    uploads = sum(_tensor_bytes(graph, name) for name in cut.uploads)
    copied = WEIGHT_COPIES * weights + TENSOR_COPIES * peak_bytes(graph, cut, order)
    return client_bytes + SPARE_BYTES + round(copied + UPLOAD_COPIES * uploads)


def peak_bytes(graph: Graph, cut: Cut, order: Sequence[int]) -> int:
    """The most bytes of tensors alive at once on the device in this order.

    A tensor lives until its last reader on the device has run; inputs, uploads and graph outputs
    live to the end, so that the device can finish alone. Tensors of unknown size count 0.
    O(layers + edges).
    """
    lasting = {*cut.uploads, *graph.outputs}
    readers = {
        name: sum(user in cut.device for user in users) for name, users in graph.consumers.items()
    }
    alive = peak = sum(_tensor_bytes(graph, name) for name in graph.inputs)
    for index in order:
        layer = graph.layers[index]
        alive += sum(_tensor_bytes(graph, name) for name in layer.outputs)
        peak = max(peak, alive)
        for name in layer.inputs:
            readers[name] -= 1
            if not readers[name] and name not in lasting and name in graph.producer:
                alive -= _tensor_bytes(graph, name)
    return peak


def _tensor_bytes(graph: Graph, name: str) -> int:
    return graph.tensors[name].size_bytes or 0
