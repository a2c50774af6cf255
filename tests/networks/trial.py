"""One network through `offload`, as a user runs it, against plain onnxruntime."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.compare import difference

from tests.networks.files import NotMadeError, files_of
from tests.networks.networks import Network
from tests.networks.reference import read_inputs

DEVICE_FLOPS_PER_S = 5e9
ESTIMATED = ("--device", "5e9", "--server", "1e11", "--link", "wifi")
# Longer than the goals of the table, so that a slow step still says how slow; and of all steps.
NETWORK_LIMIT_S = 1200.0
LIMITS_S = {"verify": 600.0, "profile": 300.0, "measured": 300.0}
LIMIT_S = 150.0
# A model of so many nodes has a tensor to cut at.
NODES_TO_CUT = 10
ROOT = Path(__file__).parents[2]
OFFLOAD = (sys.executable, "-c", "from offload_cli.main import main; main()")


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        seconds: from start to end.
        peak_bytes: largest resident memory of its process.
        fault: empty when it did right, else what was wrong.
        output: what it wrote to stdout.
    """

    seconds: float
    peak_bytes: int
    fault: str = ""
    output: str = ""

    @property
    def value(self) -> dict[str, Any]:
        """The JSON value that the command wrote; empty after a fault."""
        found = {} if self.fault else json.loads(self.output)
        assert isinstance(found, dict)
        return found


