"""The proof of a bundle: inputs and outputs of its segments that any machine must reproduce.

It is made on the machine with the whole bundle, from a seeded sample of the model's inputs, and
repeated on each machine that a half is deployed to: the device's segments and the server's are
proved without the other side.
"""

import io
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle
from offload.bundle.compare import difference
from offload.bundle.sample_inputs import ModelInputs, SampleOptions, sample
from offload.errors import BundleError, InputError
from offload.files import write_bytes
from offload.planning.plan import Side

from offload_runtimes.engine import ORT_VERSION, Array, EngineOptions, load_once, short_name
from offload_runtimes.value_files import read_arrays

ARRAYS = "proof.npz"  # in a bundle
TOLERANCE = 1e-3
HALF_TOLERANCE = 2e-2
_SEED = 20
_INDEX = "index"

Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class SegmentProof:
    """Inputs of one segment, named by its part of the bundle, and the outputs they must give."""

    segment: str
    inputs: Tensors
    outputs: Tensors


@dataclass(frozen=True, slots=True)
class Proof:
    """The proofs of segments, and the difference that another machine may have.

    Attributes:
        segments: one for each segment.
        allowed: largest difference, relative to the largest value of its tensor; for half
            precision at least `HALF_TOLERANCE`.
    """

    segments: tuple[SegmentProof, ...]
    allowed: float = TOLERANCE

    def only(self, segments: Container[str]) -> "Proof":
        """The proofs of some segments, such as those of one side."""
        return Proof(tuple(p for p in self.segments if p.segment in segments), self.allowed)

    def limit(self, dtype: np.dtype[Any]) -> float:
        """The largest relative difference allowed for a tensor."""
        return max(self.allowed, HALF_TOLERANCE) if dtype.itemsize < 4 else self.allowed


@dataclass(frozen=True, slots=True)
class ProofRun:
    """The result of repeating a proof.

    Attributes:
        segments: the number of segments run.
        outputs: the number of their outputs.
        equal: the number of outputs with exactly the proof's bits.
        worst: the largest difference, relative to the largest value of its tensor.
        tensor: the tensor it is in; empty when there is none.
        allowed: the largest difference allowed.
        ort: version of the onnxruntime that ran them.
        providers: execution providers really in use, by their short names.
    """

    segments: int
    outputs: int
    equal: int
    worst: float
    tensor: str
    allowed: float
    ort: str = ORT_VERSION
    providers: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the machine computes the right numbers."""
        return self.worst <= self.allowed

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an infinite difference is written as null."""
        worst = self.worst if np.isfinite(self.worst) else None
        return {**asdict(self), "worst": worst, "ok": self.ok}


def proof_of(bundle: Bundle) -> Proof:
    """The proof in a whole bundle; one is made here if it has none.

    Raises:
        BundleError: a half of the bundle is missing, or its proof is damaged.
        InputError: it has none, and no sample was found that the model accepts.
    """
    path = bundle.path / ARRAYS
    return read_proof(path) if path.is_file() else make_proof(bundle)


def make_proof(bundle: Bundle) -> Proof:
    """Run a whole bundle here on a sample of its inputs.

    Open input sizes get the first of a few values that the model accepts.

    Raises:
        BundleError: a half of the bundle is missing.
        InputError: no sample was found that the model accepts.
    """
    for side in Side:
        if not bundle.holds(side):
            raise BundleError(
                f"bundle {bundle.path} lacks its {side.value} half: deploy from the whole bundle"
            )
    proofs: list[SegmentProof] = []

    def run(feeds: Tensors) -> None:
        proofs[:] = []
        for number in range(len(bundle.plans)):
            proofs.extend(run_segments(bundle.only(number), feeds, EngineOptions()))

    advice = "split the model again with sizes for its inputs, --shape NAME=SIZES"
    sample(ModelInputs(bundle.inputs), run, SampleOptions(seed=_SEED), 1, advice)
    numeric = of_numbers(each_once(proofs))
    if not numeric:
        raise InputError(
            f"bundle {bundle.path.name} cannot be proved: all its segments need text, sequences or"
            " maps as inputs"
        )
    return Proof(numeric)


