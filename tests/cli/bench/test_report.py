"""The report: its files agree, and its page opens in a browser."""

import csv
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from offload.errors import InputError
from offload.report.svg import COLOURS, SHORT
from offload_cli.bench.report import figures, write_report
from offload_cli.bench.results import Group

from tests.cli.bench.groups import group

NETWORKS = {"3g": "1.1 Mbit/s", "wifi": "18.88 Mbit/s"}
TIMES = {"local": 3.0, "cloud": 2.0, "cloud_raw": 0.7, "partition": 1.5, "opss": 1.2}
GROUPS = [
    group("opss", model, network, **TIMES, joint=1.1, auto_raw=0.7)
    for model in ("one <&> net", "another")
    for network in NETWORKS
] + [group("opss", "randwire_inside", "wifi", partition=2.0, opss=1.5)]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    assert write_report(made, GROUPS, NETWORKS, "how it was <measured>") == made / "index.html"
    return made


def test_json_csv_and_markdown_hold_the_same_cells(folder: Path) -> None:
    cells = [
        c for g in json.loads((folder / "results.json").read_text())["groups"] for c in g["cells"]
    ]
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == len(cells) == sum(len(g.cells) for g in GROUPS)
    key = ("model", "network", "scheme")
    medians = {tuple(c[k] for k in key): c["median_s"] for c in cells}
    assert {tuple(r[k] for k in key): float(r["median_s"]) for r in rows} == medians
    assert (folder / "results.md").read_text().count("| one <&> net |") >= len(TIMES)


def test_every_chart_is_xml_with_a_title_and_the_schemes_own_colours(folder: Path) -> None:
    charts = sorted(folder.glob("*.svg"))
    assert {c.name for c in charts} >= {"latency-3g.svg", "latency-wifi.svg", "overhead.svg"}
    for chart in charts:
        root = ET.parse(chart).getroot()
        assert root.get("aria-label")
    bars = ET.parse(folder / "latency-wifi.svg").getroot()
    hovers = [
        (rect.get("fill"), title.text or "")
        for rect in bars.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    ]
    colour_of = {SHORT[key]: COLOURS[key] for key in SHORT}
    assert len(hovers) == 2 * (len(TIMES) + 1)
    assert all(fill == colour_of[hover.partition(":")[0]] for fill, hover in hovers)


def test_bars_are_as_high_as_their_ratio_to_the_first(folder: Path) -> None:
    """The axis is logarithmic: a bar of half the time is as high as any other such bar."""
    chart = (folder / "latency-wifi.svg").read_text()
    high = {
        name: float(height)
        for height, name in re.findall(r'height="([\d.]+)" fill="#\w+"><title>([^:]+):', chart)
    }
    ratios = {"PO": TIMES["partition"] / TIMES["local"], "CO fp32": TIMES["cloud"] / TIMES["local"]}
    unit = high["PO"] / abs(math.log(ratios["PO"]))
    assert high["CO fp32"] == pytest.approx(unit * abs(math.log(ratios["CO fp32"])), rel=0.02)
    assert "LO = 1" in chart


def test_the_planners_picks_carry_a_mark(folder: Path) -> None:
    chart = (folder / "latency-wifi.svg").read_text()
    assert re.findall(r">([\d.]+)\*<", chart) == ["1.2", "1.2"]  # OPSS, in either model
    assert "* the planner&apos;s pick" in chart or "* the planner's pick" in chart


def test_no_label_is_wider_than_its_bar() -> None:
    quick = group("opss", "net", "wifi", local=0.0784, cloud=4.6, partition=0.0784, opss=0.9996)
    labels = re.findall(
        r'class="mid tiny">([^<]+)<', figures([quick], NETWORKS)["latency-wifi.svg"]
    )
    assert labels == ["0.08", "4.6", "0.08", "1.00*"]


def test_a_narrow_box_still_shows_its_colour(folder: Path) -> None:
    boxes = ET.parse(folder / "overhead.svg").getroot().iter(f"{SVG}rect")
    widths = [float(box.get("width", 0)) for box in boxes if box.find(f"{SVG}title") is not None]
    assert min(widths) >= 8


def test_a_group_survives_its_file(tmp_path: Path) -> None:
    GROUPS[0].save(tmp_path / "g.json")
    assert Group.load(tmp_path / "g.json") == GROUPS[0]
    (tmp_path / "g.json").write_text('{"cells": [{}]}')
    with pytest.raises(InputError, match="damaged"):
        Group.load(tmp_path / "g.json")


def test_the_page_needs_nothing_from_the_network(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    links = re.findall(r'href="([^"]*)"', page)
    assert all((folder / link).is_file() for link in links)
    assert not re.search(r"src\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert "how it was &lt;measured&gt;" in page


def test_the_cuts_of_the_picks_are_folded_and_linked(tmp_path: Path) -> None:
    (tmp_path / "cuts").mkdir()
    (tmp_path / "cuts/another-wifi-opss.svg").write_text("<svg>drawn</svg>")
    (tmp_path / "cuts/removed-wifi-opss.svg").write_text("<svg>of an earlier run</svg>")
    page = write_report(tmp_path, GROUPS, NETWORKS, "").read_text()
    assert page.count("<svg>drawn</svg>") == 1
    assert "of an earlier run" not in page
    assert 'href="cuts/another-wifi-opss.svg"' in page


def test_the_page_opens_in_a_browser_without_errors(folder: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no headless browser here")
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={tmp_path}", (folder / "index.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == len(list(folder.glob("*.svg")))
    assert done.stdout.count("<tr") > len(GROUPS)
