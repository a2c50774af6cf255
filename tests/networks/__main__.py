"""Take networks through `offload`: `python -m tests.networks [--full] [NAME...]`.

`make test-models` tries eight networks; with FULL=1 all of them, and writes `docs/models.md`. The
result of each is kept in `build/networks/results`: a run that was stopped goes on with the next
network, and results of the same source of the product are not measured again.
"""

import argparse
import dataclasses
import hashlib
import json
import signal
import sys
from pathlib import Path

from tests.benchmarks.goals import report
from tests.networks.files import export_python
from tests.networks.networks import NETWORKS, Network
from tests.networks.page import FULL_NETWORKS, faults, goals, page, table, versions
from tests.networks.trial import ROOT, Result, Trial

WORK = ROOT / "build"
PAGE = ROOT / "docs/models.md"


def product_version() -> str:
    """A digest of the product's source: another source, another result."""
    found = hashlib.sha256()
    for room in ("toolkit", "runtimes", "models", "cli"):
        for path in sorted((ROOT / room).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def result_path(network: Network) -> Path:
    """Where the network's result is kept."""
    return WORK / "networks/results" / f"{network.name}.json"


def kept(path: Path) -> Result | None:
    """A result of an earlier run."""
    return Result(**json.loads(path.read_text())) if path.exists() else None


def result_of(network: Network, version: str, keep_right: bool) -> Result:
    """The network's result: of now, or of an earlier run with the same source."""
    path = result_path(network)
    found = kept(path)
    if found and (found.version == version or (keep_right and found.right)):
        print(f"{network.name}: kept from an earlier run", flush=True)
        return found
    found = dataclasses.replace(Trial(network, WORK).run(), version=version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(found)))
    taken = sum(found.seconds.values())
    print(f"{network.name}: {'right' if found.right else 'wrong'}, {taken:.0f} s", flush=True)
    for line in faults([found]):
        print(f"  {line}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.networks", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks to try; default: the quick ones")
    parser.add_argument("--full", action="store_true", help="try all and write docs/models.md")
    parser.add_argument(
        "--keep-right", action="store_true", help="keep right results of another source, too"
    )
    parser.add_argument(
        "--page", action="store_true", help="try none: write docs/models.md from kept results"
    )
    given = parser.parse_args()
    unknown = set(given.names) - {network.name for network in NETWORKS}
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    chosen = [
        network
        for network in NETWORKS
        if given.full or (network.name in given.names if given.names else network.quick)
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, too
    version = product_version()
    if given.page:
        earlier = [kept(result_path(network)) for network in NETWORKS]
        results = [result for result in earlier if result]
    else:
        results = [result_of(network, version, given.keep_right) for network in chosen]
    found = goals(results, FULL_NETWORKS if given.full or given.page else len(chosen))
    print("\n".join(["", *table(results), ""]))
    if given.full or given.page:
        PAGE.write_text(page(results, found, versions(export_python(WORK))))
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return report(found)


if __name__ == "__main__":
    sys.exit(main())
