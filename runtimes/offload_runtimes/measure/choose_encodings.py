"""Choose encodings that keep the outputs within what is allowed, measured on calibration inputs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from offload.bundle.engine_input import bare_inputs
from offload.bundle.sample_inputs import inputs_of
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import (
    ENCODINGS,
    LOSSLESS,
    Encoding,
    EncodingPolicy,
    TensorFormat,
    encoding,
)
from offload.errors import InputError
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.value_index import nested_nodes
from offload.planning.plan import Plan, Side

from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.accuracy import AccuracyTrial, Effect, LossyCrossing
from offload_runtimes.measure.calibration import Calibration, random_calibration
from offload_runtimes.measure.encoding_sizes import cached_encodings

Planner = Callable[[EncodingTable | None], Plan]


@dataclass(frozen=True, slots=True)
class RejectedEncoding:
    """An encoding that changed the outputs too much.

    Attributes:
        tensor: where.
        encoding: which.
        effect: of the plan that had it.
        plain: share of labels that is right without any encoding; None without labels.
    """

    tensor: str
    encoding: Encoding
    effect: Effect
    plain: float | None


@dataclass(frozen=True, slots=True)
class UntestedEncodings:
    """The calibration inputs do not show what lossy encodings do; `reason` says why."""

    reason: str


_RANDOM = (
    "How far tensors compress was measured on random inputs: give real ones with --calibration."
)
# Operators whose answer is as long as what they find.
_FINDING = frozenset(("NonMaxSuppression", "NonZero", "Unique", "Compress"))
# Refused at so many tensors, a form is given up for all: no split waits for ever.
_REFUSALS = 3
# From fine to coarse: what loses too much is not tried coarser.
_FINENESS = (
    TensorFormat.HALF,
    TensorFormat.CHANNELS,
    TensorFormat.AFFINE,
    TensorFormat.SIX_BITS,
    TensorFormat.FOUR_BITS,
)


@dataclass
class EncodingSelector:
    """Plans with encodings until the measured effect is within the allowance.

    Attributes:
        model: from a file.
        graph: its layers.
        allowance: what may be lost.
        options: how onnxruntime runs.
        types: types of tensors that shape inference can't follow.
        progress: called with a phrase before each step.
        again: whether sizes are measured that are known on this machine.
        calibration: the inputs of the allowance; None: random ones, for lossless encodings only.
        calibration: the inputs; None: random ones, on which only lossless encodings are judged.
    """

    model: Model
    graph: Graph
    allowance: EncodingPolicy
    options: EngineOptions
    types: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Progress = lambda _: None
    again: bool = False
    calibration: Calibration | None = None
    _seen: dict[object, Effect | RejectedEncoding | UntestedEncodings] = field(
        default_factory=dict, init=False
    )

    def plan(self, planner: Planner) -> Plan:
        """The best plan that the allowance lets through; its reason says what was given up.

        Each round plans with the encodings left, rehearses the plan on the calibration inputs
        and, if the outputs change too much, refuses the encoding that changes them most, there;
        refused at three tensors, a form is refused everywhere. So at most 15 plans are
        rehearsed before only what is lossless is left.

        Args:
            planner: plans with the encodings of a catalogue (None: raw only).

        Raises:
            InputError: the calibration doesn't fit the model, or no plan keeps the limits.
        """
        if [e.name for e in self.allowance.encodings] == ["raw"]:
            return planner(None)
        try:
            calibration, catalogue = self._known
        except InputError as error:
            if self.calibration is not None:
                raise
            return _saying(planner(None), f"All crosses raw, no sizes being known: {error}.")
        plan = self.within(planner, calibration, catalogue)
        return _saying(plan, _RANDOM) if calibration.is_random else plan

    def lossless(self) -> EncodingTable | None:
        """Sizes under the lossless encodings allowed; None where raw is all there is, or is known.

        Raises:
            InputError: the calibration doesn't fit the model.
        """
        kept = [each for each in self.allowance.encodings if each.is_lossless]
        if [each.name for each in kept] == ["raw"]:
            return None
        try:
            return self._known[1].allowing(kept)
        except InputError:
            if self.calibration is not None:
                raise
            return None

    def within(self, planner: Planner, calibration: Calibration, catalogue: EncodingTable) -> Plan:
        """As `plan`, with calibration and catalogue at hand."""
        refused: list[RejectedEncoding] = []
        left = catalogue
        while True:
            plan = planner(left)
            lossy = _lossy(plan)
            if not lossy:
                return _saying(plan, self._gave_up(refused)) if refused else plan
            found = self._rehearsed(plan, lossy, calibration)
            if isinstance(found, Effect):
                return _saying(plan, _kept(lossy, found))
            if isinstance(found, UntestedEncodings):
                kept = [e for e in self.allowance.encodings if e.is_lossless]
                return _saying(planner(catalogue.allowing(kept)), _proves_nothing(found))
            refused.append(found)
            left = left.without(_banned(left, refused))

    def _rehearsed(
        self, plan: Plan, lossy: Mapping[str, LossyCrossing], calibration: Calibration
    ) -> Effect | RejectedEncoding | UntestedEncodings:
        """The effect of a plan that is accepted; else what is refused of it. Once a program."""
        key = plan.program, frozenset(lossy.items())
        if key not in self._seen:
            self.progress("measuring what the encodings do to the outputs")
            self._seen[key] = self._rehearse(plan, lossy, calibration)
        return self._seen[key]

    def _rehearse(
        self, plan: Plan, lossy: Mapping[str, LossyCrossing], calibration: Calibration
    ) -> Effect | RejectedEncoding | UntestedEncodings:
        with temporary_folder() as folder:
            shown = judged_by(self.graph, plan)
            sources = bare_inputs(self.model, plan, folder, self.types, shown)
            names = tuple(chain.from_iterable(shown.values()))
            axes = varying_axes(self.model, self.graph, (*self.graph.outputs, *names))
            rehearsal = AccuracyTrial(plan, sources, calibration, self.options, names, axes)
            effect = rehearsal.effect(lossy)
            if self.accepts(effect):
                reason = rehearsal.unproven(lossy, _computed_from(self.graph, lossy))
                return effect if reason is None else UntestedEncodings(reason)
            tensor, worst = _worst(rehearsal, lossy)
            plain = rehearsal.effect({}).accuracy if effect.accuracy is not None else None
            return RejectedEncoding(tensor, worst, effect, plain)

    def accepts(self, effect: Effect) -> bool:
        """Whether an effect is within the allowance."""
        tolerance, floor = self.allowance.tolerance, self.allowance.accuracy_floor
        if floor is not None:
            if effect.accuracy is None:
                raise InputError(
                    "--accuracy-floor needs the right class of each sample: an array `labels` in"
                    " the .npz file, one number a sample, or pictures in a sub-folder a class"
                )
            if effect.accuracy < floor:
                return False
        return tolerance is None or effect.worst <= tolerance

    @cached_property
    def _known(self) -> tuple[Calibration, EncodingTable]:
        """Inputs and what tensors take: the same for every plan."""
        calibration = self.calibration
        if calibration is None:
            calibration = random_calibration(inputs_of(self.model, self.graph))
        return calibration, self._catalogue(calibration)

    def _catalogue(self, calibration: Calibration) -> EncodingTable:
        allowed = LOSSLESS if calibration.is_random else self.allowance.encodings
        return cached_encodings(
            self.model,
            self.graph,
            calibration,
            allowed,
            self.options,
            self.types,
            self.progress,
            again=self.again,
        )

    def _gave_up(self, refused: list[RejectedEncoding]) -> str:
        last, limits = refused[-1], []
        if self.allowance.tolerance is not None:
            limits.append(f"within {self.allowance.tolerance:g}")
        if self.allowance.accuracy_floor is not None:
            limits.append(f"at {self.allowance.accuracy_floor:g} of the labels right")
        right = (
            ""
            if last.plain is None
            else f", {last.effect.accuracy:g} right ({last.plain:g} without)"
        )
        return (
            f"No lossy encoding that was tried keeps the outputs {' and '.join(limits)} (the last,"
            f" {last.encoding.name} of {last.tensor!r}, changes them by"
            f" {last.effect.worst:.2g}{right}): all is lossless."
        )


def judged_by(graph: Graph, plan: Plan) -> dict[str, tuple[str, ...]]:
    """By server segment, the floats that the outputs which are whole numbers were made of.

    A class or a path of letters stays the same until it changes: only the scores it was chosen by
    tell how near it is to that, on the few inputs of a calibration.
    """
    makers = {layer: s.id for s in plan.segments if s.side is Side.SERVER for layer in s.layers}
    left = [name for name in graph.outputs if not _is_float(graph.tensors[name])]
    found: dict[str, list[str]] = {}
    seen = set(left)
    while left:
        name = left.pop()
        layer = graph.layers[graph.producer[name]] if name in graph.producer else None
        if layer is None or layer.name not in makers:
            continue
        if _is_float(graph.tensors[name]):
            found.setdefault(makers[layer.name], []).append(name)
        else:
            left += sorted(set(layer.inputs) - seen)
            seen.update(layer.inputs)
    return {segment: tuple(names) for segment, names in found.items()}


def _computed_from(graph: Graph, names: Iterable[str]) -> set[str]:
    """All tensors that are computed from some."""
    found: set[str] = set()
    left = list(names)
    while left:
        for index in graph.consumers.get(left.pop(), ()):
            new = set(graph.layers[index].outputs) - found
            found |= new
            left += new
    return found


def varying_axes(model: Model, graph: Graph, names: Iterable[str]) -> dict[str, int]:
    """Of some tensors those whose length in one axis depends on data, and that axis.

    A size that shape inference cannot tell is one that depends on data only behind an operator
    that finds things.
    """
    found: dict[str, int] = {}
    for name in names:
        shape = graph.tensors[name].shape
        if name not in graph.producer or shape is None or shape.count(None) != 1:
            continue
        layers = (graph.layers[each] for each in graph.ancestors({graph.producer[name]}))
        nodes = (model.proto.graph.node[node] for layer in layers for node in layer.nodes)
        if any(inner.op_type in _FINDING for node in nodes for inner in nested_nodes(node)):
            found[name] = shape.index(None)
    return found


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in ("float", "float16", "bfloat16", "double")


def _lossy(plan: Plan) -> dict[str, LossyCrossing]:
    found = {s.tensor: LossyCrossing(encoding(s.encoding), s.affine) for s in plan.uploads}
    return {name: lossy for name, lossy in found.items() if not lossy.encoding.is_lossless}


def _worst(rehearsal: AccuracyTrial, lossy: Mapping[str, LossyCrossing]) -> tuple[str, Encoding]:
    """The tensor whose encoding alone changes the outputs most."""
    if len(lossy) > 1:
        name = max(lossy, key=lambda tensor: _badness(rehearsal.effect({tensor: lossy[tensor]})))
    else:
        (name,) = lossy
    return name, lossy[name].encoding


def _badness(effect: Effect) -> tuple[float, float]:
    return (0.0 if effect.accuracy is None else -effect.accuracy), effect.worst


def _banned(catalogue: EncodingTable, refused: list[RejectedEncoding]) -> set[tuple[str, Encoding]]:
    """What must not be tried again: no less lossy at the same tensor, or anywhere."""
    worse = [_no_finer(refusal.encoding) for refusal in refused]
    everywhere = {each for tried in worse if worse.count(tried) >= _REFUSALS for each in tried}
    found = {(name, each) for name in catalogue.tensors for each in everywhere}
    for refusal, tried in zip(refused, worse, strict=True):
        found.update((refusal.tensor, each) for each in tried)
    return found


def _no_finer(tried: Encoding) -> frozenset[Encoding]:
    """The encodings that lose no less."""
    if tried.form is TensorFormat.PLAIN:
        return frozenset((tried,))
    coarser = _FINENESS[_FINENESS.index(tried.form) :]
    return frozenset(e for e in ENCODINGS.values() if e.form in coarser)


def _kept(lossy: Mapping[str, LossyCrossing], effect: Effect) -> str:
    how = ", ".join(f"{tensor!r} as {each.encoding.name}" for tensor, each in lossy.items())
    right = f", {effect.accuracy:.2%} of the labels right" if effect.accuracy is not None else ""
    return (
        f"Lossy: {how}; on the calibration inputs the outputs change by {effect.worst:.2g} of"
        f" their range at most ({effect.mean:.2g} on average){right}."
    )


def _proves_nothing(found: UntestedEncodings) -> str:
    return (
        f"All is lossless: {found.reason}, so the calibration does not show what a lossy encoding"
        " changes; give inputs on which the model finds something, and different things."
    )


def _saying(plan: Plan, more: str) -> Plan:
    return replace(plan, reason=f"{plan.reason} {more}")
