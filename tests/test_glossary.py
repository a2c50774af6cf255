"""The words of the code: old names stay gone, and the glossary knows the names in use."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = (ROOT / "docs/glossary.md").read_text()

# Old class name -> name in use; empty where no class took its place.
CLASSES = {
    "Wish": "Constraints",
    "Demand": "Constraints",
    "Situation": "PlanningProblem",
    "Prepared": "PlanningInputs",
    "Subject": "OptimizedModel",
    "Candidate": "SchemeEstimate",
    "Decision": "PlanChoice",
    "Reign": "WinningInterval",
    "Ranged": "PlanSet",
    "Standing": "SwitchState",
    "Clothes": "BoundaryOps",
    "Look": "NodeView",
    "Facts": "BatchFacts",
    "Freedom": "Tolerances",
    "Leg": "Subproblem",
    "Form": "TensorFormat",
    "Allowance": "EncodingPolicy",
    "Catalogue": "EncodingTable",
    "Pilot": "PlanSelector",
    "Keeper": "ReconnectLoop",
    "Gauge": "LinkMonitor",
    "Pulse": "LinkMonitor",
    "Tally": "Counters",
    "Alarm": "TimerThread",
    "Device": "SegmentExecutor",
    "Execution": "InferenceRunner",
    "Running": "PendingInference",
    "Inference": "Frame",
    "Remote": "ServerConnection",
    "Served": "SessionState",
    "Hosted": "LoadedBundle",
    "Lately": "LoadedBundle",
    "Gathered": "BatchQueue",
    "Port": "TensorSpec",
    "Layout": "TensorHeader",
    "Happening": "",
    "Chooser": "EncodingSelector",
    "Rehearsal": "AccuracyTrial",
    "Survey": "EncodingSurvey",
    "Bed": "Testbed",
    "Here": "LocalHost",
    "Within": "LocalHost",
}

# Old module name -> module in use.
MODULES = {
    "wishes": "planning_options",
    "dress": "boundary_ops",
    "saved": "records",
    "kinds": "records",
    "look": "batchability",
    "wiring": "value_index",
    "printed": "paper_algorithms",
    "light": "device_requirements",
    "live": "weight_init",
    "evidence": "proof_record",
    "channel": "agent_client",
    "activation": "stages",
    "history": "releases",
    "ground": "environment",
    "studies": "subjects",
    "acts": "scenarios",
    "verb": "command",
    "drive": "device_worker",
    "host_bundles": "server_worker",
}


def definitions() -> tuple[set[str], set[str]]:
    """Names of all classes and of all modules of the four packages."""
    classes, modules = set(), set()
    for folder in ("toolkit", "runtimes", "models", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            modules.add(path.stem)
            nodes = ast.walk(ast.parse(path.read_text()))
            classes |= {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    return classes, modules


DEFINED_CLASSES, DEFINED_MODULES = definitions()
GLOSSARY_NAMES = set(re.findall(r"\w+", GLOSSARY))


@pytest.mark.parametrize(("old", "new"), CLASSES.items())
def test_an_old_class_name_is_gone_and_the_new_one_is_in_use(old: str, new: str) -> None:
    assert old not in DEFINED_CLASSES, f"class {old}: name it {new}"
    assert not new or new in DEFINED_CLASSES | GLOSSARY_NAMES, (
        f"{new} is neither a class nor in the glossary"
    )


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_an_old_module_name_is_gone_and_the_new_one_is_in_use(old: str, new: str) -> None:
    assert old not in DEFINED_MODULES, f"module {old}: name it {new}"
    assert new in DEFINED_MODULES | GLOSSARY_NAMES, f"{new} is neither a module nor in the glossary"


def test_every_class_in_the_glossary_exists() -> None:
    named = set(re.findall(r"`([A-Z]\w*[a-z]\w*)`", GLOSSARY))
    assert named
    assert named <= DEFINED_CLASSES, f"not classes: {sorted(named - DEFINED_CLASSES)}"


def test_every_word_stands_in_the_glossary_once() -> None:
    rows = [line for line in GLOSSARY.splitlines() if line.startswith("| **")]
    words = [word for row in rows for word in re.findall(r"\*\*(.+?)\*\*", row)]
    assert len(words) == len(set(words))
    assert all(row.count("|") == 4 for row in rows), "word, meaning, synonyms"
