"""Which release is current: the journal, the link, and the way back from a trial."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from offload_runtimes.deploy.agent.disk import RefusalError, link_whole, write_whole
from offload_runtimes.deploy.agent.machine import run

_AFTER_S = 120.0


class Journal:
    """`current`, a link to the release in use, and `journal.json`, which says how it came there.

    A release is on trial from `swap` to `commit`. The journal names what was current before, so
    that whoever comes next can finish what a dead deployer or a power cut left open.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"

    def read(self) -> dict[str, Any]:
        """Releases that passed, newest first; the trial under way; and what `current` names."""
        path = self.root / "journal.json"
        found: dict[str, Any] = {"releases": [], "trial": None}
        try:
            with contextlib.suppress(FileNotFoundError):
                found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RefusalError(f"{path} is damaged: remove it and deploy again") from error
        return {**found, "current": self.current_id()}

    def current_id(self) -> str | None:
        """Name of the release that `current` points to."""
        with contextlib.suppress(OSError):
            return Path(os.readlink(self.current)).name  # noqa: PTH115 (Python 3.8)
        return None

    def swap(self, release: str, after: list[str]) -> dict[str, Any]:
        """Make a release current, on trial; `after` is what to run if it has to be taken back."""
        journal = self.read()
        trial = {"from": journal["current"], "to": release, "after": after}
        self._write(journal["releases"], trial)
        self._point(release)
        return trial

    def commit(self, entry: dict[str, Any], keep: int) -> set[str]:
        """End the trial well; the releases to keep, the newest ones and the current one."""
        others = [e for e in self.read()["releases"] if e["id"] != entry["id"]]
        kept = [entry, *others][: max(keep, 1)]
        self._write(kept, None)
        return {e["id"] for e in kept} | {str(self.current_id())}

    def back(self) -> dict[str, Any] | None:
        """End a trial badly: what was current before is current again; the trial undone."""
        journal = self.read()
        trial: dict[str, Any] | None = journal["trial"]
        if trial is None:
            return None
        if trial["from"] is not None:
            self._point(trial["from"])
        else:
            self.current.unlink(missing_ok=True)
        self._write(journal["releases"], None)
        if trial["after"]:
            run(self.root, trial["after"], _AFTER_S, alone=True)
        return trial

    def _point(self, release: str) -> None:
        link_whole(self.current, f"releases/{release}")

    def _write(self, releases: list[dict[str, Any]], trial: dict[str, Any] | None) -> None:
        text = json.dumps({"releases": releases, "trial": trial}, indent=1)
        write_whole(self.root / "journal.json", text)
