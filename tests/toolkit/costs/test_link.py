import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import HEADER_OVERHEAD, PRESETS, Link, load_link, parse_link, parse_links
from offload.errors import InputError
from offload.records import from_json


def test_presets_are_the_papers_networks() -> None:
    assert [PRESETS[name].up_bps for name in ("3g", "4g", "wifi")] == [1.1e6, 5.85e6, 18.88e6]
    assert parse_link("WiFi") == PRESETS["wifi"]


def test_upload_is_start_plus_bytes_over_bandwidth() -> None:
    link = parse_link("8 Mbit/s,10 ms")
    assert link.upload_s(1_000_000) == pytest.approx(0.010 + HEADER_OVERHEAD)
    assert link.download_s(0) == pytest.approx(0.010)


def test_directions_apart() -> None:
    link = parse_link("5 Mbit/s/20 Mbit/s,1 ms")
    assert (link.up_bps, link.down_bps, link.up_start_s) == (5e6, 20e6, 0.001)
    assert "up 5 Mbit/s" in link.describe()


@pytest.mark.parametrize("text", ["", "fast", "-3 Mbit/s", "20", "20 Mbit/s,soon", "0 Mbit/s"])
def test_nonsense_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match="not understood"):
        parse_link(text)


def test_ranges_are_even_by_ratio_and_keep_the_ratio_of_up_and_down() -> None:
    like = Link(1e6, 2e6, 0.01, 0.01)
    links = parse_links("1..1000 Mbit/s", like, 25)
    assert links[0].up_bps == pytest.approx(1e6)
    assert links[-1].up_bps == pytest.approx(1e9)
    assert {round(link.down_bps / link.up_bps, 9) for link in links} == {2.0}
    ratios = [b.up_bps / a.up_bps for a, b in itertools.pairwise(links)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert parse_links("500 kbit/s..1Mbit/s", like, 2)[0].up_bps == pytest.approx(5e5)
    slow, fast = parse_links("4G..wifi", like, 2)
    assert (slow.up_bps, fast.up_bps) == (PRESETS["4g"].up_bps, PRESETS["wifi"].up_bps)
    assert slow.down_bps == 2 * slow.up_bps
    assert parse_links("3g .. 2 Mbit/s", like, 2)[0].up_bps == PRESETS["3g"].up_bps
    for wrong in ("wifi..4g", "1..wifi", "wifi..", "1 Mbit/s", "5..1 Mbit/s", "1..2"):
        with pytest.raises(InputError):
            parse_links(wrong, like, 5)


@given(st.floats(1e3, 1e10), st.floats(1e3, 1e10), st.floats(0, 1), st.floats(1, 2))
def test_json_round_trip(up: float, down: float, start: float, overhead: float) -> None:
    link = Link(up, down, start, start, overhead, up_r2=0.99)
    assert Link.from_json(json.loads(json.dumps(link.to_json()))) == link


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_bandwidth_must_be_a_positive_number(rate: float) -> None:
    with pytest.raises(InputError):
        Link(rate, 1.0)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "link.json"
    with pytest.raises(InputError, match="does not exist"):
        load_link(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="not a link file"):
        load_link(path)
    path.write_text('{"format": 99}')
    with pytest.raises(InputError, match="another version"):
        load_link(path)
    path.write_text(json.dumps(PRESETS["4g"].to_json()))
    assert parse_link(str(path)) == PRESETS["4g"]


@pytest.mark.parametrize("value", [None, [], "wifi"])
def test_a_value_that_is_not_an_object_is_a_type_error(value: object) -> None:
    """So that a plan whose link is null can be read."""
    with pytest.raises(TypeError, match="object"):
        from_json(Link, value)
