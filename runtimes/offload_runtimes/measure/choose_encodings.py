"""Choose encodings that keep the output error within the policy, measured on calibration inputs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from offload.bundle.engine_input import bare_inputs
from offload.bundle.model_inputs import inputs_of
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
from offload.planning.plan_set import PlanSet

from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.accuracy import AccuracyTrial, Effect, LossyCrossing
from offload_runtimes.measure.calibration import Calibration, random_calibration
from offload_runtimes.measure.encoding_sizes import cached_encodings

MakePlan = Callable[[EncodingTable | None], Plan]
MakePlans = Callable[[EncodingTable | None], PlanSet]
# Operators whose output is as long as the number of things they find.
_FINDING = frozenset(("NonMaxSuppression", "NonZero", "Unique", "Compress"))
# A format that is rejected at this many tensors is given up for all, so that a split ends soon.
_MOST_REJECTIONS = 3
# From fine to coarse: where a format loses too much, coarser ones are not tried.
_FINE_TO_COARSE = (
    TensorFormat.HALF,
    TensorFormat.CHANNELS,
    TensorFormat.AFFINE,
    TensorFormat.SIX_BITS,
    TensorFormat.FOUR_BITS,
)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The measured effect of a plan's lossy encodings, and whether they are accepted.

    Attributes:
        effect: of all encodings of the plan.
        rejected: the tensor and the encoding that change the outputs most, if they change too
            much; None: the plan is accepted.
        plain: share of labels that is right without any encoding; None without labels.
        unproven: why the inputs do not show the effect of lossy encodings; None: they do.
    """

    effect: Effect
    rejected: tuple[str, Encoding] | None = None
    plain: float | None = None
    unproven: str | None = None


