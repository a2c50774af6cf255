"""Seconds and bytes of everything that a choice of cut weighs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from offload.costs.encoding_table import EncodedSize, EncodingTable
from offload.costs.encodings import ENCODINGS, RAW, Encoding
from offload.costs.link import Link
from offload.costs.profile import Profile, Size
from offload.costs.quantization import Affine
from offload.graph.model import Graph, Tensor
from offload.planning.cut import Cut

# An encoding must save this part of a raw passage on an input that compresses badly, encoding
# and decoding at half the speed measured: else what varies could make it slower than raw.
WORTH = 0.02
SLOW = 2.0


@dataclass(frozen=True, slots=True)
class Crossing:
    """One way for one tensor.

    Attributes:
        encoding: how it is encoded.
        raw_bytes: bytes of the tensor itself.
        size_bytes: mean bytes on the wire.
        p95_bytes: 95 of 100 inputs take no more.
        encode_s: seconds of the side that sends.
        link_s: seconds of the link, for the mean.
        p95_link_s: 95 of 100 inputs take no longer.
        decode_s: seconds of the side that receives.
        affine: scale and zero point where the encoding needs them.
    """

    encoding: Encoding
    raw_bytes: int
    size_bytes: int
    p95_bytes: int
    encode_s: float
    link_s: float
    p95_link_s: float
    decode_s: float
    affine: Affine | None = None

    @property
    def total_s(self) -> float:
        """Seconds when nothing overlaps."""
        return self.encode_s + self.link_s + self.decode_s


def crossings(
    sizes: Mapping[str, int],
    catalogue: EncodingTable,
    sender: Profile,
    receiver: Profile,
    passing_s: Callable[[float], float],
) -> dict[str, tuple[Crossing, ...]]:
    """By tensor: raw, and what pays against it even when little goes well (`WORTH`).

    Args:
        sizes: bytes of each tensor that may cross.
        catalogue: what it takes encoded, with seconds of the machine that measured.
        sender: whose seconds encoding takes.
        receiver: whose seconds decoding takes. Either may know sizes that depend on data.
        passing_s: the link's seconds for so many bytes.
    """
    slower, slow = _factor(sender, catalogue), _factor(receiver, catalogue)
    found = {}
    for name, size_bytes in sizes.items():
        measured = sender.sizes.get(name) or receiver.sizes.get(name)
        raw = _raw(size_bytes, measured, passing_s)
        limit_s = raw.total_s * (1 - WORTH)
        ways = [
            _crossing(entry, size_bytes, slower, slow, passing_s) for entry in catalogue.of(name)
        ]
        found[name] = (raw, *(way for way in ways if _worst_s(way) < limit_s))
    return found


def _raw(size_bytes: int, measured: Size | None, passing_s: Callable[[float], float]) -> Crossing:
    p95_bytes = size_bytes if measured is None else max(size_bytes, measured.p95_bytes)
    seconds = (0.0, passing_s(size_bytes), passing_s(p95_bytes), 0.0)
    return Crossing(RAW, size_bytes, size_bytes, p95_bytes, *seconds)


def _crossing(
    entry: EncodedSize,
    raw_bytes: int,
    encode: float,
    decode: float,
    passing_s: Callable[[float], float],
) -> Crossing:
    return Crossing(
        entry.encoding,
        raw_bytes,
        entry.mean_bytes,
        entry.p95_bytes,
        entry.encode_s * encode,
        passing_s(entry.mean_bytes),
        passing_s(entry.p95_bytes),
        entry.decode_s * decode,
        entry.affine,
    )


def _worst_s(way: Crossing) -> float:
    return SLOW * (way.encode_s + way.decode_s) + way.p95_link_s


def _factor(profile: Profile, catalogue: EncodingTable) -> float:
    """How many times slower a machine is than the one that measured the catalogue."""
    if profile.codec_s and catalogue.codec_s:
        return profile.codec_s / catalogue.codec_s
    return profile.whole_s / catalogue.whole_s if catalogue.whole_s else 1.0


_WORD_BYTES = 32  # assumed of each text of an input
_STRUCTURE_BYTES = 4096  # assumed of an input that is a sequence or a map


@dataclass(frozen=True)
class Costs:
    """What the layers and tensors of one graph cost on one device, link and server.

    Attributes:
        device_s: seconds per layer on the device, in the graph's order.
        server_s: seconds per layer on the server.
        upload_s: seconds to send a tensor up, by name; its start-up only where unsized.
        download_s: seconds to send a graph output down, by name, encoding and decoding included.
        size_bytes: bytes of a tensor on the wire, by name, where known.
        unsized: tensors whose size depends on data; no search cuts there.
        encode_s: seconds of the device to encode a tensor for its way up; 0 where absent.
        decode_s: seconds of the server to decode it; 0 where absent.
        ways: the ways a tensor may cross, the one chosen first; absent: raw only.
        answers: the ways a graph output may come back, likewise.
        device_segment_s: seconds of the device for a segment besides its layers, unless it is the
            whole model.
        server_segment_s: the same of the server.
        made: tensors that layers make: on the device a segment ends where one is sent.
    """

    device_s: tuple[float, ...]
    server_s: tuple[float, ...]
    upload_s: Mapping[str, float]
    download_s: Mapping[str, float]
    size_bytes: Mapping[str, int]
    unsized: frozenset[str] = frozenset()
    encode_s: Mapping[str, float] = field(default_factory=dict)
    decode_s: Mapping[str, float] = field(default_factory=dict)
    ways: Mapping[str, tuple[Crossing, ...]] = field(default_factory=dict)
    answers: Mapping[str, tuple[Crossing, ...]] = field(default_factory=dict)
    device_segment_s: float = 0.0
    server_segment_s: float = 0.0
    made: frozenset[str] = frozenset()

    def leave_s(self, tensor: str) -> float:
        """Seconds of the device that sending a tensor adds: ending a segment, and encoding."""
        ending_s = self.device_segment_s if tensor in self.made else 0.0
        return ending_s + self.encode_s.get(tensor, 0.0)

    def compute_s(self, cut: Cut) -> float:
        """Device seconds of a cut, encoding included."""
        leaving_s = sum(map(self.leave_s, cut.uploads))
        return sum(self.device_s[layer] for layer in cut.device) + leaving_s

    def rest_s(self, cut: Cut) -> float:
        """Server seconds of a cut: its layers, decoding, and what a segment costs besides."""
        parted = 0 < len(cut.device) < len(self.server_s)
        return self.work_s(cut) + (self.server_segment_s if parted else 0.0)

    def work_s(self, cut: Cut) -> float:
        """Server seconds of a cut: its layers and decoding."""
        decoding_s = sum(self.decode_s.get(name, 0.0) for name in cut.uploads)
        layers_s = sum(s for layer, s in enumerate(self.server_s) if layer not in cut.device)
        return layers_s + decoding_s

    def sending_s(self, cut: Cut) -> float:
        """Seconds of all uploads of a cut, one after the other."""
        return sum(self.upload_s[name] for name in cut.uploads)

    def result_s(self, cut: Cut) -> float:
        """Seconds of all downloads of a cut, one after the other."""
        return sum(self.download_s[name] for name in cut.downloads)

    def serial_s(self, cut: Cut) -> float:
        """Latency of a cut when nothing overlaps: what a partition-only scheme gets."""
        return self.compute_s(cut) + self.sending_s(cut) + self.rest_s(cut) + self.result_s(cut)

    def upload_bytes(self, cut: Cut) -> int:
        """Payload bytes a cut sends up, tensors of unknown size left out."""
        return sum(self.size_bytes.get(name, 0) for name in cut.uploads)

    def crossing(self, tensor: str) -> Crossing | None:
        """The way chosen for a tensor; None where raw is the only one."""
        ways = self.ways.get(tensor)
        return ways[0] if ways else None

    def answer(self, tensor: str) -> Crossing | None:
        """The way a graph output comes back; None where raw is the only one."""
        ways = self.answers.get(tensor)
        return ways[0] if ways else None

    def taken(self, cut: Cut) -> tuple[Crossing, ...]:
        """The ways that a cut's tensors take, up and down, where there is a choice."""
        up, down = map(self.crossing, cut.uploads), map(self.answer, cut.downloads)
        return tuple(way for way in (*up, *down) if way is not None)

    def only(self, suits: Callable[[Encoding], bool]) -> "Costs":
        """The same with the encodings that suit, and raw."""

        def left(ways: Mapping[str, tuple[Crossing, ...]]) -> dict[str, tuple[Crossing, ...]]:
            return {
                name: tuple(w for w in each if w.encoding is RAW or suits(w.encoding))
                for name, each in ways.items()
            }

        return self.encoded(left(self.ways)).answering(left(self.answers))

    def answering(self, ways: Mapping[str, tuple[Crossing, ...]]) -> "Costs":
        """The same, graph outputs coming back the quickest of their ways."""
        ranked = {name: tuple(sorted(each, key=_total_s)) for name, each in ways.items()}
        first = {name: each[0].total_s for name, each in ranked.items()}
        return replace(self, download_s={**self.download_s, **first}, answers=ranked)

    def choosing(self, tensor: str, way: Crossing) -> "Costs":
        """The same, a tensor crossing another of its ways."""
        others = (other for other in self.ways[tensor] if other != way)
        return self._crossing({**self.ways, tensor: (way, *others)})

    def encoded(self, ways: Mapping[str, tuple[Crossing, ...]]) -> "Costs":
        """The same, tensors crossing the quickest of their ways (encode, send, decode)."""
        ranked = {name: tuple(sorted(each, key=_total_s)) for name, each in ways.items()}
        return self._crossing(ranked)

    def _crossing(self, ways: Mapping[str, tuple[Crossing, ...]]) -> "Costs":
        first = {name: each[0] for name, each in ways.items()}
        return replace(
            self,
            upload_s={**self.upload_s, **{name: way.link_s for name, way in first.items()}},
            size_bytes={**self.size_bytes, **{name: way.size_bytes for name, way in first.items()}},
            encode_s={name: way.encode_s for name, way in first.items()},
            decode_s={name: way.decode_s for name, way in first.items()},
            ways=ways,
        )


