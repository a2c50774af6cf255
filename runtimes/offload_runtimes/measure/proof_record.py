"""Prove that a bundle's segments give the whole model's outputs, and record the proof.

`proof.json` holds digests of the model, of the inputs and of the outputs, with the cut, the
operator sets and the engine's version. `proof.npz` holds the arrays of every segment, so that a
machine with only its half of the bundle can run that half again.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from offload.bundle.bundle import Bundle
from offload.bundle.compare import Tolerances, difference
from offload.bundle.engine_input import whole_input
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import SampleOptions, sample
from offload.errors import BundleError, InputError
from offload.files import write_text
from offload.graph.load import Model
from offload.records import fields_from_json, fields_to_json

from offload_runtimes.engine import ORT_VERSION, Array, EngineOptions
from offload_runtimes.measure.proof_replay import (
    ARRAYS,
    TOLERANCE,
    Proof,
    ProofRun,
    SegmentProof,
    each_once,
    is_numbers,
    of_numbers,
    read_proof,
    repeat_proof,
    run_segments,
    write_proof,
)
from offload_runtimes.measure.verify import opener

PROOF_FORMAT = 1
PROOF = "proof.json"
_MOST_ALLOWED = 0.1


@dataclass(frozen=True)
class ProofRecord:
    """The record of a proof, written when the bundle is made.

    Attributes:
        model: SHA-256 digest of the source model.
        cut: tensors that are sent, in any plan.
        opset: operator set versions by domain.
        onnxruntime: version of the engine.
        inputs: SHA-256 of each model input tried, dtype and shape included.
        outputs: SHA-256 of each output of each segment, by `segment/tensor`.
        exact: largest relative difference between segments and whole model without optimisations,
            over all plans.
        optimized: the same with optimisations.
    """

    model: str
    cut: tuple[str, ...]
    opset: Mapping[str, int]
    onnxruntime: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    exact: float
    optimized: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {"format": PROOF_FORMAT, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ProofRecord":
        """Read what `to_json` wrote.

        Raises:
            BundleError: another format, or damaged.
        """
        try:
            if value["format"] != PROOF_FORMAT:
                raise BundleError(f"{PROOF} has format {value['format']}: make the bundle again")
            return fields_from_json(cls, value)
        except (KeyError, TypeError) as error:
            raise BundleError(f"{PROOF} is damaged: make the bundle again") from error


def prove(
    model: Model, bundle: Bundle, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> tuple[str, ...]:
    """Run a bundle's segments against the whole model and write the proof into its folder.

    Open input sizes are small ones that the model accepts, else those of `shapes`.

    Returns:
        Names of the files written; none when no random input was found that the model accepts
        (`offload verify MODEL --input` takes one), when its outputs are random, or when no
        segment has only numbers as inputs.

    Raises:
        InputError: the segments do not give the whole model's outputs: the bundle must not be
            used.
    """
    if model.path is None:
        return ()
    engine = opener(EngineOptions(optimize=False))
    whole_model = engine(whole_input(model), False)
    feeds, inputs = None, inputs_of(model)
    for sizes in (SampleOptions(), SampleOptions(shapes=shapes)):
        with contextlib.suppress(InputError):
            feeds = sample(inputs, whole_model, sizes, 1)[0]
            break
    if feeds is None:
        return ()
    plain, again = whole_model(feeds), whole_model(feeds)
    if any(difference(plain[name], again[name]) for name in plain):
        return ()  # its outputs are random: nothing can be repeated
    del whole_model  # one copy of the weights at a time
    optimized = engine(whole_input(model), True)(feeds)
    proofs: list[SegmentProof] = []
    exact_gap = optimized_gap = inner_gap = 0.0
    for number in range(len(bundle.plans)):
        plan = bundle.only(number)
        segments = run_segments(plan, feeds, EngineOptions(optimize=False))
        outputs = outputs_of(segments)
        fast = outputs_of(run_segments(plan, feeds, EngineOptions()))
        exact_gap = max(exact_gap, _compare(model, plan, plain, outputs, None))
        optimized_gap = max(optimized_gap, _compare(model, plan, optimized, fast, plain))
        inner_gap = max(
            inner_gap, *(difference(want, fast[name]) for name, want in outputs.items()), 0.0
        )
        proofs += segments
    numeric = of_numbers(each_once(proofs))
    if not numeric:
        return ()  # an .npz cannot hold text, sequences and maps
    record = ProofRecord(
        model=model.digest,
        cut=tuple(dict.fromkeys(send.tensor for plan in bundle.plans for send in plan.uploads)),
        opset={entry.domain or "ai.onnx": entry.version for entry in model.proto.opset_import},
        onnxruntime=ORT_VERSION,
        inputs={name: digest_of(array) for name, array in feeds.items() if is_numbers(array)},
        outputs=digests_of(numeric),
        exact=exact_gap,
        optimized=optimized_gap,
    )
    write_text(bundle.path / PROOF, json.dumps(record.to_json(), indent=1))
    # Other machines add in another order: a thousandth, or a few times the differences here.
    allowed = min(max(TOLERANCE, 4 * max(exact_gap, optimized_gap, inner_gap)), _MOST_ALLOWED)
    write_proof(bundle.path / ARRAYS, Proof(numeric, allowed))
    return PROOF, ARRAYS


def repeat(bundle: Bundle, options: EngineOptions) -> ProofRun:
    """Run the segments on this machine again, without and with the engine's optimisations.

    Returns:
        The worse of the two; `equal` counts outputs without optimisations.

    Raises:
        BundleError: the bundle has no proof, or it is damaged.
        InputError: onnxruntime refuses a segment.
    """
    if not (bundle.path / ARRAYS).is_file():
        raise BundleError(
            f"bundle {bundle.path} has no proof: verify its model with `offload verify MODEL`"
        )
    present = {s.part for s in bundle.parts() if bundle.segment_path(s.part).is_file()}
    proof = read_proof(bundle.path / ARRAYS).only(present)
    plain, fast = (
        repeat_proof(bundle, proof, replace(options, optimize=mode)) for mode in (False, True)
    )
    worse = max(plain, fast, key=lambda run: run.worst / run.allowed)
    return replace(worse, equal=plain.equal)


def read_proof_record(bundle: Bundle) -> ProofRecord:
    """Read a bundle's `proof.json`.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    try:
        return ProofRecord.from_json(json.loads((bundle.path / PROOF).read_text()))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / PROOF} is missing or damaged: make the bundle again"
        ) from error


