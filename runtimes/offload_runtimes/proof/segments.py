"""The proof of a bundle: inputs and outputs of its segments that any machine must reproduce.

It is made where the whole bundle is, from a seeded sample of the model's inputs, and repeated
where a half of it was brought to: the device's segments and the server's can each be proved
without the other side.
"""

import io
import json
import zipfile
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle, Value
from offload.bundle.difference import difference
from offload.errors import BundleError, InputError
from offload.files import write_bytes
from offload.plan.plan import Segment, Side

from offload_runtimes.engine import ORT_VERSION, Array, EngineOptions, dtype_of, load

ARRAYS = "proof.npz"  # in a bundle
TOLERANCE = 1e-3
HALF_TOLERANCE = 2e-2
_DYNAMIC_SIZES = (1, 16, 32, 64, 224)
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
    """Segments' proofs, and how far another machine's numbers may be off.

    Attributes:
        segments: one for each segment.
        allowed: largest difference, relative to the largest value of its tensor; half
            precision is always allowed `HALF_TOLERANCE`.
    """

    segments: tuple[SegmentProof, ...]
    allowed: float = TOLERANCE

    def only(self, segments: Container[str]) -> "Proof":
        """The proofs of some segments, such as those of one side."""
        return Proof(tuple(p for p in self.segments if p.segment in segments), self.allowed)

    def limit(self, dtype: np.dtype[Any]) -> float:
        """How far a tensor may be off."""
        return max(self.allowed, HALF_TOLERANCE) if dtype.itemsize < 4 else self.allowed


@dataclass(frozen=True, slots=True)
class Repeated:
    """What repeating a proof found.

    Attributes:
        segments: how many segments were run.
        outputs: how many outputs they gave.
        equal: how many of these have the bits that the proof holds.
        worst: the largest difference, relative to the largest value of its tensor.
        tensor: the tensor it is in; empty when there is none.
        allowed: how large it may be.
        ort: version of the onnxruntime that ran them.
    """

    segments: int
    outputs: int
    equal: int
    worst: float
    tensor: str
    allowed: float
    ort: str = ORT_VERSION

    @property
    def ok(self) -> bool:
        """Whether the machine gives the right numbers."""
        return self.worst <= self.allowed

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an infinite difference is written as null."""
        worst = self.worst if np.isfinite(self.worst) else None
        return {**asdict(self), "worst": worst, "ok": self.ok}


def proof_of(bundle: Bundle) -> Proof:
    """The proof that a whole bundle carries; one made here when it carries none.

    Raises:
        BundleError: a half of the bundle is not here, or its proof is damaged.
        InputError: it carries none, and no sample was found that the model takes.
    """
    carried = bundle.path / ARRAYS
    return read_proof(carried) if carried.is_file() else make_proof(bundle)


def make_proof(bundle: Bundle) -> Proof:
    """Run a whole bundle here on a sample of its inputs.

    Sizes left open by the model are given the first of a few values that it takes.

    Raises:
        BundleError: a half of the bundle is not here.
        InputError: no sample was found that the model takes.
    """
    for side in Side:
        if not bundle.holds(side):
            raise BundleError(
                f"bundle {bundle.path} lacks its {side.value} half: deploy from the whole bundle"
            )
    refusal: InputError | None = None
    for size in _DYNAMIC_SIZES:
        rng = np.random.default_rng(_SEED)
        try:
            feeds = {value.name: sample(value, size, rng) for value in bundle.inputs}
            plans = [bundle.only(number) for number in range(len(bundle.plans))]
            proofs = [p for plan in plans for p in run_segments(plan, feeds, EngineOptions())]
        except InputError as error:
            refusal = refusal or error
            continue
        if kept := of_numbers(each_once(proofs)):
            return Proof(kept)
        raise InputError(f"{bundle.path.name} has no part that takes numbers alone")
    raise InputError(f"no sample of its inputs fits {bundle.path.name} ({refusal})")


def run_segments(bundle: Bundle, feeds: Tensors, options: EngineOptions) -> list[SegmentProof]:
    """Run every segment of a whole bundle of one plan on inputs of the model.

    Raises:
        BundleError: the plan never gives a segment what it needs.
        InputError: onnxruntime refuses a segment or these inputs.
    """
    known = dict(feeds)
    proofs = []
    waiting = list(bundle.plan.segments)
    while waiting:
        segment = next((s for s in waiting if known.keys() >= set(s.inputs)), None)
        if segment is None:
            raise BundleError(f"bundle {bundle.path}: its plan cannot be run, make it again")
        waiting.remove(segment)
        inputs = {name: known[name] for name in segment.inputs}
        outputs = _run(bundle, segment, inputs, options)
        known.update(outputs)
        proofs.append(SegmentProof(segment.part, inputs, outputs))
    return proofs


def each_once(proofs: Iterable[SegmentProof]) -> tuple[SegmentProof, ...]:
    """The first proof of each part: plans have parts in common."""
    found: dict[str, SegmentProof] = {}
    for proof in proofs:
        found.setdefault(proof.segment, proof)
    return tuple(found.values())


def of_numbers(proofs: Iterable[SegmentProof]) -> tuple[SegmentProof, ...]:
    """The proofs without what an `.npz` holds only pickled: text, sequences and maps.

    Segments that need such as inputs are left out; of the others, outputs that are such.
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


def _run(bundle: Bundle, segment: Segment, inputs: Tensors, options: EngineOptions) -> Tensors:
    arrays = load(bundle.segment_path(segment.part), options).run(segment.outputs, inputs)
    return dict(zip(segment.outputs, arrays, strict=True))


def sample(value: Value, size: int, rng: np.random.Generator) -> Array:
    """A random array that fits an input; `size` stands where the model leaves a size open.

    Raises:
        InputError: a type that no array can hold, or no shape is known.
    """
    if value.shape is None:
        raise InputError(f"input {value.name!r} may have any shape: none was chosen")
    shape = tuple(known if isinstance(known, int) else size for known in value.shape)
    dtype = dtype_of(value.type)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def repeat_proof(bundle: Bundle, proof: Proof, options: EngineOptions) -> Repeated:
    """Run proofs on this machine.

    Raises:
        InputError: onnxruntime refuses a segment.
    """
    apart: list[tuple[float, float, str, float]] = []  # share of the limit, how far, where, limit
    equal = 0
    segments = {segment.part: segment for segment in bundle.parts()}
    for part in proof.segments:
        found = _run(bundle, segments[part.segment], part.inputs, options)
        for name, want in part.outputs.items():
            off, limit = difference(want, found[name]), proof.limit(want.dtype)
            apart.append((off / limit, off, name, limit))
            equal += want.tobytes() == found[name].tobytes()
    _, worst, tensor, allowed = max(apart, default=(0.0, 0.0, "", proof.allowed))
    return Repeated(len(proof.segments), len(apart), equal, worst, tensor if worst else "", allowed)


def write_proof(path: Path, proof: Proof) -> None:
    """Write a proof to one `.npz`, whole or not at all."""
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
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            head = json.loads(held[_INDEX].tobytes())
            segments = tuple(
                SegmentProof(
                    entry["segment"],
                    {name: held[key] for name, key in entry["inputs"].items()},
                    {name: held[key] for name, key in entry["outputs"].items()},
                )
                for entry in head["segments"]
            )
            return Proof(segments, float(head["allowed"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"proof {path} is missing or damaged: deploy again") from error
