"""From a model file to a bundle: read, profile, plan, write."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from offload.bundle.bundle import Bundle
from offload.bundle.write import check_types, signature, write_plans
from offload.costs.encoding_table import Catalogue
from offload.costs.link import Link
from offload.errors import InputError
from offload.graph.load import Model
from offload.graph.model import Tensor
from offload.planning.constraints import Objective
from offload.planning.cut import Cut, cut_at_names
from offload.planning.plan import Plan
from offload.planning.plan_set import Ranged, plans_over
from offload.planning.planner import make_plan

from offload_runtimes.encode.choose import Chooser
from offload_runtimes.planning.situation import Prepared, Progress, SplitRequest, prepare
from offload_runtimes.proof.evidence import prove
from offload_runtimes.proof.verify import missing_types

# A model that planning did not run is run to prove its bundle only up to this size.
_PROVED_BYTES = 1 << 26

__all__ = ["SplitRequest", "chooser_of", "split", "write_split"]


def split(request: SplitRequest, target: Path, progress: Progress = lambda _: None) -> Bundle:
    """Plan a model's split and write the bundle.

    Args:
        request: what to split and how.
        target: the bundle's folder; an older bundle there is replaced.
        progress: called with a phrase before each step.

    Raises:
        InputError: a file, tensor, shape, scheme or limit of the request can't be used.
    """
    return write_split(prepare(request, progress), target, progress)


def write_split(prepared: Prepared, target: Path, progress: Progress = lambda _: None) -> Bundle:
    """Plan what was prepared and write the bundle; as `split`."""
    request, graph = prepared.request, prepared.graph
    check_types(value for values in signature(prepared.model, graph) for value in values)
    cut = _forced(prepared) if request.cut else None
    types = missing_types(prepared.model, graph)

    chooser = chooser_of(prepared, progress, types)

    def planned(link: Link) -> Plan:
        def on(catalogue: Catalogue | None) -> Plan:
            progress(f"planning for {link.describe()}")
            situation = prepared.situation(link, catalogue=catalogue)
            return make_plan(situation, request.scheme, cut, request.solver)

        plan = replace(chooser.plan(on), device=prepared.device.machine)
        if prepared.open_sizes:
            reason = f"As asked; nothing is predicted: {prepared.open_sizes}."
            return replace(plan, reason=reason, alternatives=(), instance={})
        return plan

    ranged = _ranged(request, planned)
    if _is_run_here(request) or _weight_bytes(prepared.model) <= _PROVED_BYTES:
        progress(f"writing {target}")
        proof = partial(prove, prepared.model, shapes=request.shapes or {})
        return write_plans(prepared.model, graph, ranged, target, types, proof)
    progress(f"writing {target} without a proof, for which the whole model would have to run")
    return write_plans(prepared.model, graph, ranged, target, types)


def _is_run_here(request: SplitRequest) -> bool:
    """Whether planning runs the model, to measure seconds or the sizes of encoded tensors."""
    raw = [each.name for each in request.allowance.encodings] == ["raw"]
    return not raw or request.device is None or request.server is None


def _weight_bytes(model: Model) -> int:
    """Bytes of the model's file and of the weights outside it."""
    assert model.path is not None
    return model.path.stat().st_size + model.outside_bytes


def _ranged(request: SplitRequest, planned: Callable[[Link], Plan]) -> Ranged:
    if not request.links:
        return Ranged((planned(request.link),))
    if request.wish.objective == Objective.ENERGY:
        raise InputError(
            "plans for a range of links are compared by latency or throughput while they run:"
            " give one link with the objective energy"
        )
    limited = request.wish.deadline_s is not None or request.wish.energy_j is not None
    return plans_over(planned, request.links, 0.0 if limited else request.worth)


def _forced(prepared: Prepared) -> Cut:
    names = prepared.request.cut
    cut = cut_at_names(prepared.model, prepared.graph, names)
    if not cut.device:
        raise InputError(
            f"a cut at {', '.join(map(repr, names))} leaves the device nothing to compute: cut"
            " later, or ask for --scheme cloud"
        )
    return cut


def chooser_of(
    prepared: Prepared, progress: Progress, types: Mapping[str, Tensor] | None = None
) -> Chooser:
    """Who chooses the encodings of what was prepared; `types` as `missing_types` finds them."""
    request, graph = prepared.request, prepared.graph
    known = missing_types(prepared.model, graph) if types is None else types
    return Chooser(
        prepared.model,
        graph,
        request.allowance,
        request.options,
        known,
        progress,
        request.again,
        prepared.calibration,
    )
