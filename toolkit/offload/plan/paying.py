"""Whether a more complex plan is worth it: it must gain more than predictions are off by.

The one rule for everything that makes a plan more complex: encodings, and a cut and an order
beyond the best of staying on the device, sending everything and a split without overlap.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from offload.encoding.encoding import RAW, Encoding
from offload.partition.crossing import SLOW
from offload.plan.candidate import Candidate, Scheme, Situation
from offload.plan.plan import Side

# By so much of the seconds in which two plans differ, their difference may be off: profiles and
# links are a few percent wrong (docs/planning.md).
DOUBT = 0.05
# A plan that asks the server takes so much longer than predicted: threads, messages, wake-ups.
ASKING_S = 0.002
# Each further segment may cost its side this share of its seconds more than predicted.
SEGMENT_DOUBT = 0.01
# Schemes that stand unless another gains more than predictions are off by: everything on one
# side, and a split with nothing overlapped.
SIMPLE = (Scheme.LOCAL, Scheme.CLOUD, Scheme.NEUROSURGEON, Scheme.PARTITION)


def doubt_s(one: Candidate, other: Candidate) -> float:
    """By how much the difference between two plans' latencies may be wrong.

    What both do alike is wrong alike. The seconds in which they differ, of the device, the link
    and the server, are each `DOUBT` off; encoding and decoding may be half as fast as measured,
    and sizes such as 95 of 100 inputs keep to. Where only one of them asks the server, it may take
    `ASKING_S` more; each segment that one has more than the other adds `SEGMENT_DOUBT` of what
    its side computes.
    """
    a, b = one.costs, other.costs
    layers_s = sum(a.device_s[layer] for layer in one.cut.device ^ other.cut.device)
    server_s = sum(a.server_s[layer] for layer in one.cut.device ^ other.cut.device)
    up_s = abs(a.sending_s(one.cut) - b.sending_s(other.cut))
    down_s = abs(a.result_s(one.cut) - b.result_s(other.cut))
    asking_s = ASKING_S if bool(one.cut.downloads) != bool(other.cut.downloads) else 0.0
    return (
        DOUBT * (layers_s + server_s + up_s + down_s)
        + asking_s
        + _further_segments_s(one, other)
        + abs(_varying_s(one) - _varying_s(other))
    )


def _further_segments_s(one: Candidate, other: Candidate) -> float:
    total_s = 0.0
    for side in Side:
        counts = [sum(s.side is side for s in each.program.segments) for each in (one, other)]
        more = one if counts[0] > counts[1] else other
        cut, costs = more.cut, more.costs
        side_s = costs.compute_s(cut) if side is Side.DEVICE else costs.rest_s(cut)
        further = max(counts) - max(min(counts), 1)  # the first is no further one
        total_s += SEGMENT_DOUBT * side_s * max(further, 0)
    return total_s


def _varying_s(found: Candidate) -> float:
    return sum(
        (SLOW - 1) * (way.encode_s + way.decode_s) + way.p95_link_s - way.link_s
        for way in found.costs.taken(found.cut)
    )


def pays(one: Candidate, other: Candidate) -> bool:
    """Whether a plan is better than another by more than the doubt, in what is asked for."""
    if other.value == float("inf"):
        return True
    gain = other.value - one.value
    return gain * other.latency_s > doubt_s(one, other) * other.value


def simplest_standing(candidates: Sequence[Candidate], best: Candidate) -> Candidate:
    """The plan to choose: the best simple one, unless the best of all pays against it.

    Args:
        candidates: what was compared.
        best: the one of the smallest value.
    """
    able = [c for c in candidates if c.scheme in SIMPLE and c.value < float("inf")]
    simple = min(able, key=lambda c: c.value, default=None)
    if simple is None or best.scheme in SIMPLE or pays(best, simple):
        return best
    return simple


def keeps_to(found: Candidate, suits: Callable[[Encoding], bool]) -> bool:
    """Whether a plan uses only encodings that suit."""
    return all(suits(way.encoding) for way in found.costs.taken(found.cut))


def only(situation: Situation, suits: Callable[[Encoding], bool]) -> Situation:
    """The situation with the encodings that suit, and raw."""
    return replace(situation, costs=situation.costs.only(suits))


def is_raw(encoding: Encoding) -> bool:
    """For `keeps_to` and `only`: nothing is encoded."""
    return encoding is RAW


def is_lossless(encoding: Encoding) -> bool:
    """For `keeps_to` and `only`: nothing is lost."""
    return encoding.is_lossless


def less_said(one: Candidate, other: Candidate, words: str) -> str:
    """One sentence for a plan's reason: why it goes without; empty where nothing is lost by it."""
    gain = 1 - one.value / other.value if other.value else 0.0
    if gain <= 0:
        return ""
    return (
        f"More would be gained by encodings ({gain:.1%}), but less than predictions may be off by:"
        f" all crosses {words}."
    )
