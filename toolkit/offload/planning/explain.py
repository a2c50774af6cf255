"""Explain in one sentence which plan was chosen and why, or why no plan is possible."""

from collections.abc import Callable, Sequence

from offload.planning.plan import Alternative
from offload.planning.problem import Objective, PlanningProblem
from offload.units import format_bytes, format_s

TITLES = {
    "local": "all on the device",
    "cloud": "all on the server",
    "neurosurgeon": "split at one tensor, nothing overlapped",
    "partition": "split, nothing overlapped",
    "opss": "split, uploads overlapped",
    "joint": "split so that uploads overlap best",
}
_ROUNDING = 1e-9


def explain(
    alternatives: Sequence[Alternative],
    chosen: str,
    objective: Objective = Objective.LATENCY,
    refused: Sequence[Alternative] = (),
    doubtful: Sequence[str] = (),
) -> str:
    """One sentence for a person: the chosen scheme, its figure, and the next best scheme.

    Args:
        alternatives: everything compared that keeps the limits.
        chosen: scheme of the plan that will run, which may be forced and not the best.
        objective: the quantity that was minimised.
        refused: what was compared too, but breaks a limit.
        doubtful: schemes that are better by less than the prediction error.
    """
    figure, shown = _FIGURES[objective]
    plan = next(a for a in alternatives if a.scheme == chosen)
    value = figure(plan)
    certain = sorted((a for a in alternatives if a.scheme not in doubtful), key=figure)
    slower = [a for a in certain if figure(a) > value * (1 + _ROUNDING)]
    if figure(certain[0]) < value * (1 - _ROUNDING):
        sentence = (
            f"{_title(plan)} was asked for and takes {shown(plan)};"
            f" {_title(certain[0])} would take {shown(certain[0])}"
        )
    elif slower:
        word = "less" if objective is Objective.ENERGY else "faster"
        gain = f"{figure(slower[0]) / value:.2f}x {word}" if value else word
        sentence = (
            f"{_title(plan)} wins at {shown(plan)}, {gain} than {_title(slower[0])}"
            f" ({shown(slower[0])}): {_why(plan)}"
        )
    else:
        sentence = f"{_title(plan)} ties with every other feasible scheme at {shown(plan)}"
    near = [a for a in alternatives if a.scheme in doubtful]
    if near:
        best = min(near, key=figure)
        sentence += (
            f"; {_title(best)} is predicted to take {shown(best)}, which is better but within the"
            " prediction error"
        )
    better = [a for a in refused if figure(a) < value]
    if better:
        best = min(better, key=figure)
        sentence += f"; {_title(best)} would take {shown(best)} but breaks a limit"
    return sentence + "."


def format_j(joules: float) -> str:
    """Joules for people: `1.25 J`, `310 mJ`."""
    return f"{joules:.3g} J" if joules >= 1 else f"{joules * 1e3:.3g} mJ"


# By objective: the figure that is compared, and how it is written.
_FIGURES: dict[Objective, tuple[Callable[[Alternative], float], Callable[[Alternative], str]]] = {
    Objective.LATENCY: (lambda a: a.latency_s, lambda a: format_s(a.latency_s)),
    Objective.THROUGHPUT: (lambda a: a.period_s, lambda a: f"{format_s(a.period_s)} a frame"),
    Objective.ENERGY: (lambda a: a.energy_j or 0.0, lambda a: format_j(a.energy_j or 0.0)),
}


def _title(alternative: Alternative) -> str:
    return f"{TITLES.get(alternative.scheme, alternative.scheme)} ({alternative.scheme})"


def _why(plan: Alternative) -> str:
    sent = format_bytes(plan.upload_bytes)
    if plan.scheme == "local":
        return "no cut saves more device time than its upload costs"
    if plan.scheme == "cloud":
        return f"uploading the {sent} of input costs less than computing a layer on the device"
    if plan.scheme in ("neurosurgeon", "partition"):
        return f"the cut sends {sent}, and there is nothing to overlap"
    count = len(plan.cut)
    return f"{count} tensor{'s'[: count != 1]} ({sent}) are uploaded while the device computes"


def impossible(
    problem: PlanningProblem, nearest: Sequence[Alternative], scheme: str = "auto"
) -> str:
    """One sentence: the limits that no plan keeps, and the least that the nearest plans need.

    `scheme` may be `auto`, `the cut` for a forced one, or a scheme's name.
    """
    limits, needs, constraints = [], [], problem.constraints
    if problem.pinned:
        count = len(problem.pinned)
        limits.append(f"{count} layer{'s'[: count != 1]} pinned to the device")
    for text, limit, figures, shown in (
        ("memory", constraints.memory_bytes, [a.memory_bytes for a in nearest], format_bytes),
        ("deadline", constraints.deadline_s, [a.latency_s for a in nearest], format_s),
        ("period", constraints.period_s, [a.period_s for a in nearest], format_s),
        ("energy", constraints.energy_j, [a.energy_j or 0.0 for a in nearest], format_j),
    ):
        if limit is not None:
            limits.append(f"{text} {shown(limit)}")
            needs += [f"{text} {shown(min(figures))}"] if figures else []
    if not limits:
        return f"scheme {scheme!r} cannot run this model: the size of an input is not known"
    subjects = {"auto": "no plan keeps", "the cut": "the requested cut does not keep"}
    subject = subjects.get(scheme, f"scheme {scheme!r} does not keep")
    least = f" (the least found: {', '.join(needs)})" if needs else ""
    return f"{subject} the limits {', '.join(limits)}{least}: loosen one"
