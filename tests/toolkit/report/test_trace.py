"""The Chrome trace holds every span in microseconds, one process a timeline."""

from offload.report.gantt import chrome_trace
from offload.scheduling.timeline import Lane, Span, Timeline


def test_trace_has_one_event_a_span() -> None:
    trace = chrome_trace(
        {
            "predicted": Timeline.of([Span(Lane.DEVICE, "a", 0.0, 0.5)]),
            "measured": Timeline.of([Span(Lane.UPLINK, "a", 0.5, 0.75)]),
        }
    )
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(e["pid"], e["tid"], e["cat"], e["ts"], e["dur"]) for e in spans] == [
        (1, 1, "device", 0.0, 500_000.0),
        (2, 2, "uplink", 500_000.0, 250_000.0),
    ]


def test_trace_names_its_processes_and_threads() -> None:
    trace = chrome_trace({"measured": Timeline(())})
    names = [e["args"]["name"] for e in trace["traceEvents"] if "name" in e["args"]]
    assert names == ["measured", "device", "uplink", "server", "downlink"]


def test_what_changed_is_an_instant() -> None:
    change = Span(Lane.DEVICE, "plan 0 -> plan 1", 0.0, 0.0)
    work = Span(Lane.DEVICE, "device-0", 0.0, 0.1)
    events = chrome_trace({"measured": Timeline.of([change, work])})["traceEvents"]
    assert [(e["ph"], e["name"]) for e in events if e["ph"] in "iX"] == [
        ("i", "plan 0 -> plan 1"),
        ("X", "device-0"),
    ]
