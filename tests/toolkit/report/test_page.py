import xml.etree.ElementTree as ET

from offload.report.page import Section, page


def test_page_is_well_formed_and_escapes_what_it_is_given() -> None:
    section = Section(
        "a < b", "wins & how", ("scheme", "time"), (("LO", "1 s"), ("<b>", "2 s")), 1, ("<svg/>",)
    )
    text = page("T & t", "intro", [section])
    root = ET.fromstring(text.removeprefix("<!doctype html>\n"))
    assert [cell.text for cell in root.iter("td")] == ["LO", "1 s", "<b>", "2 s"]
    assert [row.get("class") for row in root.iter("tr")] == ["", "", "best"]
    assert root.find(".//svg") is not None
    assert "http" not in text


def test_only_columns_of_numbers_are_aligned_right() -> None:
    rows = (("LO", "1 s", "+3 %", "a word"), ("PO", "", "-1 %", "2 words"))
    root = ET.fromstring(
        page("t", "", [Section("s", "", ("scheme", "time", "off", "why"), rows)]).removeprefix(
            "<!doctype html>\n"
        )
    )
    kinds = ["", "number", "number", ""]
    assert [cell.get("class") for cell in root.iter("th")] == kinds
    assert [cell.get("class") for cell in root.iter("td")] == kinds * 2