def digest_of(array: Array) -> str:
    """SHA-256 of an array's dtype, shape and numbers."""
    head = f"{array.dtype.str}{list(array.shape)}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def digests_of(proofs: tuple[SegmentProof, ...]) -> dict[str, str]:
    """Digests of all outputs, by `segment/tensor`."""
    return {
        f"{proof.segment}/{name}": digest_of(array)
        for proof in proofs
        for name, array in proof.outputs.items()
    }


def outputs_of(proofs: Iterable[SegmentProof]) -> dict[str, Array]:
    """All outputs of the segments, by name."""
    return {name: array for proof in proofs for name, array in proof.outputs.items()}


def _compare(
    model: Model,
    bundle: Bundle,
    whole: Mapping[str, Any],
    outputs: Mapping[str, Array],
    plain: Mapping[str, Any] | None,
) -> float:
    """Largest gap of an output; `plain`: the whole model's without optimisations, or None.

    Raises:
        InputError: a gap is larger than the engine may cause.
    """
    tolerances, worst = Tolerances.of(model), 0.0
    is_encoded = any(send.wire != send.tensor for send in bundle.plan.uploads)
    for value in bundle.outputs:
        if value.name not in outputs:
            continue  # an input passed through: the caller has it already
        want, dtype = whole[value.name], value.type[len("tensor(") : -1]
        own = 0.0 if plain is None else difference(plain[value.name], want, dtype)
        apart = difference(want, outputs[value.name], dtype)
        if is_encoded:  # the user allows an error, measured on other inputs
            apart = min(apart, 1.0)
        elif apart > tolerances.limit(dtype, plain is not None, own):
            raise InputError(
                f"the split is wrong: output {value.name!r} is off by {apart:.1e} of its largest"
                " value; please report the model"
            )
        worst = max(worst, apart)
    return worst
