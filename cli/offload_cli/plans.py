"""Print the plans of a bundle: bandwidths and slow-downs of each, what runs where, what is sent."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace

from offload.bundle.bundle import Bundle
from offload.bundle.write import sizes
from offload.costs.link import Link
from offload.planning.batch import BatchShares, share_batch
from offload.planning.plan import Plan, Side, Speeds
from offload.planning.plan_set import BandwidthRange
from offload.planning.shares import SharedRate, share_frames
from offload.records import to_json
from offload.units import format_bps, format_bytes, format_s

from offload_cli.output import Output


def bundle_json(bundle: Bundle) -> dict[str, object]:
    """A bundle as JSON: path, digest and plan; all plans and their ranges if there are several.

    With plans for slower devices, also the ranges of each slow-down. With plans that share a
    stream's frames, also their shares and the frames per second. With a batch whose rows plans may
    share, also the micro-batches of the planned batch.
    """
    value: dict[str, object] = {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "plan": bundle.plan.to_json(),
    }
    if has_table(bundle):
        value["plans"] = [plan.to_json() for plan in bundle.plans]
        value["ranges"] = [interval.to_json() for interval in bundle.plan_set.ranges]
        if bundle.plan_set.slower:
            value["slower"] = to_json(bundle.plan_set.slower)
        if bundle.shares:
            value["mix"] = {
                "shares": list(bundle.shares),
                "links": [_mix_json(bundle, link) for link in planned_links(bundle)],
            }
        if all(map(bundle.holds, Side)):
            value["together_bytes"], value["separate_bytes"] = sizes(bundle)
    if bundle.rows and (links := planned_links(bundle)):
        value["batch"] = [_batch_json(bundle, link) for link in links]
    return value


def batch_on(bundle: Bundle, link: Link) -> BatchShares:
    """How the plans of a bundle share the rows of the planned batch on a link."""
    return share_batch(bundle.plans, bundle.rows, bundle.rows, link)


def _batch_json(bundle: Bundle, link: Link) -> dict[str, object]:
    shared = batch_on(bundle, link)
    return {
        "link": link.to_json(),
        "rows": bundle.rows,
        "is_shared": shared.is_certain,
        "micro_batches": list(map(asdict, shared.micro_batches)) if shared.is_certain else [],
        "latency_s": shared.latency_s if shared.is_certain else shared.single_s,
        "single_plan": shared.single,
        "single_latency_s": shared.single_s,
        "ratio": shared.ratio if shared.is_certain else 1.0,
    }


def planned_links(bundle: Bundle) -> list[Link]:
    """The links for which the bundle's plans were made, slowest first."""
    links = {plan.link: plan.link for plan in bundle.plans if plan.link}
    return sorted(links, key=lambda link: link.up_bps)


def mix_on(bundle: Bundle, link: Link) -> tuple[SharedRate, float]:
    """The best shares of a bundle's plans on a link, and frames per second of its best plan."""
    uses = [plan.forecast.use(link) for plan in bundle.plans]
    return share_frames(uses), 1 / min(use.period_s for use in uses)


def _mix_json(bundle: Bundle, link: Link) -> dict[str, object]:
    shared, single_hz = mix_on(bundle, link)
    return {
        "link": link.to_json(),
        "shares": list(shared.shares),
        "frames_per_s": shared.rate_hz,
        "single_frames_per_s": single_hz,
        "ratio": shared.rate_hz / single_hz,
    }


def plans_sentence(bundle: Bundle) -> str:
    """One line: the plan's reason, or the number of plans and the bandwidths between them."""
    borders = ", ".join(format_bps(each.high_bps) for each in bundle.plan_set.ranges[:-1])
    slower = bundle.plan_set.slower
    if not (borders or slower):
        return bundle.plan.reason
    count = f"{len(bundle.plans)} plan{'s' if len(bundle.plans) > 1 else ''}"
    sharing = " that share a stream's frames" if bundle.shares else ""
    if not slower:
        return f"{count}{sharing}, changing at {borders} up"
    region = f"for a device up to {slower[-1].slowdown:.3g}x slower than planned"
    changing = f"; with the device as planned, they change at {borders} up" if borders else ""
    return f"{count}{sharing}, {region}{changing}"


def has_table(bundle: Bundle) -> bool:
    """Whether a table is needed: for several plans, or for several slow-downs."""
    return len(bundle.plans) > 1 or bool(bundle.plan_set.slower)


def show_plans(output: Output, bundle: Bundle) -> None:
    """Print how a batch is shared, tables of several plans, and bytes that common parts save."""
    if bundle.rows > 1:
        for link in planned_links(bundle):
            output.text(f"  {_batch_sentence(bundle, link)}")
    if not has_table(bundle):
        return
    if len(bundle.plan_set.ranges) > 1 or bundle.plan_set.slower:
        _show_ranges(output, bundle)
    if bundle.shares:
        _show_mix(output, bundle)
    if all(map(bundle.holds, Side)):
        together_bytes, separate_bytes = sizes(bundle)
        output.text(
            f"  parts and weights: {format_bytes(together_bytes)} together,"
            f" {format_bytes(separate_bytes)} as one bundle per plan"
        )


