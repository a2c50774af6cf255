"""`split --slowdown 1..4`: plans for a device that becomes slower while it runs."""

import json
from pathlib import Path

import pytest
from offload.bundle.bundle import open_bundle
from offload.costs.link import parse_link, parse_links
from offload.errors import InputError
from offload.planning.plan import Speeds
from offload_runtimes.measure.split import SplitRequest, parse_slowdowns
from offload_runtimes.measure.split import split as split_model

from tests.front_door.door import Door, two_layers

LINK = "300 kbit/s,1 ms"
SPEEDS = ("--device", "1e6", "--server", "1e9", "--encoding", "raw")


@pytest.fixture
def net(door: Door) -> str:
    """One product of matrices: 8 ms on the device, 16 ms on the link."""
    two_layers(door.folder / "net.onnx", 64)
    return "net.onnx"


def test_one_link_and_several_slow_downs(door: Door, net: str) -> None:
    split = door.json("split", net, "-o", "b", "--link", LINK, "--slowdown", "1..4", *SPEEDS)
    assert [plan["scheme"] for plan in split["plans"]] == ["local", "cloud"]
    assert [each["plan"] for each in split["ranges"]] == [0]
    assert [each["slowdown"] for each in split["slower"]] == [2.0, 4.0]
    assert split["slower"][1]["ranges"] == [{"low_bps": 0.0, "high_bps": None, "plan": 1}]
    manifest = json.loads((door.folder / "b" / "manifest.json").read_text())
    assert manifest["slower"] == split["slower"]
    local, cloud = open_bundle(door.folder / "b").plans
    slow = Speeds(device=4.0)
    link = parse_link(LINK)
    assert local.forecast.value_s(link) < cloud.forecast.value_s(link)
    assert cloud.forecast.value_s(link, slow) < local.forecast.value_s(link, slow)


def test_a_region_of_links_and_slow_downs_is_shown(door: Door, net: str) -> None:
    region = ("--link", "20..1000 kbit/s", "--points", "7", "--slowdown", "1..4")
    text = door.ok("split", net, "-o", "b", *region, *SPEEDS)
    assert "plans, for a device up to 4x slower than planned; with the device as planned" in text
    for device in ("as planned", "2x slower", "4x slower"):
        assert text.count(f"│ {device} ") == 1
    inspected = door.ok("inspect", "b")
    assert text.strip() in inspected
    assert "4x slower" in inspected
    split = door.json("inspect", "b")
    by_slowdown = [split["ranges"], *(each["ranges"] for each in split["slower"])]
    borders = [ranges[0]["high_bps"] for ranges in by_slowdown]
    assert borders == sorted(borders, reverse=True), "the slower the device, the more is sent"


def test_names_of_links_make_a_range(door: Door, net: str) -> None:
    split = door.json("split", net, "-o", "b", "--link", "3g..wifi", "--points", "3", *SPEEDS)
    assert split["plan"]["link"]["up_bps"] in {
        link.up_bps for link in parse_links("3g..wifi", parse_link("wifi"), 3)
    }
    said = door.refused("split", net, "-o", "none", "--link", "wifi..3g", *SPEEDS)
    assert said == "range 'wifi..3g' must go from the slower link to the faster one"


def test_plans_share_frames_at_every_slow_down(door: Door, net: str) -> None:
    words = ("--link", LINK, "--slowdown", "1..4", "--objective", "throughput", *SPEEDS)
    split = door.json("split", net, "-o", "b", *words)
    assert sum(split["mix"]["shares"]) == pytest.approx(1)
    assert len(split["slower"]) == 2
    alone = door.json("split", net, "-o", "one", *words, "--no-share")
    assert "mix" not in alone
    assert "shares" not in json.loads((door.folder / "one" / "manifest.json").read_text())
    assert len(alone["slower"]) == 2


@pytest.mark.door
def test_a_bundle_for_slower_devices_runs(door: Door, net: str) -> None:
    door.split_two_layers(64)
    door.ok("split", net, "-o", "b", "--link", LINK, "--slowdown", "1..4", *SPEEDS)
    with door.serving("b") as address:
        for number in ("0", "1"):
            run = ("run", "b", "--input", "in.npz", "--server", address, "--plan", number)
            assert door.json(*run)["plan"] == int(number)
    door.ok("verify", "b")


@pytest.mark.parametrize(
    "text",
    ["4..1", "0..2", "1..1", "1..", "..3", "1..2..3", "slow", "nan", "1..inf", "0", "-2", ""],
)
def test_wrong_slow_downs_are_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"--slowdown .* is not understood: write a factor"):
        parse_slowdowns(text)


def test_what_a_region_does_not_allow_is_one_sentence(door: Door, net: str) -> None:
    words = ("split", net, "-o", "none", "--link", LINK, *SPEEDS)
    assert "'4..1' is not understood" in door.refused(*words, "--slowdown", "4..1")
    region = (*words, "--slowdown", "1..4")
    said = door.refused(*region, "--pareto")
    assert said.startswith("--pareto is for one link and one slow-down: leave it out")
    energy = ("--objective", "energy", "--power", "2,3,1")
    assert "give one link and one slow-down with" in door.refused(*region, *energy)
    said = door.refused(*region, "--scheme", "local", "--deadline", "20 ms")
    assert said.startswith("on a link of ")
    assert "with the device 4x slower: " in said
    assert not (door.folder / "none").exists()


def test_the_python_function_plans_the_same_region(door: Door, net: str) -> None:
    words = ("--link", LINK, "--slowdown", "2..8", *SPEEDS, "--device", "2e6")
    split = door.json("split", net, "-o", "b", *words)
    request = SplitRequest(
        door.folder / net,
        parse_link(LINK),
        device=2e6,
        server=1e9,
        slowdown=2.0,
        slowdowns=parse_slowdowns("2..8"),
    )
    bundle = split_model(request, door.folder / "p")
    assert [plan.scheme for plan in bundle.plans] == [each["scheme"] for each in split["plans"]]
    assert [each.slowdown for each in bundle.plan_set.slower] == [2.0, 4.0]
    assert {plan.device for plan in bundle.plans} == {"0.002 GFLOP/s x2"}
    for wrong in ((3.0, 2.0), (1.0, 2.0), (-1.0,)):
        with pytest.raises(InputError, match="slow-downs must ascend from the first, 2, which"):
            SplitRequest(Path("net.onnx"), parse_link(LINK), slowdown=2.0, slowdowns=wrong)
