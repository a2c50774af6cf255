"""Fuzz every target for some time, guided by coverage, and list the findings.

Run as `make fuzz` (`SECONDS=600` for longer, `TARGETS="serve plan"` for some).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.goals import Goal, report
from tests.fuzz.targets import TARGETS

_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_EDGES = re.compile(r"\bcov: (\d+)")
_FOUND = re.compile(r"Test unit written to (\S+)")


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """The result of fuzzing one target.

    Attributes:
        name: the target.
        code: the process's exit code.
        text: its stderr.
    """

    name: str
    code: int
    text: str

    @property
    def goals(self) -> tuple[Goal, ...]:
        executed = int((_EXECUTED.findall(self.text) or ["0"])[-1])
        edges = (_EDGES.findall(self.text) or ["?"])[-1]
        found = _FOUND.findall(self.text)
        crashes = ", ".join(found) if found else "0" if self.code == 0 else f"exit {self.code}"
        done = f"{executed} ({edges} edges)"
        return (
            Goal(f"{self.name}: executions", "> 0", done, executed > 0),
            Goal(f"{self.name}: findings", "0", crashes, not found and self.code == 0),
        )


def fuzz(name: str, seconds: int, folder: Path) -> Fuzzed:
    """Fuzz one target in a process of its own; print its output at once if it fails."""
    command = [sys.executable, "-m", "tests.fuzz.fuzz_target", name, str(seconds), str(folder)]
    with tempfile.TemporaryDirectory() as scratch:  # the fuzzer ends a process without its farewell
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "TMPDIR": scratch},
        )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", flush=True)
    return Fuzzed(name, done.returncode, done.stderr)


def main() -> int:
    """Exit code 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz-found"))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    names = asked.targets or list(TARGETS)
    done = [fuzz(name, asked.seconds, asked.folder) for name in names]
    return report([goal for each in done for goal in each.goals])


if __name__ == "__main__":
    sys.exit(main())
