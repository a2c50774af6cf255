"""Made-up results for the tests of goals and reports."""

from offload.scheduling.timeline import Lane, Span, Timeline
from offload_cli.bench.results import Cell, Group

SETTINGS = {"slowdown": 10.0, "repeats": 3, "link": "made up"}


def cell(
    scheme: str,
    seconds_s: float,
    *,
    model: str = "net",
    network: str = "wifi",
    picked: bool = False,
    difference: float = 0.0,
    predicted_s: float | None = None,
) -> Cell:
    line = Timeline((Span(Lane.DEVICE, "device-0", 0.0, seconds_s),))
    return Cell(
        model=model,
        network=network,
        scheme=scheme,
        runs_as=scheme,
        picked=picked,
        predicted_s=seconds_s if predicted_s is None else predicted_s,
        latencies_s=(seconds_s, seconds_s * 1.001, seconds_s * 0.999),
        upload_bytes=1000,
        cut=("t",),
        energy_j=1.5,
        difference=difference,
        predicted=line,
        measured=line,
    )


def group(picked: str = "opss", model: str = "net", network: str = "wifi", **times: float) -> Group:
    cells = tuple(
        cell(
            scheme.replace("_", "-"),
            seconds,
            model=model,
            network=network,
            picked=scheme in (picked, "auto_raw"),
        )
        for scheme, seconds in times.items()
    )
    return Group(SETTINGS, cells, {"paper": (1e-3, 2e-3), "opss": (2e-3,), "joint": (1e-2,)})
