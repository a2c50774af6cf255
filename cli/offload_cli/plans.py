"""Print the plans of a bundle: the bandwidths each is for, what runs where, what is sent."""

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
    """A bundle as JSON: path, digest and plan; all plans and their ranges if there are several."""
    value: dict[str, object] = {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "plan": bundle.plan.to_json(),
    }
    if len(bundle.plans) > 1:
        value["plans"] = [plan.to_json() for plan in bundle.plans]
        value["ranges"] = [interval.to_json() for interval in bundle.plan_set.ranges]
        if all(map(bundle.holds, Side)):
            value["together_bytes"], value["separate_bytes"] = sizes(bundle)
    return value


def plans_sentence(bundle: Bundle) -> str:
    """One line: the plan's reason, or the number of plans and the bandwidths between them."""
    if len(bundle.plans) == 1:
        return bundle.plan.reason
    borders = [format_bps(interval.high_bps) for interval in bundle.plan_set.ranges[:-1]]
    return f"{len(bundle.plans)} plans, changing at {', '.join(borders)} up"


def show_plans(output: Output, bundle: Bundle) -> None:
    """Print a table of the plans and the bytes that sharing saves; nothing for one plan."""
    if len(bundle.plans) == 1:
        return
    rows = []
    for interval in bundle.plan_set.ranges:
        plan = bundle.plans[interval.plan]
        tensors = [send.tensor for send in plan.uploads]
        rows.append(
            (
                _bandwidths(interval),
                interval.plan,
                plan.scheme,
                " to ".join(dict.fromkeys(_predicted(interval, plan))),
                sum(len(segment.layers) for segment in plan.on(Side.DEVICE)),
                format_bytes(sum(send.size_bytes or 0 for send in plan.uploads)),
                first_few(tensors),
            )
        )
    output.table(
        ("up", "plan", "scheme", ">predicted there", ">layers on device", ">sent", "sends"), rows
    )
    if all(map(bundle.holds, Side)):
        together_bytes, separate_bytes = sizes(bundle)
        output.text(
            f"  parts and weights: {format_bytes(together_bytes)} together,"
            f" {format_bytes(separate_bytes)} as one bundle per plan"
        )


def first_few(names: list[str] | tuple[str, ...]) -> str:
    """The first three names and the number of others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bandwidths(interval: BandwidthRange) -> str:
    if not interval.low_bps:
        return f"below {format_bps(interval.high_bps)}"
    if math.isinf(interval.high_bps):
        return f"from {format_bps(interval.low_bps)}"
    return f"{format_bps(interval.low_bps)} to {format_bps(interval.high_bps)}"


def _predicted(interval: BandwidthRange, plan: Plan) -> Iterator[str]:
    """Latency at both ends of an interval; at an open end, on the link the plan was made for."""
    if plan.link is None:
        yield format_s(plan.latency_s)
        return
    up_bps, ratio = plan.link.up_bps, plan.link.down_bps / plan.link.up_bps
    low_bps = interval.low_bps or min(up_bps, interval.high_bps)
    is_open = math.isinf(interval.high_bps)
    high_bps = max(up_bps, interval.low_bps) if is_open else interval.high_bps
    for rate_bps in (low_bps, high_bps):
        link = replace(plan.link, up_bps=rate_bps, down_bps=rate_bps * ratio)
        yield format_s(plan.forecast.latency_s(link))


def show_plan(output: Output, plan: Plan) -> None:
    """Print the compared schemes, the segments on each side, and encoded uploads."""
    if plan.alternatives:  # empty if input sizes were open: nothing was predicted
        output.table(
            ("scheme", ">predicted", ">sent", ">layers on device", ">memory", ""),
            (
                (
                    figures.scheme,
                    format_s(figures.latency_s),
                    format_bytes(figures.upload_bytes),
                    figures.device_layers,
                    format_bytes(figures.memory_bytes),
                    "chosen" if figures.scheme == plan.scheme else "",
                )
                for figures in plan.alternatives
            ),
        )
    for side in Side:
        for segment in plan.on(side):
            outputs = ", ".join(segment.outputs)
            output.text(f"  {segment.id}: {len(segment.layers)} layers -> {outputs}")
    if plan.latency_p95_s is not None:
        output.text(f"  predicted for 95 of 100 inputs: at most {format_s(plan.latency_p95_s)}")
    for send in plan.uploads:
        if send.encoding != "raw":
            raw = "" if send.tensor_bytes is None else f" (raw {format_bytes(send.tensor_bytes)})"
            size = format_bytes(send.size_bytes or 0)
            output.text(f"  sends {send.tensor} as {send.encoding}: {size}{raw}")
