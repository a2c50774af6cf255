"""Every fuzz target passes on its seeds and on changed seeds; `make fuzz` fuzzes for longer."""

import json
import random
from pathlib import Path

import pytest
from offload.bundle.bundle import MANIFEST, manifest_digest, open_bundle
from offload.errors import BundleError
from offload.planning.plan import Side

from tests.fuzz.bundles import BUNDLES, seal
from tests.fuzz.run import Fuzzed
from tests.fuzz.targets import TARGETS

ROUNDS = 400


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_holds(name: str) -> None:
    target, chance = TARGETS[name], random.Random(1)
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)
    for _ in range(ROUNDS):
        changed = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        target.run(bytes(changed))


def changed_plan(*path: str | int, to: object) -> bytes:
    """The seed's plan with another value in one place, as text."""
    plan = json.loads(BUNDLES[0].plan)
    place = plan
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(plan).encode()


WRONG = {
    "a list": (b'["plan"]', "format None"),
    "an unhashable name": (changed_plan("segments", 0, "id", to=["x"]), "must be str"),
    "a size in words": (changed_plan("uploads", 0, "size_bytes", to="many"), "must be int"),
    "endless": (changed_plan("uploads", 0, "affine", to={"zeros": [float("inf")]}), "damaged"),
    "no tree": (b"[" * 100_000, "recursion"),
    "outside": (
        changed_plan("segments", 1, "common", to="../../x"),
        r"lacks the part '\.\./\.\./x'",
    ),
    "not there": (
        changed_plan("segments", 1, "common", to="server-7"),
        r"lacks the part 'server-7'",
    ),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_a_wrong_plan_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """Findings of fuzzing: each ended in a traceback or outside the bundle."""
    text, said = WRONG[kind]
    seal(tmp_path, text)
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "x" * 300])
def test_a_file_that_cannot_be_is_one_sentence(name: str, tmp_path: Path) -> None:
    seal(tmp_path, BUNDLES[0].plan)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["digest"]
    manifest["files"][name] = {"sha256": "", "size_bytes": 0, "sides": ["server"]}
    manifest["digest"] = manifest_digest(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        open_bundle(tmp_path, tuple(Side))


def test_what_was_found_is_named() -> None:
    text = "#9 NEW cov: 12 ft: 3\nTest unit written to found/plan-crash-1\n"
    done, found = Fuzzed("plan", 77, text + "stat::number_of_executed_units: 17").goals
    assert (done.measured, done.met) == ("17 (12 edges)", True)
    assert (found.measured, found.met) == ("found/plan-crash-1", False)
    assert [goal.met for goal in Fuzzed("plan", 1, "No module named atheris").goals] == [False] * 2