@dataclass(slots=True)
class Result:
    """What one network came to.

    Attributes:
        name: the network's.
        origin: where its file comes from.
        faults: each step that failed, with its message; empty where all is right.
        seconds: of each step.
        peaks: largest resident bytes of each step's process.
        layers: layers that `offload inspect` shows.
        counted_flops: operations of one real run; 0 of an ensemble of trees.
        planned_flops: what the plan from estimates reckons with; None without a plan.
        cut: the tensor of the forced cut; empty where the model has no inner tensor.
        version: a digest of the product's source.
    """

    name: str
    origin: str
    faults: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    counted_flops: float = 0.0
    planned_flops: float | None = None
    cut: str = ""
    version: str = ""

    @property
    def right(self) -> bool:
        """Whether every step did right."""
        return not self.faults

    @property
    def share(self) -> float | None:
        """The plan's operations over the real run's."""
        if self.planned_flops is None or not self.counted_flops:
            return None
        return self.planned_flops / self.counted_flops

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def command(words: Sequence[str | Path], folder: Path, limit_s: float, cache: str) -> Step:
    """Run one command to its end, or kill it and what it started after the limit."""
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        begun = time.monotonic()
        child = subprocess.Popen(
            [*map(str, words)],
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment(folder, cache),
            start_new_session=True,
        )
        peak_bytes = 0
        try:
            while child.poll() is None and time.monotonic() - begun <= limit_s:
                peak_bytes = max(peak_bytes, peak_of(child.pid))
                time.sleep(0.02)
        finally:
            ended = child.poll() is not None
            if not ended:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        taken = time.monotonic() - begun
    said, errors = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    if not ended:
        fault = f"not done after {limit_s:.0f} s"
    elif child.returncode:
        lines = [line for line in (errors or said).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        kind = "traceback" if "Traceback" in errors else f"exit {child.returncode}"
        fault = f"{kind}: {' '.join(told)[:400]}"
    else:
        fault = ""
    return Step(taken, peak_bytes, fault, said)


def peak_of(process: int) -> int:
    """The largest resident memory so far of a process, in bytes; 0 when it has ended.

    Not `ru_maxrss`: that begins with the resident memory of the process that forked this one.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def environment(folder: Path, cache: str) -> dict[str, str]:
    """The environment of a command: a cache of its own, our tests importable."""
    own = {"XDG_CACHE_HOME": str(folder / cache), "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own}


class Trial:
    """The steps of one network; what each came to is noted in the result."""

    def __init__(self, network: Network, work: Path) -> None:
        self.network = network
        self.work = work
        self.folder = (work / "networks/tried" / network.name).absolute()
        self.result = Result(network.name, network.origin)

    def run(self) -> Result:
        """Take all steps; one that needs another that failed is left out."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            self.files = files_of(self.network, self.work).absolute()
        except NotMadeError as error:
            self.result.faults["export"] = str(error)
            return self.result
        self.ends = time.monotonic() + NETWORK_LIMIT_S
        reference = (sys.executable, "-m", "tests.networks.reference", self.files)
        if not self.step("onnxruntime", reference).fault:
            self.read_reference()
            self.plan()
            self.run_bundles()
        shutil.rmtree(self.folder)
        return self.result

    def read_reference(self) -> None:
        """Take in what plain onnxruntime answered, and the words that each command needs."""
        found = json.loads((self.files / "expected.json").read_text())
        with np.load(self.files / "expected.npz") as arrays:
            self.expected = found["others"] | {name: arrays[name] for name in arrays.files}
        self.result.counted_flops = 0.0 if self.network.trees else found["flops"]
        self.model, self.inputs = self.files / "model.onnx", self.files / "in.npz"
        self.limits, self.nodes = found["limits"], found["nodes"]
        feeds = read_inputs(self.files)
        self.sizes: list[str | Path] = []
        for name, is_open in found["open_inputs"].items():
            if is_open and feeds[name].shape:
                self.sizes += ["--shape", f"{name}={'x'.join(map(str, feeds[name].shape))}"]
        self.measuring = [*self.sizes]
        if self.network.calibrated:
            self.measuring += ["--calibration", self.inputs]

    def step(self, name: str, words: Sequence[str | Path], cache: str = "cache") -> Step:
        """Run a command and note its seconds, its memory and its fault."""
        left_s = max(self.ends - time.monotonic(), 1.0)
        found = command(words, self.folder, min(LIMITS_S.get(name, LIMIT_S), left_s), cache)
        self.result.seconds[name] = found.seconds
        self.result.peaks[name] = found.peak_bytes
        if found.fault:
            self.result.faults[name] = found.fault
        return found

    def offload(self, name: str, *words: str | Path, cache: str = "cache") -> Step:
        """Run `offload` with JSON as its output."""
        return self.step(name, (*OFFLOAD, *words, "--format", "json"), cache)

    def plan(self) -> None:
        """Inspect, verify, profile, and split by estimate and by measuring."""
        model = self.model
        inspected = self.offload("inspect", "inspect", model, *self.sizes)
        self.layers = inspected.value.get("layers", [])
        self.tensors = inspected.value.get("tensors", {})
        self.result.layers = len(self.layers)
        self.offload("verify", "verify", model, "--input", self.inputs, *self.sizes)
        self.offload("profile", "profile", model, "-o", "here.json", *self.measuring)
        split: tuple[str | Path, ...] = ("split", model, *self.measuring, "-o")
        estimated = self.offload("estimated", *split, "estimated", *ESTIMATED)
        for scheme in estimated.value.get("plan", {}).get("alternatives", []):
            if scheme["scheme"] == "local":
                self.result.planned_flops = scheme["latency_s"] * DEVICE_FLOPS_PER_S
        # With a cache of its own: it measures, as a user's first `split` does.
        slow = ("--slowdown", "10", "--link", "wifi")
        self.offload("measured", *split, "measured", *slow, cache="fresh")

    def run_bundles(self) -> None:
        """Run the plans that were chosen, all here, all on a server, and a forced cut."""
        split: tuple[str | Path, ...] = ("split", self.model, *self.measuring, *ESTIMATED, "-o")
        self.offload("split local", *split, "local", "--scheme", "local")
        self.offload("split cloud", *split, "cloud", "--scheme", "cloud")
        self.result.cut = self.middle()
        if not self.result.cut and self.nodes >= NODES_TO_CUT:
            self.result.faults["cut"] = f"no inner tensor to cut at, in {self.nodes} nodes"
        if self.result.cut:
            self.offload("split cut", *split, "cut", "--cut", self.result.cut)
        for name in ("estimated", "measured", "local"):
            self.run_bundle(f"run {name}", name)
        self.run_bundle("run cut, bits", "cut", "--no-optimize")
        served = [name for name in ("cloud", "cut") if (self.folder / name).is_dir()]
        if served:
            with self.serving(served) as address:
                for name in served:
                    self.run_bundle(f"run {name}, served", name, "--server", address)

    def middle(self) -> str:
        """An inner tensor before which about half of the work is done; empty without any."""
        maker = {
            name: place for place, layer in enumerate(self.layers) for name in layer["outputs"]
        }
        needs: list[set[int]] = []
        for place, layer in enumerate(self.layers):
            above = [maker[name] for name in layer["inputs"] if name in maker]
            needs.append({place}.union(*(needs[one] for one in above if one < place)))
        work = [(layer["flops"] or 0.0) + 1.0 for layer in self.layers]
        read = {name for layer in self.layers for name in layer["inputs"]}
        found = [
            (abs(sum(work[one] for one in needs[place]) / sum(work) - 0.5), name)
            for name, place in maker.items()
            if name in read
            and name not in self.expected
            and (self.tensors[name]["dtype"] or "string") != "string"
        ]
        return min(found)[1] if found else ""

    def run_bundle(self, step: str, bundle: str, *words: str) -> None:
        """Run a bundle on the inputs and compare its answers with onnxruntime's."""
        if not (self.folder / bundle).is_dir():
            return
        for path in self.folder.glob("out.*"):
            path.unlink()
        found = self.offload(
            step, "run", bundle, "--input", self.inputs, "--output", "out.npz", *words
        )
        if not found.fault:
            wrong = self.compare("--no-optimize" not in words)
            if wrong:
                self.result.faults[step] = wrong

    def compare(self, optimized: bool) -> str:
        """What is wrong with the answers in `out.npz`; empty if nothing is."""
        answers = answers_of(self.folder / "out.npz")
        for name, want in self.expected.items():
            if name not in answers:
                return f"output {name!r} is missing"
            found, limit = difference(want, answers[name]), self.limits[name][optimized]
            if not found <= limit:
                return f"output {name!r} is off by {found:.2g}, allowed are {limit:.2g}"
        return ""

    @contextmanager
    def serving(self, bundles: Sequence[str]) -> Iterator[str]:
        """`offload serve` on a free port of this machine; gives its address."""
        server = subprocess.Popen(
            [*OFFLOAD, "serve", *bundles, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=environment(self.folder, "cache"),
        )
        assert server.stdout
        try:
            line = server.stdout.readline()
            address = re.search(r"127\.0\.0\.1:\d+", line)
            if address:
                yield address[0]
            else:
                self.result.faults["serve"] = f"not ready: {line.strip() or 'nothing said'}"
                yield "127.0.0.1:1"
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                self.result.faults["serve"] = "not ended 20 s after SIGTERM"
                server.kill()
                server.wait()
            server.stdout.close()


def answers_of(path: Path) -> dict[str, Any]:
    """Outputs that `offload run` wrote: arrays, and beside them what is not an array."""
    found: dict[str, Any] = {}
    if path.exists():
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    beside = path.with_suffix(".json")
    if beside.exists():
        found |= json.loads(beside.read_text())
    return found
