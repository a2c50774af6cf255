"""Every plan of a bundle gives what the whole model gives, over real gRPC, side by side."""

from pathlib import Path

import numpy as np
import pytest
from offload.bundle.bundle import Bundle
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.local import open_session
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions

from tests.runtimes.bundles import deployed_bundle
from tests.toolkit.bundle.several import WIDTHS, swept

EXACT = EngineOptions(optimize=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return swept(tmp_path_factory.mktemp("plans"))


def frame(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((4, WIDTHS[0]), np.float32)}


def whole(bundle: Bundle, feeds: dict[str, np.ndarray]) -> np.ndarray:
    (y,) = load(bundle.path.parent / "net.onnx", EXACT).run(None, feeds)
    return y


def test_sessions_with_different_plans_on_one_server(bundle: Bundle, tmp_path: Path) -> None:
    device = deployed_bundle(bundle, Side.DEVICE, tmp_path / "device")
    far = deployed_bundle(bundle, Side.SERVER, tmp_path / "server")
    with Server([far], options=ServeOptions(EXACT)) as server:
        sessions = [
            OffloadSession(device, server.address, plan=number, optimize=False)
            for number in range(len(bundle.plans))
        ]
        for seed in range(3):
            for session in sessions:
                (y,) = session.run(None, frame(seed))
                assert np.array_equal(y, whole(bundle, frame(seed)))
        assert [session.is_split for session in sessions] == [False, True, True]
        for session in sessions:
            session.close()


def test_a_plan_that_stays_here_starts_no_server(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Server, "start")
    with open_session(bundle, plan=0, optimize=False) as session:
        assert np.array_equal(session.run(None, frame(1))[0], whole(bundle, frame(1)))


def test_an_unknown_plan_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no plan 3: its plans are 0 to 2"):
        open_session(bundle, plan=3)
