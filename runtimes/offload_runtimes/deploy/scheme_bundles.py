"""The schemes of a model on a device and a server, each planned and written as a bundle."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from offload.bundle.bundle import Bundle, open_bundle
from offload.bundle.model_inputs import inputs_of
from offload.bundle.write import write_bundle
from offload.costs.encodings import EncodingPolicy, parse_allowed
from offload.costs.link import Link
from offload.errors import InputError
from offload.files import write_text
from offload.planning.plan import Plan
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem

from offload_runtimes.measure import Progress
from offload_runtimes.measure.calibration import read_calibration
from offload_runtimes.measure.encoding_sizes import cached_encodings
from offload_runtimes.measure.split import PlanningInputs, prepare, write_split
from offload_runtimes.measure.verify import missing_types

LOCAL, CLOUD, SPLIT = "LO", "CO", "split"
SCHEMES = {"NS": "neurosurgeon", "PO": "partition", "OPSS": "opss", "joint": "joint"}
_JPEG = {"CO jpeg 90": "jpeg", "CO jpeg 95": "jpeg95"}


@dataclass(frozen=True)
class SchemeBundle:
    """A scheme, written as a bundle.

    Attributes:
        label: its name for people; several where they come to the same program: `CO = split`.
        bundle: what runs.
        plan: index of the plan that it follows.
    """

    label: str
    bundle: Bundle
    plan: int = 0

    @property
    def followed(self) -> Plan:
        """The plan that it follows."""
        return self.bundle.plans[self.plan]

    @property
    def is_local(self) -> bool:
        """Whether the device computes everything."""
        return self.followed.is_local


def write_schemes(
    prepared: PlanningInputs,
    link: Link,
    folder: Path,
    float_input: str = "",
    more: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> tuple[list[SchemeBundle], list[str]]:
    """Plan each scheme and write its bundle; schemes with the same program share one.

    `LO`, all on the device. `CO`, all on the server; if the input is a picture in bytes, with its
    floats (`CO float`), its bytes (`CO bytes`), and as jpeg of quality 90 and 95, which need
    calibration inputs. `split`, the plans for the request's links, followed at `link`.

    Args:
        prepared: the model, the profiles and the request.
        link: the link to compare them on.
        folder: gets a bundle for each.
        float_input: the float tensor that is computed from the picture; empty: it is not one.
        more: labels of more schemes, those of `SCHEMES`, all tensors raw.
        progress: called with a phrase before each step.

    Returns:
        The schemes, the simplest first, and a sentence for each that is left out.
    """
    model, graph = prepared.model, prepared.graph
    types = missing_types(model, graph)
    remarks: list[str] = []
    schemes: list[SchemeBundle] = []
    add = partial(_add, schemes)

    def write(label: str, make: Callable[[], Plan]) -> None:
        progress(f"planning {label}")
        try:
            plan = make()
        except InputError as error:
            remarks.append(f"{label} is left out: {error}.")
            return
        name = "".join(c if c.isalnum() else "-" for c in label.lower())
        add(label, write_bundle(model, graph, plan, folder / name, types))

    folder.mkdir(exist_ok=True)
    problem = prepared.problem(link)
    write(LOCAL, lambda: make_plan(problem, "local"))
    if float_input:
        progress("planning CO float")
        try:
            add("CO float", _with_floats(prepared, link, folder / "co-float", float_input))
        except InputError as error:  # like --keep-input
            remarks.append(f"CO float is left out: {error}.")
    write("CO bytes" if float_input else CLOUD, lambda: make_plan(problem, "cloud"))
    if float_input:
        with_jpeg = _with_jpeg(prepared, link, progress)
        if not with_jpeg:
            remarks.append("CO with jpeg was not tried: give photos with --calibration.")
        for label, only in with_jpeg.items():
            write(label, lambda only=only: make_plan(only, "cloud"))  # type: ignore[misc]
    for label in more:
        write(label, lambda label=label: make_plan(problem, SCHEMES[label]))  # type: ignore[misc]
    progress("planning the best split")
    best = write_split(prepared, folder / "best", progress)
    add(SPLIT, best, best.plan_set.at(link.up_bps))
    return schemes, remarks


def _add(schemes: list[SchemeBundle], label: str, bundle: Bundle, plan: int = 0) -> None:
    """Add a scheme, or only its label if another scheme has the same program."""
    new = SchemeBundle(label, bundle, plan)
    for index, known in enumerate(schemes):
        if known.followed.program == new.followed.program:
            # The last bundle has plans for other links, too; a local one needs no server.
            kept = known if known.is_local else new
            schemes[index] = replace(kept, label=f"{known.label} = {label}")
            return
    schemes.append(new)


def _with_floats(prepared: PlanningInputs, link: Link, path: Path, float_input: str) -> Bundle:
    """Cut after the preprocessing: the server gets the floats that the model was trained on."""
    request = replace(prepared.request, cut=(float_input,), links=(), link=link)
    request = replace(request, allowance=EncodingPolicy(parse_allowed("raw")))
    return write_split(prepare(request), path)


def _with_jpeg(
    prepared: PlanningInputs, link: Link, progress: Progress
) -> dict[str, PlanningProblem]:
    """By label, the problem with one quality of jpeg allowed; none without calibration inputs."""
    model, graph, request = prepared.model, prepared.graph, prepared.request
    if request.allowance.calibration is None:
        return {}
    samples = read_calibration(request.allowance.calibration, inputs_of(model, graph).values)
    allowed = parse_allowed(",".join(_JPEG.values()))
    types = missing_types(model, graph)
    table = cached_encodings(
        model, graph, samples, allowed, request.options, types, progress, again=request.again
    )
    return {
        label: prepared.problem(link, table=table.allowing(parse_allowed(name)[1:]))
        for label, name in _JPEG.items()
    }


def save_schemes(path: Path, schemes: list[SchemeBundle]) -> None:
    """Note which bundles beside the file are which schemes; `load_schemes` reads it."""
    rows = [(scheme.label, scheme.bundle.path.name, scheme.plan) for scheme in schemes]
    write_text(path, json.dumps(rows, indent=1))


def load_schemes(path: Path, folder: Path) -> list[SchemeBundle]:
    """Read what `save_schemes` wrote.

    Raises:
        BundleError, OSError: a bundle is missing or damaged.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [SchemeBundle(label, open_bundle(folder / name), plan) for label, name, plan in rows]
