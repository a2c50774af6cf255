"""From a model file to a bundle: read, profile, plan, write."""

from functools import partial
from pathlib import Path

from offload.bundle.bundle import Bundle
from offload.bundle.write import write_bundle
from offload.encoding.catalogue import Catalogue
from offload.partition.cut import cut_after
from offload.plan.plan import Plan
from offload.plan.planner import make_plan

from offload_runtimes.encode.choose import Chooser
from offload_runtimes.planning.situation import Prepared, Progress, SplitRequest, prepare
from offload_runtimes.proof.evidence import prove
from offload_runtimes.proof.verify import missing_types

__all__ = ["SplitRequest", "split", "write_split"]


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
    cut = cut_after(graph, request.cut) if request.cut else None
    types = missing_types(prepared.model, graph)

    def planned(catalogue: Catalogue | None) -> Plan:
        progress("planning")
        situation = prepared.situation(catalogue=catalogue)
        return make_plan(situation, request.scheme, cut, request.solver)

    chooser = Chooser(
        prepared.model,
        graph,
        request.allowance,
        request.options,
        types,
        progress,
        request.again,
    )
    plan = chooser.plan(planned)
    progress(f"writing {target}")
    return write_bundle(prepared.model, graph, plan, target, types, partial(prove, prepared.model))
