"""`offload inspect BUNDLE --html --svg`: the cut as a picture, in a browser."""

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.front_door.door import ESTIMATED, Door
from tests.toolkit.bundle.several import funnel

# The slow link is for the device alone, the fast one for the server.
RANGE = ("--link", "0.01..1000 Mbit/s", "--encoding", "raw")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
MOVE = """<script>
const input = document.querySelector("input");
input.value = VALUE;
input.dispatchEvent(new Event("input"));
document.querySelector("[data-block]").dispatchEvent(new Event("pointerenter"));
</script>"""


def bundle_of_several(door: Door) -> None:
    funnel(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *RANGE, *ESTIMATED[:1], "1e6", *ESTIMATED[2:])


def test_inspect_writes_a_page_and_a_picture(door: Door) -> None:
    door.split_two_layers()
    done = door.offload("inspect", "b", "--html", "cut.html", "--svg", "cut.svg")
    assert done.returncode == 0, done.stderr
    assert "wrote cut.html" in done.stderr
    svg = (door.folder / "cut.svg").read_text()
    ET.fromstring(svg)
    page = (door.folder / "cut.html").read_text()
    for text in (svg, page):
        assert "↑1 h" in text
        assert "32 B raw" in text
    assert 'class="block device"' in page
    assert 'class="block server"' in page


def test_what_cannot_be_drawn_is_refused(door: Door) -> None:
    door.split_two_layers()
    assert "is not a bundle" in door.refused("inspect", "net.onnx", "--html", "cut.html")
    assert "has no plan 1" in door.refused("inspect", "b", "--svg", "cut.svg", "--plan", "1")
    assert "nowhere" in door.refused("inspect", "b", "--html", "nowhere/cut.html")
    door.ok("deploy", "b", "./pi", "--side", "device")
    sentence = door.refused("inspect", "pi/current", "--html", "cut.html")
    assert "take the bundle that `offload split` wrote" in sentence
    assert not (door.folder / "cut.html").exists()


@pytest.mark.door
def test_the_slider_moves_the_cut_in_a_browser(door: Door) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no headless browser here")
    bundle_of_several(door)
    door.ok("inspect", "b", "--html", "cut.html")
    page = (door.folder / "cut.html").read_text()

    def shown(value: int) -> str:
        moved = door.folder / "moved.html"
        moved.write_text(page.replace("</body>", MOVE.replace("VALUE", str(value)) + "</body>"))
        profile = door.folder / f"profile-{value}"
        done = subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={profile}", moved.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
        return done.stdout

    slow, fast = shown(0), shown(60)
    assert 'class="block server"' not in slow
    assert "nothing is sent" in slow
    assert 'class="block device"' not in fast
    assert "The device computes no layer and sends 1 tensor" in fast
    assert '<div class="cut-card" style=' in fast, "the layers of a block are shown"
    assert Path(door.folder / "cut.html").stat().st_size < 2_000_000
