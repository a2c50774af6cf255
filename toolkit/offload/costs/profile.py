"""The profile: seconds of each layer of one model on one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offload.errors import InputError
from offload.graph.flops import shares_by_work
from offload.graph.model import Graph
from offload.records import fields_to_json, read_object, read_version

PROFILE_FORMAT = 1
RANDOM_SIZES = (
    "the size of some tensors depends on data and was measured on a random input: give real inputs"
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

    def scaled(self, factor: float, name: str | None = None) -> "LayerCost":
        """The cost times a factor, under another name if one is given."""
        seconds = self.seconds_s * factor, self.low_s * factor, self.high_s * factor
        return LayerCost(name or self.name, *seconds)

    def to_json(self) -> tuple[str, float, float, float]:
        """A row; `from_json` reads it."""
        return self.name, self.seconds_s, self.low_s, self.high_s

    @classmethod
    def from_json(cls, row: Any) -> "LayerCost":
        """Read a row."""
        return cls(*row)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a tensor whose size depends on data: the mean and the 95th percentile."""

    mean_bytes: int
    p95_bytes: int

    def to_json(self) -> tuple[int, int]:
        """A row; `from_json` reads it."""
        return self.mean_bytes, self.p95_bytes

    @classmethod
    def from_json(cls, row: Any) -> "Size":
        """Read a row."""
        return cls(*row)


def slowed(machine: str, factor: float) -> str:
    """The name of a machine slowed down by a factor; unchanged for factor 1."""
    return machine if factor == 1 else f"{machine} x{factor:g}"


@dataclass(frozen=True)
class Profile:
    """Measured (or estimated) seconds per layer.

    Attributes:
        model: SHA-256 digest of the model.
        machine: the machine's name, for display and for the cache.
        provider: execution provider that ran it.
        threads: number of threads; 0: the provider's default.
        layers: costs in the graph's layer order; they sum to `whole_s`.
        whole_s: seconds of one run of the whole model, as the runtime runs it.
        runs: repeats behind each median; 0 for an estimate.
        estimated: whether the seconds are estimated from FLOPs instead of measured.
        remarks: warnings from the measurement, each in one sentence.
        codec_s: seconds of the codec reference work; None: not measured.
        segment_s: overhead of a segment in seconds when the model runs in several segments.
        client_bytes: resident bytes of a client process with a minimal model; None: not measured.
        sizes: measured sizes, by name, of tensors whose size depends on data.
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
        """The profile on a machine that is slower by a factor (faster below 1)."""
        return replace(
            self,
            machine=machine or slowed(self.machine, factor),
            layers=tuple(cost.scaled(factor) for cost in self.layers),
            whole_s=self.whole_s * factor,
            codec_s=None if self.codec_s is None else self.codec_s * factor,
            segment_s=self.segment_s * factor,
        )

    def with_sizes(self, sizes: Mapping[str, Size]) -> "Profile":
        """The profile with tensor sizes that were measured on real inputs."""
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
                " profile again with `offload profile` and the same --image"
            )
        missing = [layer.name for layer in graph.layers if layer.name not in self.seconds]
        if missing:
            raise InputError(
                f"profile lacks layer {missing[0]!r}: it was made with other settings or by another"
                " version; profile again with `offload profile`"
            )
        return tuple(self.seconds[layer.name] for layer in graph.layers)

    def refined(self, graph: Graph, finer: Graph) -> "Profile":
        """The profile for `finer`, which splits some layers of `graph` into several.

        The seconds of a split layer are divided among its parts by their work.

        Raises:
            InputError: the profile is of another model, or of other layers of it.
        """
        if finer == graph:
            return self
        self.costs_of(graph)
        costs = {cost.name: cost for cost in self.layers}
        layer_of = {node: layer.name for layer in graph.layers for node in layer.nodes}
        parts: dict[str, list[int]] = {}
        for index, layer in enumerate(finer.layers):
            parts.setdefault(layer_of[layer.nodes[0]], []).append(index)
        shares: dict[int, float] = {}
        for indexes in parts.values():
            shares |= shares_by_work(finer, dict.fromkeys(indexes, 1.0))
        layers = tuple(
            costs[layer_of[layer.nodes[0]]].scaled(shares[index], layer.name)
            for index, layer in enumerate(finer.layers)
        )
        return replace(self, layers=layers)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {"format": PROFILE_FORMAT, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Profile":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format, or a field is missing or has the wrong type.
        """
        remedy = "profile again with `offload profile`"
        return read_version(cls, value, PROFILE_FORMAT, name="profile", remedy=remedy)


def estimate_profile(graph: Graph, flops_per_s: float, machine: str = "estimate") -> Profile:
    """Estimate a profile from FLOPs, for a device that is not available.

    A node of unknown work counts as the average node of its kind; a remark gives the share of the
    work that is unknown.

    Raises:
        InputError: the rate is not positive.
    """
    if flops_per_s <= 0:
        raise InputError("the estimated speed must be positive, like --device 5e9")
    work = [layer.assumed_flops if layer.flops is None else layer.flops for layer in graph.layers]
    layers = tuple(
        LayerCost(layer.name, *[flops / flops_per_s] * 3)
        for layer, flops in zip(graph.layers, work, strict=True)
    )
    whole_s = sum(layer.seconds_s for layer in layers)
    remarks = (f"{uncounted(graph)}: an average is assumed for it",) if graph.uncounted else ()
    return Profile(
        graph.digest, machine, "estimate", 0, layers, whole_s, 0, estimated=True, remarks=remarks
    )


def uncounted(graph: Graph) -> str:
    """The share of a model's work that could not be counted and its operators, in words."""
    shown = ", ".join(graph.uncounted[:_SHOWN_OPERATORS])
    more = len(graph.uncounted) - _SHOWN_OPERATORS
    others = f" and {more} more operators" if more > 0 else ""
    return f"{graph.uncounted_share:.1%} of the work could not be counted ({shown}{others})"


def load_profile(path: Path) -> Profile:
    """Read a profile file.

    Raises:
        InputError: the file does not exist or is not a profile of this version.
    """
    return Profile.from_json(read_object(path, "profile", "offload profile -o"))
