"""A bundle whose plans share the frames of a stream, for chaos and soak."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload.bundle.bundle import MANIFEST, Bundle, manifest_digest, open_bundle
from offload.planning.plan import Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import Array, load

from tests.toolkit.bundle.several import WIDTHS, swept

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Shared:
    """A bundle of three plans (local, split, on the server), inputs and the right outputs."""

    bundle: Bundle
    cases: list[tuple[Feeds, list[Array]]]


def shared_bundle(folder: Path, count: int) -> Shared:
    """Write the bundle; its manifest says that the plans share frames."""
    made = swept(folder)
    path = made.path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop("digest")
    manifest["shares"] = [0.4, 0.2, 0.4]
    path.write_text(json.dumps({"digest": manifest_digest(manifest), **manifest}))
    whole = load(folder / "net.onnx")
    cases = []
    for seed in range(count):
        x = np.random.default_rng(seed).standard_normal((4, WIDTHS[0]), np.float32)
        cases.append(({"x": x}, whole.run(None, {"x": x})))
    return Shared(open_bundle(made.path, tuple(Side)), cases)


def stream_cases(
    session: OffloadSession, shared: Shared, goes_on: Callable[[], bool]
) -> Iterator[bool]:
    """Stream the inputs again and again; for each answer, whether it is right.

    An answer that comes out of order is wrong: neighbours have different outputs.
    """

    def source() -> Iterator[Feeds]:
        number = 0
        while goes_on():
            yield shared.cases[number % len(shared.cases)][0]
            number += 1

    for number, answers in enumerate(session.stream(source())):
        expected = shared.cases[number % len(shared.cases)][1]
        pairs = zip(answers, expected, strict=True)
        yield all(np.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)
