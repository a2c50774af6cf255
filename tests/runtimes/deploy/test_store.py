"""The target's store against crashes at every one of its steps."""

import ast
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from offload_runtimes.agent import store as agent_store
from offload_runtimes.agent.store import RefusalError, Store

Files = dict[str, bytes]
OLD = {"device-0.onnx": b"old graph", "device.weights": b"weights" * 9}
NEW = {"device-0.onnx": b"new graph", "device.weights": b"weights" * 9, "b.weights": b"more"}


class Crash(BaseException):
    """The process is killed."""


def with_manifest(files: Files) -> Files:
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return {"manifest.json": json.dumps({"files": entries}).encode(), **files}


def contents(files: Files) -> list[dict[str, Any]]:
    return [
        {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in files.items()
    ]


def deploy(root: Path, release: str, bare: Files, sent: list[str] | None = None) -> None:
    files = with_manifest(bare)
    store = Store(root)
    try:
        store.lock()
        missing = store.survey(release, contents(files))
        for file in contents(files):
            if (start := missing.get(file["name"])) is not None:
                rest = files[file["name"]][start:]
                halves = (rest[: len(rest) // 2], rest[len(rest) // 2 :])
                assert store.put(release, file, start, iter(halves))["whole"]
                if sent is not None:
                    sent.append(file["name"])
        store.seal(release, contents(files))
        store.swap(release, [])
        store.commit({"id": release}, 2)
    finally:
        if store.lock_handle >= 0:
            os.close(store.lock_handle)


def current(root: Path) -> Files:
    return {path.name: path.read_bytes() for path in (root / "current").iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "target"
    deploy(root, "old", OLD)
    return root


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[int]:
    """Kill the process before the step-th call that changes the disk."""
    count = itertools.count()
    for name in ("replace", "rename", "symlink", "unlink", "fsync", "mkdir", "rmdir", "open"):
        real = getattr(os, name)

        def counted(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            if next(count) == step:
                raise Crash
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, counted)
    yield step
    monkeypatch.undo()


def test_a_crash_at_any_step_leaves_a_whole_release_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for step in itertools.count():
        root = tmp_path / str(step)
        deploy(root, "old", OLD)
        finished = False
        for _ in crash_at(monkeypatch, step):
            try:
                deploy(root, "new", NEW)
                finished = True
            except Crash:
                pass
        assert current(root) in (with_manifest(OLD), with_manifest(NEW))
        seen.add(len(current(root)))
        deploy(root, "new", NEW)  # and nothing is in the way of the next one
        assert current(root) == with_manifest(NEW)
        if finished:
            break
    assert step > 20
    assert seen == {3, 4}


def test_after_a_crash_on_trial_the_next_one_takes_it_back(root: Path) -> None:
    store = Store(root)
    store.lock()
    files = with_manifest(NEW)
    store.survey("new", contents(files))
    for file in contents(files):
        if file["name"] != "device.weights":
            store.put("new", file, 0, iter([files[file["name"]]]))
    store.seal("new", contents(files))
    store.swap("new", [])
    os.close(store.lock_handle)  # killed here
    assert current(root) == files
    other = Store(root)
    assert other.lock()["current"] == "old"
    os.close(other.lock_handle)
    assert current(root) == with_manifest(OLD)


def test_only_what_changed_is_sent(root: Path) -> None:
    sent: list[str] = []
    deploy(root, "new", NEW, sent)
    assert sent == ["manifest.json", "device-0.onnx", "b.weights"]


def test_a_changed_file_is_not_trusted_and_is_mended(root: Path) -> None:
    (root / "releases/old/device.weights").write_bytes(b"rotten!" * 9)
    sent: list[str] = []
    deploy(root, "new", NEW, sent)
    assert "device.weights" in sent
    assert current(root) == with_manifest(NEW)
    (root / "releases/new/b.weights").unlink()
    deploy(root, "new", NEW, sent := [])
    assert sent == ["b.weights"]
    assert current(root) == with_manifest(NEW)


def test_a_file_is_resumed_where_it_was_cut(root: Path) -> None:
    files = with_manifest(NEW)
    file = next(f for f in contents(files) if f["name"] == "b.weights")

    def cut() -> Iterator[bytes]:
        yield b"mo"
        raise EOFError

    store = Store(root)
    store.survey("new", contents(files))
    with pytest.raises(EOFError):
        store.put("new", file, 0, cut())
    assert store.survey("new", contents(files))["b.weights"] == 2
    assert store.put("new", file, 2, iter([b"re"])) == {"whole": True}
    assert (root / "staging/new/b.weights").read_bytes() == b"more"


def test_a_resumed_file_of_other_beginnings_is_dropped(root: Path) -> None:
    files = with_manifest(NEW)
    file = next(f for f in contents(files) if f["name"] == "b.weights")
    store = Store(root)
    store.survey("new", contents(files))
    (root / "staging/new/b.weights.part").write_bytes(b"xx")
    assert store.put("new", file, 2, iter([b"re"])) == {"whole": False}
    assert store.survey("new", contents(files))["b.weights"] == 0


def test_links_are_never_taken_for_files(root: Path) -> None:
    held = root / "releases/old/device.weights"
    held.rename(root / "elsewhere")
    held.symlink_to(root / "elsewhere")
    deploy(root, "old", OLD)
    assert not held.is_symlink()
    assert held.stat().st_nlink == 1


def test_old_releases_go_and_what_is_kept_stays(root: Path) -> None:
    for number in range(4):
        deploy(root, f"r{number}", {**NEW, "b.weights": bytes([number])})
    assert sorted(path.name for path in (root / "releases").iterdir()) == ["r2", "r3"]
    assert not (root / "staging").exists()


def test_two_at_once_are_told_apart(root: Path) -> None:
    one, two = Store(root), Store(root)
    one.lock()
    with pytest.raises(RefusalError, match="being changed by another process"):
        two.lock()
    os.close(one.lock_handle)
    two.lock()
    os.close(two.lock_handle)


def test_names_cannot_lead_out(root: Path) -> None:
    store = Store(root)
    for name in ("../evil", "a/b", "..", ""):
        with pytest.raises(RefusalError):
            store.survey("new", [{"name": name, "sha256": "0", "size_bytes": 1}])
    for name in ("../evil", "proofs/../../evil", "/etc/evil", ""):
        with pytest.raises(RefusalError):
            store.receive(name, contents({"x": b""})[0], iter([]))


def test_a_full_disk_is_said_before_anything_is_sent(root: Path) -> None:
    huge = [{"name": "device.weights", "sha256": "0" * 64, "size_bytes": 1 << 60}]
    with pytest.raises(RefusalError, match=r"no space in .* MB are needed"):
        Store(root).survey("new", huge)


def test_the_agent_is_python_3_8() -> None:
    for path in Path(agent_store.__file__).parent.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))
