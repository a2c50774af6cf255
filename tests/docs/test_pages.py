"""README and Quickstart do what they say: their blocks run in a fresh checkout.

A block with `<!-- not run: REASON -->` above it is left out; one with `<!-- background -->` runs
beside the blocks that follow.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes.deploy.sshd import free_port

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md")
BLOCK = re.compile(r"(?:<!-- ([^>]*) -->\n)?^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WAIT = "until (exec 3<>/dev/tcp/127.0.0.1/50051) 2>/dev/null; do sleep 0.2; done"


def script(page: str) -> str:
    """All blocks of a page that run, as one script for bash."""

    def lines() -> Iterator[str]:
        yield "set -euo pipefail; trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"
        for note, kind, block in BLOCK.findall(page):
            if note.startswith("not run: "):
                continue
            if kind == "python":
                yield f"python - <<'PYTHON'\n{block}PYTHON"
            elif note == "background":
                yield f"{block.strip()} & \n{WAIT}"
            else:
                yield block

    return "\n".join(lines())


def test_the_readme_is_short_and_its_links_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_block_runs_or_says_why_not() -> None:
    for page in PAGES:
        blocks = BLOCK.findall((ROOT / page).read_text())
        notes = [note for note, _, _ in blocks if note]
        assert all(n == "background" or n.startswith("not run: ") for n in notes)
        assert len(notes) < len(blocks) / 2


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files of this checkout, without anything built."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_a_new_user_can_follow_the_page(checkout: Path, page: str) -> None:
    words = script((checkout / page).read_text()).replace("50051", str(free_port()))
    done = subprocess.run(
        ["bash", "-c", words],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