@dataclass
class EncodingSelector:
    """Makes plans with encodings until the measured effect is within the policy.

    Attributes:
        model: from a file.
        graph: its layers.
        allowance: the encodings allowed and the output error allowed.
        options: how onnxruntime runs.
        types: types of tensors that shape inference can't follow.
        progress: called with a phrase before each step.
        again: measure sizes again that are cached on this machine.
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
    _results: dict[object, TrialResult] = field(default_factory=dict, init=False)

    def plan_set(self, make_plans: MakePlans) -> PlanSet:
        """The best plans that the policy accepts; reasons say which encodings were given up.

        Each round plans with the encodings left, runs the plans on the calibration inputs
        and, if the outputs of one change too much, rejects the encoding that changes them most at
        that tensor; a format rejected at three tensors is rejected everywhere. So at most 15
        rounds are tried before only lossless encodings are left.

        Args:
            make_plans: plans with the encodings of a table (None: raw only).

        Raises:
            InputError: the calibration doesn't fit the model, or no plan keeps the limits.
        """
        if [e.name for e in self.allowance.encodings] == ["raw"]:
            return make_plans(None)
        try:
            calibration, table = self._measured
        except InputError as error:
            if self.calibration is not None:
                raise
            note = f"All tensors are sent raw, because no sizes could be measured: {error}."
            return make_plans(None).with_note(note)
        plan_set = self._accepted(make_plans, calibration, table)
        if not calibration.is_random:
            return plan_set
        note = "Compressed sizes were measured on random inputs: give real ones with --calibration."
        return plan_set.with_note(note)

    def lossless(self) -> EncodingTable | None:
        """Sizes under the allowed lossless encodings; None: raw only, or nothing was measured.

        Raises:
            InputError: the calibration doesn't fit the model.
        """
        lossless = [each for each in self.allowance.encodings if each.is_lossless]
        if [each.name for each in lossless] == ["raw"]:
            return None
        try:
            return self._measured[1].allowing(lossless)
        except InputError:
            if self.calibration is not None:
                raise
            return None

    def within(self, make_plan: MakePlan, calibration: Calibration, table: EncodingTable) -> Plan:
        """As `plan_set` for a single plan, with a given calibration and table."""
        return self._accepted(
            lambda remaining: PlanSet((make_plan(remaining),)), calibration, table
        ).plans[0]

    def _accepted(
        self, make_plans: MakePlans, calibration: Calibration, table: EncodingTable
    ) -> PlanSet:
        rejected: list[TrialResult] = []
        remaining = table
        while True:
            plan_set = make_plans(remaining)
            accepted: list[str] = []
            for plan in plan_set.plans:
                lossy = _lossy(plan)
                result = self._tried(plan, lossy, calibration) if lossy else None
                if result is None:
                    continue
                if result.unproven is not None:
                    lossless = [e for e in self.allowance.encodings if e.is_lossless]
                    note = (
                        f"All is lossless: {result.unproven}, so the calibration does not show"
                        " what a lossy encoding changes; give inputs on which the model finds"
                        " something, and different things."
                    )
                    return make_plans(table.allowing(lossless)).with_note(note)
                if result.rejected is not None:
                    rejected.append(result)
                    break
                accepted.append(_accepted_note(lossy, result.effect))
            else:
                if rejected and not accepted:
                    accepted.append(self._rejection_note(rejected[-1]))
                return plan_set.with_note(" ".join(dict.fromkeys(accepted)))
            banned = _banned(remaining, [each.rejected for each in rejected if each.rejected])
            remaining = remaining.without(banned)

    def _tried(
        self, plan: Plan, lossy: Mapping[str, LossyCrossing], calibration: Calibration
    ) -> TrialResult:
        """Run a plan on the calibration inputs, once for each program."""
        key = plan.program, frozenset(lossy.items())
        if key in self._results:
            return self._results[key]
        self.progress("measuring the effect of the encodings on the outputs")
        with temporary_folder() as folder:
            shown = judged_by(self.graph, plan)
            sources = bare_inputs(self.model, plan, folder, self.types, shown)
            names = tuple(chain.from_iterable(shown.values()))
            axes = varying_axes(self.model, self.graph, (*self.graph.outputs, *names))
            trial = AccuracyTrial(plan, sources, calibration, self.options, names, axes)
            effect = trial.effect(lossy)
            if self.accepts(effect):
                computed = _computed_from(self.graph, lossy)
                result = TrialResult(effect, unproven=trial.unproven(lossy, computed))
            else:
                tensor = next(iter(lossy))
                if len(lossy) > 1:
                    alone = {name: trial.effect({name: lossy[name]}) for name in lossy}
                    tensor = max(alone, key=lambda n: (-(alone[n].accuracy or 0.0), alone[n].worst))
                plain = trial.effect({}).accuracy if effect.accuracy is not None else None
                result = TrialResult(effect, (tensor, lossy[tensor].encoding), plain)
        self._results[key] = result
        return result

    def accepts(self, effect: Effect) -> bool:
        """Whether an effect is within the policy.

        Raises:
            InputError: an accuracy floor is given, but the calibration has no labels.
        """
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
    def _measured(self) -> tuple[Calibration, EncodingTable]:
        """The inputs and the sizes of encoded tensors: the same for every plan."""
        calibration = self.calibration
        if calibration is None:
            calibration = random_calibration(inputs_of(self.model, self.graph))
        table = cached_encodings(
            self.model,
            self.graph,
            calibration,
            LOSSLESS if calibration.is_random else self.allowance.encodings,
            self.options,
            self.types,
            self.progress,
            again=self.again,
        )
        return calibration, table

    def _rejection_note(self, last: TrialResult) -> str:
        assert last.rejected is not None
        tensor, form = last.rejected
        limits = []
        if self.allowance.tolerance is not None:
            limits.append(f"within {self.allowance.tolerance:g}")
        if self.allowance.accuracy_floor is not None:
            limits.append(f"at {self.allowance.accuracy_floor:g} of the labels right")
        right = ""
        if last.plain is not None:
            right = f", {last.effect.accuracy:g} right ({last.plain:g} without)"
        return (
            f"No lossy encoding that was tried keeps the outputs {' and '.join(limits)} (the last,"
            f" {form.name} of {tensor!r}, changes them by {last.effect.worst:.2g}{right}): all is"
            " lossless."
        )


def judged_by(graph: Graph, plan: Plan) -> dict[str, tuple[str, ...]]:
    """By server segment, the float tensors from which integer outputs are computed.

    A class or a path of letters stays the same until it changes: on the few inputs of a
    calibration, only the scores from which it is computed show how near it is to a change.
    """
    segment_of = {layer: s.id for s in plan.segments if s.side is Side.SERVER for layer in s.layers}
    floats: dict[str, list[str]] = {}
    pending = [name for name in graph.outputs if not _is_float(graph.tensors[name])]
    seen = set(pending)
    while pending:
        name = pending.pop()
        layer = graph.layers[graph.producer[name]] if name in graph.producer else None
        if layer is None or layer.name not in segment_of:
            continue
        if _is_float(graph.tensors[name]):
            floats.setdefault(segment_of[layer.name], []).append(name)
        else:
            pending += sorted(set(layer.inputs) - seen)
            seen.update(layer.inputs)
    return {segment: tuple(names) for segment, names in floats.items()}


def _computed_from(graph: Graph, names: Iterable[str]) -> set[str]:
    """All tensors that are computed from some others."""
    computed: set[str] = set()
    pending = list(names)
    while pending:
        for index in graph.consumers.get(pending.pop(), ()):
            new = set(graph.layers[index].outputs) - computed
            computed |= new
            pending += new
    return computed


def varying_axes(model: Model, graph: Graph, names: Iterable[str]) -> dict[str, int]:
    """By tensor, the one axis whose length depends on data; tensors without one are absent.

    A size that shape inference does not know depends on data only behind an operator that finds
    things.
    """
    axes: dict[str, int] = {}
    for name in names:
        shape = graph.tensors[name].shape
        if name not in graph.producer or shape is None or shape.count(None) != 1:
            continue
        layers = (graph.layers[each] for each in graph.ancestors({graph.producer[name]}))
        nodes = (model.proto.graph.node[node] for layer in layers for node in layer.nodes)
        if any(inner.op_type in _FINDING for node in nodes for inner in nested_nodes(node)):
            axes[name] = shape.index(None)
    return axes


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in ("float", "float16", "bfloat16", "double")


def _banned(
    table: EncodingTable, rejected: list[tuple[str, Encoding]]
) -> set[tuple[str, Encoding]]:
    """Encodings not to try again: those as lossy at the same tensor, or at all tensors."""
    as_lossy: list[frozenset[Encoding]] = []
    for _, tried in rejected:
        if tried.form is TensorFormat.PLAIN:
            as_lossy.append(frozenset((tried,)))
        else:
            coarser = _FINE_TO_COARSE[_FINE_TO_COARSE.index(tried.form) :]
            as_lossy.append(frozenset(e for e in ENCODINGS.values() if e.form in coarser))
    everywhere = {e for each in as_lossy if as_lossy.count(each) >= _MOST_REJECTIONS for e in each}
    banned = {(name, each) for name in table.tensors for each in everywhere}
    for (tensor, _), encodings in zip(rejected, as_lossy, strict=True):
        banned.update((tensor, each) for each in encodings)
    return banned


def _accepted_note(lossy: Mapping[str, LossyCrossing], effect: Effect) -> str:
    how = ", ".join(f"{tensor!r} as {each.encoding.name}" for tensor, each in lossy.items())
    right = f", {effect.accuracy:.2%} of the labels right" if effect.accuracy is not None else ""
    return (
        f"Lossy: {how}; on the calibration inputs the outputs change by at most {effect.worst:.2g}"
        f" of their range ({effect.mean:.2g} on average){right}."
    )


def _lossy(plan: Plan) -> dict[str, LossyCrossing]:
    """The tensors of a plan that are uploaded with a lossy encoding."""
    sends = {s.tensor: LossyCrossing(encoding(s.encoding), s.affine) for s in plan.uploads}
    return {name: send for name, send in sends.items() if not send.encoding.is_lossless}