def run_segments(bundle: Bundle, feeds: Tensors, options: EngineOptions) -> list[SegmentProof]:
    """Run every segment of a whole bundle of one plan on inputs of the model.

    Raises:
        BundleError: the plan never computes the inputs of a segment.
        InputError: onnxruntime refuses a segment or these inputs.
    """
    known = dict(feeds)
    proofs = []
    waiting = list(bundle.plan.segments)
    while waiting:
        segment = next((s for s in waiting if known.keys() >= set(s.inputs)), None)
        if segment is None:
            raise BundleError(
                f"the plan of bundle {bundle.path} cannot be run: make the bundle again"
            )
        waiting.remove(segment)
        inputs = {name: known[name] for name in segment.inputs}
        engine = load_once(bundle.segment_path(segment.part), options)
        arrays = engine.run(segment.outputs, inputs)
        outputs = dict(zip(segment.outputs, arrays, strict=True))
        known.update(outputs)
        proofs.append(SegmentProof(segment.part, inputs, outputs))
    return proofs


def each_once(proofs: Iterable[SegmentProof]) -> tuple[SegmentProof, ...]:
    """The first proof of each part: plans share parts."""
    first: dict[str, SegmentProof] = {}
    for proof in proofs:
        first.setdefault(proof.segment, proof)
    return tuple(first.values())


def of_numbers(proofs: Iterable[SegmentProof]) -> tuple[SegmentProof, ...]:
    """The proofs without text, sequences and maps, which an `.npz` holds only pickled.

    Segments with such inputs are left out, and such outputs of the others.
    """
    return tuple(
        SegmentProof(
            proof.segment,
            proof.inputs,
            {name: value for name, value in proof.outputs.items() if is_numbers(value)},
        )
        for proof in proofs
        if all(map(is_numbers, proof.inputs.values()))
    )


def is_numbers(value: object) -> bool:
    """Whether a value is an array of numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def repeat_proof(bundle: Bundle, proof: Proof, options: EngineOptions) -> ProofRun:
    """Run proofs on this machine.

    Raises:
        InputError: onnxruntime refuses a segment.
    """
    # By output: share of the limit, difference, tensor, limit.
    differences: list[tuple[float, float, str, float]] = []
    equal = 0
    providers: dict[str, None] = {}
    segments = {segment.part: segment for segment in bundle.parts()}
    for part in proof.segments:
        segment = segments[part.segment]
        engine = load_once(bundle.segment_path(segment.part), options)
        providers[short_name(engine.providers[0])] = None
        arrays = engine.run(segment.outputs, part.inputs)
        outputs = dict(zip(segment.outputs, arrays, strict=True))
        for name, want in part.outputs.items():
            off, limit = difference(want, outputs[name]), proof.limit(want.dtype)
            differences.append((off / limit, off, name, limit))
            equal += want.tobytes() == outputs[name].tobytes()
    _, worst, tensor, allowed = max(differences, default=(0.0, 0.0, "", proof.allowed))
    return ProofRun(
        len(proof.segments),
        len(differences),
        equal,
        worst,
        tensor if worst else "",
        allowed,
        providers=tuple(providers),
    )


def write_proof(path: Path, proof: Proof) -> None:
    """Write a proof to one `.npz`, atomically."""
    arrays: dict[str, Array] = {}

    def store(tensors: Tensors) -> dict[str, str]:
        keys = {name: f"t{len(arrays) + place}" for place, name in enumerate(tensors)}
        arrays.update({keys[name]: array for name, array in tensors.items()})
        return keys

    index = [
        {"segment": p.segment, "inputs": store(p.inputs), "outputs": store(p.outputs)}
        for p in proof.segments
    ]
    head = {"allowed": proof.allowed, "segments": index}
    arrays[_INDEX] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())


def read_proof(path: Path) -> Proof:
    """Read what `write_proof` wrote.

    Raises:
        BundleError: missing or damaged.
    """
    try:
        arrays = read_arrays(path)
        head = json.loads(arrays[_INDEX].tobytes())
        segments = tuple(
            SegmentProof(
                entry["segment"],
                {name: arrays[key] for name, key in entry["inputs"].items()},
                {name: arrays[key] for name, key in entry["outputs"].items()},
            )
            for entry in head["segments"]
        )
        return Proof(segments, float(head["allowed"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"proof {path} is missing or damaged: deploy again") from error
