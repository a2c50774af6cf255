"""The Ray side of `make bench-ray`: one application whose number of replicas changes on request.

Run by the Python of `build/ray`: `ray_replicas.py BUNDLE WAIT_S`. It prints the ingress's address,
then reads a number of replicas from each line of its input, and prints `ready` when they serve.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from offload_runtimes.address import parse_address
from offload_runtimes.engine import EngineOptions
from offload_runtimes.ray.application import bundle_paths, deployment_options, import_serve
from offload_runtimes.ray.cluster import deploy, local_cluster
from offload_runtimes.ray.replica import Replica
from offload_runtimes.serving.serve_options import ServeOptions

OPTIONS = ServeOptions(EngineOptions(threads=1))


class WaitingCall:
    """A run of a segment that also takes the time of a wait."""

    def __init__(self, call: Any, wait_s: float) -> None:
        self._call = call
        self._wait_s = wait_s
        self.stop = call.stop

    def run(self, *arguments: Any) -> Any:
        time.sleep(self._wait_s)
        return self._call.run(*arguments)


class WaitingEngine:
    """An engine whose runs take the time of a wait as well, as on a GPU of its own."""

    def __init__(self, engine: Any, wait_s: float) -> None:
        self._engine = engine
        self._wait_s = wait_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prepare(self, max_run_s: float) -> WaitingCall:
        return WaitingCall(self._engine.prepare(max_run_s), self._wait_s)


class WaitingReplica(Replica):
    """A replica whose segments take the time of a wait, too."""

    def __init__(self, wait_s: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        for loaded in self._server._bundles.loaded.values() if wait_s else ():
            for part, engine in loaded.engines.items():
                loaded.engines[part] = WaitingEngine(engine, wait_s)  # type: ignore[assignment]


def main() -> None:
    bundle, wait_s = Path(sys.argv[1]), float(sys.argv[2])
    root = str(Path(__file__).parent.parent.parent)
    os.environ["PYTHONPATH"] = root  # the replicas import this module
    sys.path.insert(0, root)
    from tests.benchmarks import ray_replicas

    serve = import_serve()
    with local_cluster(parse_address("127.0.0.1:0")) as ingress:
        print(ingress.address, flush=True)
        for line in sys.stdin:
            count = int(line)
            settings = deployment_options(OPTIONS, replicas=count, gpus=0.0, drain_s=5.0)
            deployment = serve.deployment(**settings)(ray_replicas.WaitingReplica)
            paths, digests = bundle_paths([bundle])
            deploy(deployment.bind(wait_s, paths, digests, OPTIONS, 5.0, False), count, {})
            print("ready", flush=True)


if __name__ == "__main__":
    main()
