"""The plans of a bundle, as they are shown: when each is followed, and what it takes."""

import math
from collections.abc import Iterator
from dataclasses import replace

from offload.bundle.bundle import Bundle
from offload.bundle.write import sizes
from offload.planning.plan import Plan, Side
from offload.planning.plan_set import BandwidthRange
from offload.units import format_bps, format_bytes, format_s

from offload_cli.output import Output


def bundle_json(bundle: Bundle) -> dict[str, object]:
    """A bundle for scripts: where it is, what it is called, its plan, and all where several."""
    named = {"path": str(bundle.path), "digest": bundle.digest, "plan": bundle.plan.to_json()}
    return named | _plans_json(bundle)


def _plans_json(bundle: Bundle) -> dict[str, object]:
    if len(bundle.plans) == 1:
        return {}
    return {
        "plans": [plan.to_json() for plan in bundle.plans],
        "ranges": [r.to_json() for r in bundle.ranged.ranges],
        **_sizes_json(bundle),
    }


def _sizes_json(bundle: Bundle) -> dict[str, object]:
    if not all(map(bundle.holds, Side)):
        return {}
    found = sizes(bundle)
    return {"together_bytes": found.together_bytes, "separate_bytes": found.separate_bytes}


def plans_sentence(bundle: Bundle) -> str:
    """What the bundle is, in one line: the plan's reason if there is one."""
    if len(bundle.plans) == 1:
        return bundle.plan.reason
    borders = [format_bps(r.high_bps) for r in bundle.ranged.ranges[:-1]]
    return f"{len(bundle.plans)} plans, changing at {', '.join(borders)} up"


def show_plans(output: Output, bundle: Bundle) -> None:
    """The table of a bundle of several plans, and what sharing saves; nothing for one plan."""
    if len(bundle.plans) == 1:
        return
    output.table(
        ("up", "plan", "scheme", ">predicted there", ">layers on device", ">sent", "sends"),
        (_row(r, bundle.plans[r.plan]) for r in bundle.ranged.ranges),
    )
    if all(map(bundle.holds, Side)):
        found = sizes(bundle)
        output.text(
            f"  parts and weights: {format_bytes(found.together_bytes)} together,"
            f" {format_bytes(found.separate_bytes)} as a bundle a plan"
        )


def _row(where: BandwidthRange, plan: Plan) -> tuple[str, ...]:
    sent = [send.tensor for send in plan.uploads]
    more = f" and {len(sent) - 3} more" if len(sent) > 3 else ""
    return (
        _where(where),
        str(where.plan),
        plan.scheme,
        " to ".join(dict.fromkeys(_predicted(where, plan))),
        str(sum(len(segment.layers) for segment in plan.on(Side.DEVICE))),
        format_bytes(sum(send.size_bytes or 0 for send in plan.uploads)),
        ", ".join(sent[:3]) + more,
    )


def _where(where: BandwidthRange) -> str:
    if not where.low_bps:
        return f"below {format_bps(where.high_bps)}"
    if math.isinf(where.high_bps):
        return f"from {format_bps(where.low_bps)}"
    return f"{format_bps(where.low_bps)} to {format_bps(where.high_bps)}"


def _predicted(where: BandwidthRange, plan: Plan) -> Iterator[str]:
    """What it takes at the ends of its range; at an open end, on the link it was made for."""
    if plan.link is None or plan.forecast is None:
        yield format_s(plan.latency_s)
        return
    own, ratio = plan.link.up_bps, plan.link.down_bps / plan.link.up_bps
    low = where.low_bps or min(own, where.high_bps)
    high = max(own, where.low_bps) if math.isinf(where.high_bps) else where.high_bps
    for rate in (low, high):
        link = replace(plan.link, up_bps=rate, down_bps=rate * ratio)
        yield format_s(plan.forecast.latency_s(link))


def show_plan(output: Output, plan: Plan) -> None:
    """The comparison, and what runs where."""
    if plan.alternatives:  # else sizes were open, and nothing was predicted
        output.table(
            ("scheme", ">predicted", ">sent", ">layers on device", ">memory", ""),
            (
                (
                    a.scheme,
                    format_s(a.latency_s),
                    format_bytes(a.upload_bytes),
                    a.device_layers,
                    format_bytes(a.memory_bytes),
                    "chosen" if a.scheme == plan.scheme else "",
                )
                for a in plan.alternatives
            ),
        )
    for side in Side:
        for segment in plan.on(side):
            made = ", ".join(segment.outputs)
            output.text(f"  {segment.id}: {len(segment.layers)} layers -> {made}")
    if plan.latency_p95_s is not None:
        output.text(f"  95 of 100 inputs take at most {format_s(plan.latency_p95_s)}, as predicted")
    for send in plan.uploads:
        if send.encoding != "raw":
            raw = "" if send.tensor_bytes is None else f" (raw {format_bytes(send.tensor_bytes)})"
            size = format_bytes(send.size_bytes or 0)
            output.text(f"  sends {send.tensor} as {send.encoding}: {size}{raw}")
