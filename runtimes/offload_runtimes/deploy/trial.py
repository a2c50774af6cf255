"""Prove a release on its target: find a Python with the runtime there and run the proof."""

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offload.errors import InputError

from offload_runtimes.deploy.channel import Target

_TRIAL_S = 600.0
_LOOK_S = 60.0
_RUNTIME = "runtime/current/bin/python"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a proof found on a target: how far its numbers are off, and what made them.

    Attributes:
        worst: the largest difference, relative to the largest value of its tensor.
        allowed: how large it may be.
        ort: version of the onnxruntime that ran there.
        segments: how many segments were run.
        providers: execution providers really used.
    """

    worst: float
    allowed: float
    ort: str
    segments: int
    providers: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is kept in the target's journal."""
        return {
            "worst": self.worst,
            "allowed": self.allowed,
            "ort": self.ort,
            "segments": self.segments,
            "providers": list(self.providers),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Verdict":
        """What `to_json` made; an older journal knows no providers."""
        return cls(**{**value, "providers": tuple(value.get("providers", ()))})

    @property
    def ran_on(self) -> str:
        """The onnxruntime and, where it is not the CPU, the provider, for people."""
        others = ", ".join(name for name in self.providers if name != "cpu")
        return f"onnxruntime {self.ort}{others and f' with {others}'}"


async def find_runtime(target: Target, root: str) -> str | None:
    """A Python on the target that has the light runtime; None when there is none."""
    other = sys.executable if target.place.ssh is None else target.place.python
    for python in (f"{root}/{_RUNTIME}", other):
        seen = await target.call(
            "run", command=[python, "-c", "import offload_runtimes"], timeout_s=_LOOK_S
        )
        if seen["code"] == 0:
            return python
    return None


async def runtime_versions(target: Target, python: str) -> dict[str, Any] | None:
    """What `python -m offload_runtimes version` says there; None: an older one can't say."""
    command = [python, "-m", "offload_runtimes", "version"]
    done = await target.call("run", command=command, timeout_s=_LOOK_S)
    try:
        found: dict[str, Any] = json.loads(done["out"].strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if done["code"] == 0 else None


async def try_release(target: Target, root: str, python: str, release: str) -> Verdict:
    """Run a release's proof on its target.

    Raises:
        InputError: it crashes there, or gives other numbers; the text says which.
    """
    command = [
        *(python, "-m", "offload_runtimes", "prove", f"{root}/releases/{release}"),
        *("--proof", f"{root}/proofs/{release}.npz", *target.place.options),
    ]
    done = await target.call("run", command=command, timeout_s=_TRIAL_S)
    return judge(target.place.name, done)


def judge(name: str, done: Mapping[str, Any]) -> Verdict:
    """Read what `prove` printed on a target.

    Raises:
        InputError: it crashed, or the numbers differ.
    """
    try:
        found = json.loads(done["out"].strip().splitlines()[-1])
        worst = float("inf") if found["worst"] is None else float(found["worst"])
        providers = tuple(found.get("providers", ()))
        verdict = Verdict(worst, found["allowed"], found["ort"], found["segments"], providers)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"the probe on {name} {ending(done)}") from error
    if not found["ok"]:
        raise InputError(
            f"the probe on {name} gives other numbers: {found['tensor']!r} is off by"
            f" {worst:.2g} of its largest value, {verdict.allowed:g} is allowed"
            f" ({verdict.ran_on})"
        )
    return verdict


def ending(done: Mapping[str, Any]) -> str:
    """How a program on a target ended badly, as the rest of a sentence."""
    code = int(done["code"])
    if code == -signal.SIGILL:
        return (
            "crashed with an illegal instruction: this onnxruntime is not made for its processor,"
            " take another with `offload device init --ort VERSION`"
        )
    if code == -signal.SIGKILL:
        return "was killed: it took too long or too much memory"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    lines = [line for line in done["err"].strip().splitlines() if line.strip()]
    return f"failed: {lines[-1].removeprefix('error: ') if lines else f'exit code {code}'}"