def _batch_sentence(bundle: Bundle, link: Link) -> str:
    """How the planned batch is shared on a link, and what that gains."""
    shared = batch_on(bundle, link)
    batch = f"a batch of {bundle.rows} rows on {link.describe()}"
    if not shared.is_certain:
        return (
            f"{batch}: plan {shared.single} computes all rows in {format_s(shared.single_s)};"
            " sharing them gains less than the prediction error"
        )
    computed = []
    for number, rows in enumerate(shared.rows_by_plan(len(bundle.plans))):
        count = sum(each.plan == number for each in shared.micro_batches)
        if rows:
            several = f" in {count} micro-batches" if count > 1 else ""
            computed.append(f"{rows} by plan {number} ({bundle.plans[number].scheme}){several}")
    return (
        f"{batch}: {', '.join(computed)}: {format_s(shared.latency_s)}, {shared.ratio:.2f}x faster"
        f" than plan {shared.single} alone ({format_s(shared.single_s)})"
    )


def _show_ranges(output: Output, bundle: Bundle) -> None:
    """Print which plan is best at which bandwidth, and for each slow-down if there are several."""
    plan_set = bundle.plan_set
    intervals = [(1.0, interval) for interval in plan_set.ranges]
    intervals += [(each.slowdown, interval) for each in plan_set.slower for interval in each.ranges]
    rows = []
    shown = 0.0
    for slowdown, interval in intervals:
        plan = bundle.plans[interval.plan]
        tensors = [send.tensor for send in plan.uploads]
        row = (
            _bandwidths(interval),
            interval.plan,
            plan.scheme,
            " to ".join(dict.fromkeys(_predicted(interval, plan, slowdown))),
            sum(len(segment.layers) for segment in plan.on(Side.DEVICE)),
            format_bytes(sum(send.size_bytes or 0 for send in plan.uploads)),
            first_few(tensors),
        )
        device = "as planned" if slowdown == 1 else f"{slowdown:.3g}x slower"
        rows.append(((device if slowdown != shown else ""), *row) if plan_set.slower else row)
        shown = slowdown
    heads = ("up", "plan", "scheme", ">predicted there", ">layers on device", ">sent", "sends")
    output.table(("device", *heads) if plan_set.slower else heads, rows)


def _show_mix(output: Output, bundle: Bundle) -> None:
    """Print the share of each plan, what a frame uses, and the frames per second on each link."""
    links = planned_links(bundle)
    middle = links[len(links) // 2]
    uses = [plan.forecast.use(middle) for plan in bundle.plans]
    output.table(
        ("plan", "scheme", ">share", ">device", ">uplink", ">server", ">downlink", ">frames/s"),
        (
            (
                number,
                plan.scheme,
                f"{share:.0%}",
                *(format_s(seconds) if seconds else "" for seconds in use.seconds),
                f"{1 / use.period_s:.3g}",
            )
            for number, (plan, share, use) in enumerate(
                zip(bundle.plans, bundle.shares, uses, strict=True)
            )
        ),
        title=f"shares of a stream's frames, and seconds of a frame on {middle.describe()}",
    )
    if len(links) > 1:
        rows = []
        for link in links:
            shared, single_hz = mix_on(bundle, link)
            shares = (f"{share:.0%} plan {n}" for n, share in enumerate(shared.shares) if share)
            figures = (f"{hz:.3g}" for hz in (single_hz, shared.rate_hz))
            gain = f"{shared.rate_hz / single_hz:.2f}x"
            rows.append((link.describe(), *figures, gain, ", ".join(shares)))
        title = "frames/s, device as planned" if bundle.plan_set.slower else "frames/s"
        output.table(("link", ">one plan", ">shared", ">gain", "frames"), rows, title=title)


def first_few(names: list[str] | tuple[str, ...]) -> str:
    """The first three names and the number of others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bandwidths(interval: BandwidthRange) -> str:
    if not interval.low_bps:
        if math.isinf(interval.high_bps):
            return "any"
        return f"below {format_bps(interval.high_bps)}"
    if math.isinf(interval.high_bps):
        return f"from {format_bps(interval.low_bps)}"
    return f"{format_bps(interval.low_bps)} to {format_bps(interval.high_bps)}"


def _predicted(interval: BandwidthRange, plan: Plan, slowdown: float) -> Iterator[str]:
    """Latency at both ends of an interval; at an open end, on the link the plan was made for."""
    if plan.link is None:
        yield format_s(plan.latency_s)
        return
    speeds = Speeds(device=slowdown)
    up_bps, ratio = plan.link.up_bps, plan.link.down_bps / plan.link.up_bps
    low_bps = interval.low_bps or min(up_bps, interval.high_bps)
    is_open = math.isinf(interval.high_bps)
    high_bps = max(up_bps, interval.low_bps) if is_open else interval.high_bps
    for rate_bps in (low_bps, high_bps):
        link = replace(plan.link, up_bps=rate_bps, down_bps=rate_bps * ratio)
        yield format_s(plan.forecast.latency_s(link, speeds))


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
