"""The evidence a bundle keeps: that its parts gave what the whole model gave, and how to repeat it.

`proof.json` holds digests: of the model, of the inputs tried, of the outputs got, with the cut,
the operator sets and the engine's version. `proof.npz` holds the arrays of every segment, so
that a machine with only its half can run that half again.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from offload.bundle.bundle import Bundle
from offload.bundle.compare import Tolerances, gap
from offload.bundle.engine_input import whole_input
from offload.bundle.sample_inputs import GivenInputs, inputs_of, sample
from offload.bundle.verify import Runner
from offload.errors import BundleError, InputError
from offload.files import write_text
from offload.graph.load import Model

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
    """What was found when the bundle was made.

    Attributes:
        model: SHA-256 digest of the source model.
        cut: tensors that cross, in any plan.
        opset: operator set versions by domain.
        onnxruntime: version of the engine.
        inputs: SHA-256 of each model input tried, dtype and shape included.
        outputs: SHA-256 of each output of each segment, by `segment/tensor`.
        exact: largest relative difference between parts and whole without optimisations, over
            all plans.
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
        return {"format": PROOF_FORMAT, **asdict(self), "cut": list(self.cut)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ProofRecord":
        """Read what `to_json` wrote.

        Raises:
            BundleError: another format, or damaged.
        """
        try:
            if value["format"] != PROOF_FORMAT:
                raise BundleError(f"{PROOF} has format {value['format']}: make the bundle again")
            fields = {key: found for key, found in value.items() if key != "format"}
            return cls(**{**fields, "cut": tuple(value["cut"])})
        except (KeyError, TypeError) as error:
            raise BundleError(f"{PROOF} is damaged: make the bundle again") from error


def prove(
    model: Model, bundle: Bundle, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> tuple[str, ...]:
    """Run a bundle's segments against the whole model and write the evidence into its folder.

    Sizes that the model leaves open are small ones that it accepts, else those of `shapes`.

    Returns:
        Names of the files written; none when no random input was found that the model takes
        (`offload verify MODEL --input` can be told one), when it answers at random, or when no
        part of it takes numbers alone.

    Raises:
        InputError: the parts do not give what the whole gives: the bundle must not be used.
    """
    if model.path is None:
        return ()
    engine = opener(EngineOptions(optimize=False))
    whole_model = engine(whole_input(model), False)
    feeds = _sample(model, whole_model, shapes)
    if feeds is None:
        return ()
    plain = whole_model(feeds)
    if any(gap(want, again) for want, again in _pairs(plain, whole_model(feeds))):
        return ()  # it answers at random: there is nothing to repeat
    del whole_model  # one copy of the weights at a time
    whole = [plain, engine(whole_input(model), True)(feeds)]
    plans = [bundle.only(number) for number in range(len(bundle.plans))]
    tried = [_try(model, plan, feeds, whole) for plan in plans]
    proofs = of_numbers(each_once(proof for found in tried for proof in found.proofs))
    if not proofs:
        return ()  # text, sequences and maps have no place in an .npz
    evidence = ProofRecord(
        model=model.digest,
        cut=tuple(dict.fromkeys(send.tensor for plan in bundle.plans for send in plan.uploads)),
        opset={entry.domain or "ai.onnx": entry.version for entry in model.proto.opset_import},
        onnxruntime=ORT_VERSION,
        inputs={name: digest_of(array) for name, array in feeds.items() if is_numbers(array)},
        outputs=digests_of(proofs),
        exact=max(found.exact for found in tried),
        optimized=max(found.optimized for found in tried),
    )
    write_text(bundle.path / PROOF, json.dumps(evidence.to_json(), indent=1))
    allowed = _allowed(evidence.exact, max(evidence.optimized, *(f.inside for f in tried)))
    write_proof(bundle.path / ARRAYS, Proof(proofs, allowed))
    return PROOF, ARRAYS


def _sample(
    model: Model, run: Runner, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Array] | None:
    """Inputs that the model accepts; None where none were found."""
    inputs = inputs_of(model)
    for given in (GivenInputs(), GivenInputs(shapes=shapes)):
        with contextlib.suppress(InputError):
            return sample(inputs, run, given, 1)[0]
    return None


@dataclass(frozen=True, slots=True)
class _PlanProof:
    """One plan against the whole model: its parts' proofs, and how far they were off."""

    proofs: tuple[SegmentProof, ...]
    exact: float
    optimized: float
    inside: float


def _try(
    model: Model, bundle: Bundle, feeds: Mapping[str, Any], whole: Sequence[Mapping[str, Any]]
) -> _PlanProof:
    """Run a bundle of one plan; `whole` are the answers without and with optimisations."""
    proofs = tuple(run_segments(bundle, feeds, EngineOptions(optimize=False)))
    made, fast = made_by(proofs), made_by(tuple(run_segments(bundle, feeds, EngineOptions())))
    return _PlanProof(
        proofs,
        _compare(model, bundle, whole[0], made, None),
        _compare(model, bundle, whole[1], fast, whole[0]),
        max((gap(want, fast[name]) for name, want in made.items()), default=0.0),
    )


def repeat(bundle: Bundle, options: EngineOptions) -> ProofRun:
    """Run the segments that are here once more, without and with the engine's optimisations.

    Returns:
        The worse of the two; `equal` counts outputs without optimisations.

    Raises:
        BundleError: the bundle carries no proof, or it is damaged.
        InputError: onnxruntime refuses a segment.
    """
    if not (bundle.path / ARRAYS).is_file():
        raise BundleError(
            f"bundle {bundle.path} carries no proof: verify its model with `offload verify MODEL`"
        )
    here = {s.part for s in bundle.parts() if bundle.segment_path(s.part).is_file()}
    proof = read_proof(bundle.path / ARRAYS).only(here)
    plain, fast = (
        repeat_proof(bundle, proof, replace(options, optimize=mode)) for mode in (False, True)
    )
    worse = max(plain, fast, key=lambda found: found.worst / found.allowed)
    return replace(worse, equal=plain.equal)


def read_proof_record(bundle: Bundle) -> ProofRecord:
    """What a bundle's `proof.json` says.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    try:
        return ProofRecord.from_json(json.loads((bundle.path / PROOF).read_text()))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / PROOF} is missing or damaged: make the bundle again"
        ) from error


def _allowed(exact: float, optimized: float) -> float:
    """Other machines sum in other orders: a thousandth, or what optimisation did here."""
    return min(max(TOLERANCE, 4 * optimized, 4 * exact), _MOST_ALLOWED)


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


def made_by(proofs: tuple[SegmentProof, ...]) -> dict[str, Array]:
    """All that the segments made, by name."""
    return {name: array for proof in proofs for name, array in proof.outputs.items()}


def _pairs(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(one[name], two[name]) for name in one]


def _compare(
    model: Model,
    bundle: Bundle,
    whole: Mapping[str, Any],
    made: Mapping[str, Array],
    plain: Mapping[str, Any] | None,
) -> float:
    """Largest gap of an output; `plain` is the whole without optimisations, None if it is."""
    freedom, worst = Tolerances.of(model), 0.0
    loses = any(send.wire != send.tensor for send in bundle.plan.uploads)
    for value in bundle.outputs:
        if value.name not in made:
            continue  # passed through: the caller has it already
        want, dtype = whole[value.name], value.type[len("tensor(") : -1]
        own = 0.0 if plain is None else gap(plain[value.name], want, dtype)
        apart = gap(want, made[value.name], dtype)
        if loses:  # as the user allows, on other inputs than these: not for this to judge
            apart = min(apart, 1.0)
        elif apart > freedom.limit(dtype, plain is not None, own):
            raise InputError(
                f"the split is wrong: output {value.name!r} is off by {apart:.1e} of its largest"
                " value; please report the model"
            )
        worst = max(worst, apart)
    return worst
