"""`offload schedule`: its JSON, its charts, its errors."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from offload.scheduling.solve import SOLVERS
from offload_cli.main import app
from typer.testing import CliRunner

LAYERS = {
    "r": {"compute_s": 0},
    "v": {"compute_s": 10},
    "b": {"compute_s": 8, "upload_s": 4},
    "c": {"compute_s": 1, "upload_s": 2},
    "d": {"compute_s": 5, "upload_s": 100},
}
EDGES = [["r", "v"], ["r", "b"], ["v", "c"], ["v", "d"]]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"layers": LAYERS, "edges": EDGES}))
    return path


def test_json_keeps_the_contract(graph: Path) -> None:
    shown = CliRunner().invoke(app, ["schedule", str(graph), "--format", "json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == {
        "order": ["r", "v", "c", "d", "b"],
        "makespan_s": 120.0,
        "lower_bound_s": 120.0,
        "status": "optimal",
        "solver": "optimal",
    }


def test_a_solver_can_be_chosen(graph: Path) -> None:
    asked = ["schedule", str(graph), "--solver", "tree-merge", "--format", "json"]
    answer = json.loads(CliRunner().invoke(app, asked).stdout)
    assert (answer["solver"], answer["makespan_s"]) == ("tree-merge", 124.0)


def test_compare_lists_every_solver(graph: Path) -> None:
    asked = ["schedule", str(graph), "--compare", "--format", "json"]
    rows = {
        row["solver"]: row for row in json.loads(CliRunner().invoke(app, asked).stdout)["compare"]
    }
    assert rows.keys() == SOLVERS.keys()
    assert rows["optimal"]["gap"] == 0
    assert rows["tree-merge"]["gap"] == pytest.approx(4 / 120)
    assert "refused" in rows["johnson"]


def test_text_shows_the_chart_and_the_certificate(graph: Path) -> None:
    shown = CliRunner().invoke(app, ["schedule", str(graph), "--compare"]).stdout
    assert "order: r, v, c, d, b" in shown
    assert "makespan: 120 s, proved optimal" in shown
    assert "\nuplink " in shown
    assert "not for this graph" in shown


def test_charts_are_written_whole(graph: Path, tmp_path: Path) -> None:
    svg, trace = tmp_path / "chart.svg", tmp_path / "trace.json"
    asked = ["schedule", str(graph), "--svg", str(svg), "--trace", str(trace)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    ET.parse(svg)
    assert len([e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chart.svg", "graph.json", "trace.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must be a JSON object"),
        ("{}", "'layers' must be a JSON object, not missing"),
        ('{"layers": {}}', "no layers"),
        ('{"layers": {"a": {}}}', "compute_s of layer 'a' must be a number of seconds"),
        ('{"layers": {"a": {"compute_s": -1}}}', "compute_s of layer 'a' is -1.0"),
        ('{"layers": {"a": {"compute_s": NaN}}}', "compute_s of layer 'a' is nan"),
        ('{"layers": {"a": {"compute_s": 1, "upload_s": 1e999}}}', "upload_s of layer 'a' is inf"),
        ('{"layers": {"a": {"compute_s": 1, "upload": 1}}}', "unknown key 'upload'"),
        ('{"layers": {"a": {"compute_s": 1}, "a": {"compute_s": 1}}}', "'a' is given twice"),
        ('{"layers": {"a": {"compute_s": 1}}, "edges": [["a", "z"]]}', "'z', which is not a layer"),
        ('{"layers": {"a": {"compute_s": 1}}, "edges": [["a", "a"]]}', "cycle: 'a' -> 'a'"),
        ('{"layers": {"a": {"compute_s": 1}}, "edges": [1]}', "must be two layer names"),
        ('{"layers": {"a": {"compute_s": 1}}, "version": 7}', "version 7 is unknown"),
    ],
)
def test_bad_input_gets_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text)
    shown = CliRunner().invoke(app, ["schedule", str(path)])
    assert shown.exit_code == 1
    assert says in str(shown.exception)
    assert "\n" not in str(shown.exception)


def test_a_missing_file_exits_1_without_traceback(tmp_path: Path) -> None:
    code = "from offload_cli.main import main; main()"
    asked = [sys.executable, "-c", code, "schedule", str(tmp_path / "none.json")]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert "Traceback" not in shown.stderr