def _total_s(way: Crossing) -> float:
    return way.total_s


def costs_of(
    graph: Graph,
    device: Profile,
    server: Profile,
    link: Link,
    catalogue: EncodingTable | None = None,
) -> Costs:
    """Gather the costs of a graph.

    Args:
        graph: the layers.
        device: their seconds on the device.
        server: their seconds on the server.
        link: what a byte costs.
        catalogue: encodings that tensors may have on their way, down only what is lossless; None:
            all cross raw (a tensor whose size was measured may still vary).

    Raises:
        InputError: a profile is not of this graph.
    """
    sizes = {name: t.size_bytes for name, t in graph.tensors.items() if t.size_bytes is not None}
    for name in graph.inputs:
        if name not in sizes and (assumed := _assumed_bytes(graph.tensors[name])) is not None:
            sizes[name] = assumed
    movable = (*graph.inputs, *graph.producer)
    plain = Costs(
        device.costs_of(graph),
        server.costs_of(graph),
        {name: link.upload_s(sizes.get(name, 0)) for name in movable},
        {name: link.download_s(sizes.get(name, 0)) for name in graph.outputs},
        sizes,
        frozenset(movable) - sizes.keys(),
        device_segment_s=device.segment_s,
        server_segment_s=server.segment_s,
        made=frozenset(graph.producer),
    )
    known = catalogue or EncodingTable()
    varying = {*device.sizes, *server.sizes} & sizes.keys()
    open_sizes = {name: sizes[name] for name in (varying if catalogue is None else sizes)}
    tensors = {name: open_sizes[name] for name in movable if name in open_sizes}
    answers = {name: open_sizes[name] for name in graph.outputs if name in open_sizes}
    plainly = known.allowing([each for each in ENCODINGS.values() if each.is_lossless])
    ways = crossings(tensors, known, device, server, link.upload_s)
    back = crossings(answers, plainly, server, device, link.download_s)
    return plain.encoded(ways).answering(back)


