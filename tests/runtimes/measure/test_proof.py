"""A bundle keeps the proof of its cut; a wrong one is never written; a device can repeat it."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from offload.bundle.bundle import Bundle, open_bundle
from offload.bundle.write import write_bundle
from offload.costs.link import parse_link
from offload.costs.profile import LayerCost, Profile
from offload.errors import BundleError, InputError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload.planning.cut import cut_at
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload_cli.main import app
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import proof_record as evidence
from offload_runtimes.measure.proof_record import PROOF, prove, read_proof_record, repeat
from offload_runtimes.measure.proof_replay import (
    ARRAYS,
    Tensors,
    proof_of,
    read_proof,
    run_segments,
    write_proof,
)
from typer.testing import CliRunner

from tests.edge_cases import text
from tests.toolkit.bundle.several import swept

OPTIONS = EngineOptions(threads=1)
MODEL = text(
    """g (float[2,4] x) => (float[2,4] y) <float[4] w = {1.5, -2, 3, 0.5}> { a = Mul(x, w)
    b = Exp(a) d = Tanh(a) e = Sub(b, d) y = Sigmoid(e) }"""
)


def bundle_of(folder: Path, proving: bool = True) -> Bundle:
    onnx.save(MODEL, folder / "m.onnx")
    model = load_model(folder / "m.onnx")
    graph = read_graph(model)
    costs = tuple(LayerCost(layer.name, 1e-3, 1e-3, 1e-3) for layer in graph.layers)
    flat = Profile(graph.digest, "flat", "cpu", 1, costs, 5e-3, 1)
    situation = PlanningProblem.of(graph, flat, flat, parse_link("wifi"))
    plan = make_plan(situation, "opss", cut_at(graph, {0, 1, 2}))
    step = partial(prove, model) if proving else lambda _: ()
    return write_bundle(model, graph, plan, folder / "b", {}, step)


def test_a_bundle_keeps_its_proof_under_its_seal(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    assert {PROOF, ARRAYS} <= {file.name for file in bundle.files}
    kept = read_proof_record(bundle)
    assert kept.model == load_model(tmp_path / "m.onnx").digest
    assert kept.cut == tuple(send.tensor for send in bundle.plan.uploads)
    assert kept.opset == {"ai.onnx": 17}
    assert kept.exact == 0
    assert kept.inputs.keys() == {"x"}


def test_it_can_be_repeated(tmp_path: Path) -> None:
    found = repeat(bundle_of(tmp_path), OPTIONS)
    assert found.ok
    assert found.equal == found.outputs > 2


def test_a_half_repeats_its_half(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    (bundle.path / "server-0.onnx").unlink()
    found = repeat(open_bundle(bundle.path), OPTIONS)
    assert found.ok
    assert found.segments == len(bundle.plan.segments) - 1


def test_a_machine_that_computes_wrong_is_found(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    proof = read_proof(bundle.path / ARRAYS)
    proof.segments[-1].outputs["y"][0, 0] += np.float32(0.1)  # as if this machine gave other
    write_proof(bundle.path / ARRAYS, proof)
    found = repeat(bundle, OPTIONS)
    assert not found.ok
    assert found.tensor == "y"


def test_a_wrong_split_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(bundle: Bundle, feeds: Tensors, options: EngineOptions) -> object:
        proofs = run_segments(bundle, feeds, options)
        proofs[-1].outputs["y"][...] += 1
        return proofs

    monkeypatch.setattr(evidence, "run_segments", shifted)
    with pytest.raises(InputError, match="the split is wrong: output 'y' is off by"):
        bundle_of(tmp_path)
    assert not (tmp_path / "b").exists()


def test_verify_repeats_a_bundle(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    shown = CliRunner().invoke(app, ["verify", str(bundle.path)])
    assert shown.exit_code == 0
    assert "outputs have the maker's bits" in shown.output
    assert f"the maker's was {onnxruntime.__version__}" in " ".join(shown.output.split())


def test_what_is_proved_elsewhere_is_the_bundles_own_proof(tmp_path: Path) -> None:
    carried = proof_of(bundle_of(tmp_path)).segments
    own = read_proof_record(open_bundle(tmp_path / "b")).outputs
    assert evidence.digests_of(carried) == own


def test_a_bundle_without_proof(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no proof"):
        repeat(bundle_of(tmp_path, proving=False), OPTIONS)


def test_every_plan_of_several_is_proved(tmp_path: Path) -> None:
    bundle = swept(tmp_path, prove)
    parts = {part.part for part in bundle.parts()}
    assert {proof.segment for proof in read_proof(bundle.path / ARRAYS).segments} == parts
    assert read_proof_record(bundle).cut == ("m0", "x")
    found = repeat(bundle, OPTIONS)
    assert found.ok
    assert found.segments == len(parts) == 4
    assert found.equal == found.outputs == 4
    (bundle.path / "server-1.onnx").unlink()
    assert repeat(open_bundle(bundle.path), OPTIONS).segments == 3


def test_one_wrong_plan_of_several_spoils_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(bundle: Bundle, feeds: Tensors, options: EngineOptions) -> object:
        proofs = run_segments(bundle, feeds, options)
        if bundle.plan.scheme == "cloud":
            proofs[-1].outputs["y"][...] += 1
        return proofs

    monkeypatch.setattr(evidence, "run_segments", shifted)
    with pytest.raises(InputError, match="the split is wrong: output 'y' is off by"):
        swept(tmp_path, prove)
    assert not (tmp_path / "b").exists()
