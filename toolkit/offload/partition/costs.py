"""Seconds of everything a partition weighs, in one value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from offload.cost.link import Link
from offload.cost.profile import Profile
from offload.encoding.catalogue import Catalogue
from offload.encoding.encoding import ENCODINGS, RAW, Encoding
from offload.graph.model import Graph, Tensor
from offload.partition.crossing import Crossing, crossings
from offload.partition.cut import Cut

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
    catalogue: Catalogue | None = None,
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
    known = catalogue or Catalogue()
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