def _assumed_bytes(tensor: Tensor) -> int | None:
    """Bytes assumed of an input of the model that is not an array of numbers."""
    if tensor.dtype is None:
        return _STRUCTURE_BYTES
    if tensor.dtype != "string" or tensor.shape is None or None in tensor.shape:
        return None
    return _WORD_BYTES * math.prod(size or 0 for size in tensor.shape)


# A client's process that has loaded next to nothing, where nobody measured it: 79 to 96 MB were
# seen on x86-64.
CLIENT_BYTES = 100_000_000
# What a client's process takes beyond that for each byte it holds, measured with onnxruntime 1.2x
# on 46 cuts of zoo models. The limit must hold, so these are on the safe side. A file of weights is
# read, unpacked and packed anew for the kernels: 1.2 to 3.2. Tensors live in arenas that grow in
# leaps: up to 2.9. What is sent is copied on its way out by packing, by the message and by gRPC, on
# threads whose heaps keep what they had: up to 11.
WEIGHT_COPIES = 3.3
TENSOR_COPIES = 3.0
UPLOAD_COPIES = 12.0
SPARE_BYTES = 6_000_000  # more segments, other threads


def process_bytes(
    graph: Graph, cut: Cut, order: Sequence[int], client_bytes: int = CLIENT_BYTES
) -> int:
    """Memory of the device's process that runs a cut in this order, on the safe side.

    Args:
        graph: the layers.
        cut: what the device computes and what crosses.
        order: the device's layers, in order.
        client_bytes: what the process takes before it has loaded anything.
    """
    weights = sum(graph.layers[layer].weight_bytes for layer in cut.device)
    uploads = sum(_size(graph, name) for name in cut.uploads)
    copied = WEIGHT_COPIES * weights + TENSOR_COPIES * peak_bytes(graph, cut, order)
    return client_bytes + SPARE_BYTES + round(copied + UPLOAD_COPIES * uploads)


def peak_bytes(graph: Graph, cut: Cut, order: Sequence[int]) -> int:
    """The most bytes of tensors alive at once on the device in this order.

    A tensor lives until its last reader on the device has run; inputs, uploads and graph outputs
    live to the end, so that the device could finish alone. Tensors of unknown size count
    nothing. O(layers + edges).
    """
    kept = {*cut.uploads, *graph.outputs}
    readers = {
        name: sum(user in cut.device for user in users) for name, users in graph.consumers.items()
    }
    alive = peak = sum(_size(graph, name) for name in graph.inputs)
    for index in order:
        layer = graph.layers[index]
        alive += sum(_size(graph, name) for name in layer.outputs)
        peak = max(peak, alive)
        for name in layer.inputs:
            readers[name] -= 1
            if not readers[name] and name not in kept and name in graph.producer:
                alive -= _size(graph, name)
    return peak


def _size(graph: Graph, name: str) -> int:
    return graph.tensors[name].size_bytes or 0
