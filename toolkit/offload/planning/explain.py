"""Say in one sentence which plan wins and why, or why none is possible."""

from collections.abc import Sequence

from offload.planning.constraints import Constraints, Objective
from offload.planning.plan import Alternative
from offload.units import format_bytes, format_s

TITLES = {
    "local": "all on the device",
    "cloud": "all on the server",
    "neurosurgeon": "split at one tensor, nothing overlapped",
    "partition": "split, nothing overlapped",
    "opss": "split, uploads overlapped",
    "joint": "split so that uploads overlap best",
}


def explain(
    alternatives: Sequence[Alternative],
    chosen: str,
    objective: Objective = Objective.LATENCY,
    refused: Sequence[Alternative] = (),
    doubtful: Sequence[str] = (),
) -> str:
    """One sentence for a person: the chosen scheme, its figure, and what it beats.

    Args:
        alternatives: everything compared that keeps the limits.
        chosen: scheme of the plan that will run, which may be forced and not the best.
        objective: what was to be smallest.
        refused: what was compared too, but breaks a limit.
        doubtful: schemes that are better by less than predictions may be off by.
    """
    said = _said([a for a in alternatives if a.scheme not in doubtful], chosen, objective)
    plan = next(a for a in alternatives if a.scheme == chosen)
    near = [a for a in alternatives if a.scheme in doubtful]
    if near:
        best = min(near, key=lambda a: _figure(a, objective))
        said = (
            f"{said.removesuffix('.')}; {_title(best)} is predicted to take"
            f" {_shown(best, objective)}, which is better by less than predictions may be off by."
        )
    better = [a for a in refused if _figure(a, objective) < _figure(plan, objective)]
    if not better:
        return said
    best = min(better, key=lambda a: _figure(a, objective))
    return (
        f"{said.removesuffix('.')}; {_title(best)} would take {_shown(best, objective)} but breaks"
        " a limit."
    )


def _said(alternatives: Sequence[Alternative], chosen: str, objective: Objective) -> str:
    plan = next(a for a in alternatives if a.scheme == chosen)
    figure = _figure(plan, objective)
    best = min(alternatives, key=lambda a: _figure(a, objective))
    if _figure(best, objective) < figure * (1 - 1e-9):
        return (
            f"{_title(plan)} was asked for and takes {_shown(plan, objective)};"
            f" {_title(best)} would take {_shown(best, objective)}."
        )
    others = [a for a in alternatives if _figure(a, objective) > figure * (1 + 1e-9)]
    if not others:
        return f"{_title(plan)} takes {_shown(plan, objective)}, as all alternatives left do."
    second = min(others, key=lambda a: _figure(a, objective))
    return (
        f"{_title(plan)} wins at {_shown(plan, objective)}, {_gain(plan, second, objective)} than"
        f" {_title(second)} ({_shown(second, objective)}): {_because(plan)}."
    )


def _figure(alternative: Alternative, objective: Objective) -> float:
    if objective is Objective.THROUGHPUT:
        return alternative.period_s
    if objective is Objective.ENERGY:
        return alternative.energy_j or 0.0
    return alternative.latency_s


def _shown(alternative: Alternative, objective: Objective) -> str:
    if objective is Objective.THROUGHPUT:
        return f"{format_s(alternative.period_s)} a frame"
    if objective is Objective.ENERGY:
        return format_j(alternative.energy_j or 0.0)
    return format_s(alternative.latency_s)


def format_j(joules: float) -> str:
    """Joules for people: `1.25 J`, `310 mJ`."""
    return f"{joules:.3g} J" if joules >= 1 else f"{joules * 1e3:.3g} mJ"


def _gain(plan: Alternative, second: Alternative, objective: Objective) -> str:
    word = "less" if objective is Objective.ENERGY else "faster"
    figure = _figure(plan, objective)
    return f"{_figure(second, objective) / figure:.2f}x {word}" if figure else word


def _title(alternative: Alternative) -> str:
    return f"{TITLES.get(alternative.scheme, alternative.scheme)} ({alternative.scheme})"


def _because(plan: Alternative) -> str:
    sent = format_bytes(plan.upload_bytes)
    if plan.scheme == "local":
        return "no cut saves more device time than its upload costs"
    if plan.scheme == "cloud":
        return f"sending the {sent} of input costs less than computing any layer here first"
    if plan.scheme in ("neurosurgeon", "partition"):
        return f"the cut sends {sent}, and there is nothing to overlap"
    count = len(plan.cut)
    return f"{count} tensor{'s'[: count != 1]} ({sent}) go up while the device computes on"


def impossible(demand: Constraints, asked: Sequence[Alternative], scheme: str = "auto") -> str:
    """One sentence: which limits no plan keeps, and what the nearest plans need.

    `scheme` may be `auto`, `the cut` for a forced one, or a scheme's name.
    """
    limits, needs = [], []
    if demand.pinned:
        count = len(demand.pinned)
        limits.append(f"{count} layer{'s'[: count != 1]} pinned to the device")
    for text, limit, figures, shown in (
        ("memory", demand.memory_bytes, [a.memory_bytes for a in asked], format_bytes),
        ("deadline", demand.deadline_s, [a.latency_s for a in asked], format_s),
        ("period", demand.period_s, [a.period_s for a in asked], format_s),
        ("energy", demand.energy_j, [a.energy_j or 0.0 for a in asked], format_j),
    ):
        if limit is not None:
            limits.append(f"{text} {shown(limit)}")
            needs += [f"{text} {shown(min(figures))}"] if figures else []
    others = {"auto": "no plan keeps", "the cut": "the cut asked for does not keep"}
    who = others.get(scheme, f"scheme {scheme!r} does not keep")
    nearest = f" (the least found: {', '.join(needs)})" if needs else ""
    return f"{who} the limits {', '.join(limits) or 'asked for'}{nearest}: loosen one"
