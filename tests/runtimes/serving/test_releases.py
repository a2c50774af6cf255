"""Which releases a server serves and leaves out, and which engines they share."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError
from offload_runtimes.server import Server
from offload_runtimes.serving import bundles as served_bundles
from offload_runtimes.serving.bundles import check_memory, free_memory_bytes, load_bundle, sources
from offload_runtimes.serving.serve_options import ServeOptions

from tests.runtimes import bundles


def deployed(root: Path, *, current: Bundle, kept: list[Bundle]) -> Path:
    """A root as `offload deploy` leaves it; the path of its link."""
    names = []
    for number, bundle in enumerate([current, *kept]):
        folder = root / "releases" / f"r{number}"
        folder.mkdir(parents=True)
        for path in bundle.path.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        names.append({"id": folder.name})
    (root / "journal.json").write_text(json.dumps({"releases": names, "trial": None}))
    (root / "current").symlink_to("releases/r0")
    return root / "current"


def test_the_kept_releases_of_a_root_are_served(tmp_path: Path) -> None:
    first, second, third = (bundles.branches(tmp_path / f"b{i}").bundle for i in range(3))
    link = deployed(tmp_path / "root", current=third, kept=[second, first])
    with Server([link]) as server:
        assert server.bundles == (third.digest, second.digest, first.digest)
        assert server.paths == (link,)
    with Server([link], options=ServeOptions(max_releases=2)) as server:
        assert server.bundles == (third.digest, second.digest)
    assert [source.name for source in sources([link, first.path], 1)] == ["current", "b0"]
    with pytest.raises(InputError, match="max_releases must be at least 1"):
        Server([link], options=ServeOptions(max_releases=0))


def test_a_damaged_journal_leaves_the_current_release(tmp_path: Path) -> None:
    first, second = (bundles.branches(tmp_path / f"b{i}").bundle for i in range(2))
    link = deployed(tmp_path / "root", current=second, kept=[first])
    for text in ("{", "[]", '{"releases": 7}', '{"releases": [{"id": "../../b0"}]}'):
        (tmp_path / "root" / "journal.json").write_text(text)
        with Server([link]) as server:
            assert server.bundles == (second.digest,)


def test_a_kept_release_that_cannot_be_served_is_left_out(tmp_path: Path) -> None:
    first, second = (bundles.branches(tmp_path / f"b{i}").bundle for i in range(2))
    link = deployed(tmp_path / "root", current=second, kept=[first])
    (tmp_path / "root/releases/r1/server-0.onnx").write_bytes(b"damaged")
    with pytest.warns(RuntimeWarning, match="r1 is not served: .*deploy it again"):
        server = Server([link])
    assert server.bundles == (second.digest,)
    server.stop()


def test_equal_parts_of_two_bundles_share_an_engine(tmp_path: Path) -> None:
    options = ServeOptions()
    made = bundles.branches(tmp_path / "b").bundle
    first = load_bundle(made, options)
    other = replace(made, digest="another plan of the same parts")
    assert load_bundle(other, options, others=[first]).engines == first.engines
    unlike = load_bundle(bundles.branches(tmp_path / "c").bundle, options, others=[first])
    assert unlike.engines != first.engines


def test_a_kept_release_must_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundles.branches(tmp_path / "b", width=128).bundle
    monkeypatch.setattr(served_bundles, "free_memory_bytes", lambda: 1000.0)
    with pytest.raises(InputError, match=r"and 1.00 kB are free: allow more memory"):
        check_memory(made, [])
    check_memory(made, [load_bundle(made, ServeOptions())])
    link = deployed(tmp_path / "root", current=bundles.branches(tmp_path / "c").bundle, kept=[made])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        server = Server([link])
    assert len(server.bundles) == len(found) == 1
    server.stop()


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert free_memory_bytes(tmp_path) == 8000 * 1024
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmRSS:\t    1000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice/unit.service\n")
    group = tmp_path / "sys/fs/cgroup/user.slice/unit.service"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) == 8000 * 1024
    (group.parent / "memory.max").write_text(f"{3000 * 1024}\n")
    assert free_memory_bytes(tmp_path) == 2000 * 1024
    assert free_memory_bytes(tmp_path / "none") == float("inf")


def test_a_bundle_is_opened_where_links_lead(tmp_path: Path) -> None:
    first = bundles.branches(tmp_path / "b").bundle
    (tmp_path / "link").symlink_to("b")
    assert open_bundle(tmp_path / "link") == open_bundle(first.path)
    assert open_bundle(tmp_path / "link").path == tmp_path / "b"
