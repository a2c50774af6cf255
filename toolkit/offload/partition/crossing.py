"""The ways a tensor may cross the link, in seconds of one device, link and server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from offload.cost.profile import Profile, Size
from offload.encoding.affine import Affine
from offload.encoding.catalogue import Catalogue, Encoded
from offload.encoding.encoding import RAW, Encoding

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
    catalogue: Catalogue,
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
    entry: Encoded,
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


def _factor(profile: Profile, catalogue: Catalogue) -> float:
    """How many times slower a machine is than the one that measured the catalogue."""
    if profile.codec_s and catalogue.codec_s:
        return profile.codec_s / catalogue.codec_s
    return profile.whole_s / catalogue.whole_s if catalogue.whole_s else 1.0
