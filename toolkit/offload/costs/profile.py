"""The profile noun: what each layer of one model costs on one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offload.errors import InputError
from offload.graph.flops import shares_by_work
from offload.graph.model import Graph
from offload.records import read_object

PROFILE_FORMAT = 1
RANDOM_SIZES = (
    "the size of some tensors depends on data and was measured on a random input: give real ones"
    " with --calibration"
)
_SHOWN_OPERATORS = 4


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Seconds of one layer: the median, and the middle half of the repeats as a band."""

    name: str
    seconds_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a tensor whose size depends on data: on average, and what 95 of 100 inputs keep."""

    mean_bytes: int
    p95_bytes: int


def slowed(machine: str, factor: float) -> str:
    """The name of a machine that is slower than another by a factor; its own name for 1."""
    return machine if factor == 1 else f"{machine} x{factor:g}"


@dataclass(frozen=True)
class Profile:
    """Measured (or estimated) seconds per layer.

    Attributes:
        model: SHA-256 digest of the model.
        machine: the machine's name for humans and for the cache.
        provider: execution provider that ran it.
        threads: threads it ran with; 0: the provider's own choice.
        layers: costs in the graph's layer order; they sum to `whole_s`.
        whole_s: seconds of one run of the whole model, as the runtime runs it.
        runs: repeats behind each median; 0 for an estimate.
        estimated: whether the numbers come from FLOPs instead of a clock.
        remarks: what was suspicious while measuring, each in one sentence.
        codec_s: seconds of a reference work of encoding and decoding; None: not measured.
        segment_s: seconds that a segment takes besides its layers when the model runs in several.
        client_bytes: resident bytes of a client's process there that has loaded next to nothing;
            None: not measured.
        sizes: of tensors whose size depends on data, by name, as far as they were measured.
    """

    model: str
    machine: str
    provider: str
    threads: int
    layers: tuple[LayerCost, ...]
    whole_s: float
    runs: int
    estimated: bool = False
    remarks: tuple[str, ...] = ()
    codec_s: float | None = None
    segment_s: float = 0.0
    client_bytes: int | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by layer name."""
        return MappingProxyType({layer.name: layer.seconds_s for layer in self.layers})

    def scaled(self, factor: float, machine: str | None = None) -> "Profile":
        """The same model on a machine that is slower by a factor (faster below 1)."""
        return replace(
            self,
            machine=machine or slowed(self.machine, factor),
            layers=tuple(
                LayerCost(c.name, c.seconds_s * factor, c.low_s * factor, c.high_s * factor)
                for c in self.layers
            ),
            whole_s=self.whole_s * factor,
            codec_s=None if self.codec_s is None else self.codec_s * factor,
            segment_s=self.segment_s * factor,
        )

    def with_sizes(self, sizes: Mapping[str, Size]) -> "Profile":
        """The same costs with sizes of tensors that were measured on real inputs."""
        remarks = tuple(remark for remark in self.remarks if remark != RANDOM_SIZES)
        return replace(self, sizes={**self.sizes, **sizes}, remarks=remarks)

    def costs_of(self, graph: Graph) -> tuple[float, ...]:
        """Seconds of each layer of a graph, in its order.

        Raises:
            InputError: the profile is of another model, or of other layers of it.
        """
        if self.model != graph.digest:
            raise InputError(
                f"profile is of another model ({self.model[:12]}, not {graph.digest[:12]}):"
                " make it again with `offload profile` and the same --image"
            )
        missing = [layer.name for layer in graph.layers if layer.name not in self.seconds]
        if missing:
            raise InputError(
                f"profile lacks layer {missing[0]!r}: it was made with other settings or by another"
                " version; make it again with `offload profile`"
            )
        return tuple(self.seconds[layer.name] for layer in graph.layers)

    def refined(self, graph: Graph, finer: Graph) -> "Profile":
        """The profile of the same model with some layers of `graph` broken up, as in `finer`.

        The seconds of a broken layer are shared among its pieces by their work.

        Raises:
            InputError: the profile is of another model, or of other layers of it.
        """
        if finer == graph:
            return self
        self.costs_of(graph)
        costs = {cost.name: cost for cost in self.layers}
        layer_of = {node: layer.name for layer in graph.layers for node in layer.nodes}
        pieces: dict[str, list[int]] = {}
        for index, layer in enumerate(finer.layers):
            pieces.setdefault(layer_of[layer.nodes[0]], []).append(index)
        shares: dict[int, float] = {}
        for indexes in pieces.values():
            shares |= shares_by_work(finer, dict.fromkeys(indexes, 1.0))
        layers = []
        for index, layer in enumerate(finer.layers):
            cost, share = costs[layer_of[layer.nodes[0]]], shares[index]
            layers.append(
                LayerCost(
                    layer.name, cost.seconds_s * share, cost.low_s * share, cost.high_s * share
                )
            )
        return replace(self, layers=tuple(layers))

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {
            "format": PROFILE_FORMAT,
            "model": self.model,
            "machine": self.machine,
            "provider": self.provider,
            "threads": self.threads,
            "whole_s": self.whole_s,
            "runs": self.runs,
            "estimated": self.estimated,
            "remarks": list(self.remarks),
            "codec_s": self.codec_s,
            "segment_s": self.segment_s,
            "client_bytes": self.client_bytes,
            "sizes": {name: [s.mean_bytes, s.p95_bytes] for name, s in self.sizes.items()},
            "layers": [[c.name, c.seconds_s, c.low_s, c.high_s] for c in self.layers],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Profile":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format, or a field is missing or of the wrong kind.
        """
        if value.get("format") != PROFILE_FORMAT:
            raise InputError(
                f"profile has format {value.get('format')!r}, this version reads {PROFILE_FORMAT}:"
                " make it again with `offload profile`"
            )
        try:
            return cls(
                model=value["model"],
                machine=value["machine"],
                provider=value["provider"],
                threads=value["threads"],
                layers=tuple(LayerCost(*row) for row in value["layers"]),
                whole_s=value["whole_s"],
                runs=value["runs"],
                estimated=value["estimated"],
                remarks=tuple(value.get("remarks", ())),
                codec_s=value.get("codec_s"),
                segment_s=value.get("segment_s", 0.0),
                client_bytes=value.get("client_bytes"),
                sizes={name: Size(*row) for name, row in value.get("sizes", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"profile is damaged ({error!r}): make it again") from error


def estimate_profile(graph: Graph, flops_per_s: float, machine: str = "estimate") -> Profile:
    """A profile from FLOPs when no device is at hand, marked as estimated.

    A node whose work is not known is charged as much as the average node of its kind; a remark
    says which share of the work that is.

    Raises:
        InputError: the rate is not positive.
    """
    if flops_per_s <= 0:
        raise InputError("the estimated speed must be positive, like --device 5e9")
    work = [layer.assumed_flops if layer.flops is None else layer.flops for layer in graph.layers]
    layers = tuple(
        LayerCost(layer.name, s, s, s)
        for layer, s in zip(graph.layers, (flops / flops_per_s for flops in work), strict=True)
    )
    whole_s = sum(layer.seconds_s for layer in layers)
    remarks = (f"{uncounted(graph)}: an average is assumed for it",) if graph.uncounted else ()
    return Profile(
        graph.digest, machine, "estimate", 0, layers, whole_s, 0, estimated=True, remarks=remarks
    )


def uncounted(graph: Graph) -> str:
    """Which share of a model's work could not be counted, and of which operators, in words."""
    shown = ", ".join(graph.uncounted[:_SHOWN_OPERATORS])
    more = len(graph.uncounted) - _SHOWN_OPERATORS
    others = f" and {more} more operators" if more > 0 else ""
    return f"{graph.uncounted_share:.1%} of the work could not be counted ({shown}{others})"


def load_profile(path: Path) -> Profile:
    """Read a profile file.

    Raises:
        InputError: no such file, or not a profile of this version.
    """
    return Profile.from_json(read_object(path, "profile", "offload profile -o"))
