import xml.etree.ElementTree as ET

from offload.report.page import Section, page


def test_page_is_well_formed_and_escapes_what_it_is_given() -> None:
    section = Section(
        "a < b", "wins & how", ("scheme", "time"), (("LO", "1 s"), ("<b>", "2 s")), 1, ("<svg/>",)
    )
    text = page("T & t", "intro", [section])
    root = ET.fromstring(
        text.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', "")
    )
    assert [cell.text for cell in root.iter("td")] == ["LO", "1 s", "<b>", "2 s"]
    assert [row.get("class") for row in root.iter("tr")] == [None, "", "best"]
    assert root.find(".//svg") is not None
    assert "http" not in text
