"""The server process of an experiment.

`python -m offload_runtimes.workers.server_worker LISTEN THREADS BUNDLE...` prints
`{"listening": HOST:PORT}` when ready. It stops when its standard input closes, so that it never
outlives the process that started it.
"""

import json
import sys

from offload.errors import OffloadError

from offload_runtimes.engine import EngineOptions
from offload_runtimes.security.credentials import ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions


def main(listen: str, threads: str, bundles: list[str]) -> int:
    """Serve bundles until standard input closes; the exit code is 1 if they cannot be served."""
    engine = EngineOptions(threads=int(threads) or None)
    options = ServeOptions(engine, security=ServerSecurity(insecure=True))
    try:
        server = Server(bundles, listen, options).start()
    except (OffloadError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"listening": server.address}), flush=True)
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
