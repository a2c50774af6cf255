"""Commands of the light runtime, for machines without the `offload` command.

python -m offload_runtimes run | serve | prove | measure | preflight | version
"""

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from offload.errors import BundleError, InputError, exit_code, sentence, wants_traceback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: success; 1: failure; 2: wrong usage; 70: a bug. Failures and bugs print one sentence on
    stderr.
    """
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    try:
        options.command(options)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  a sentence instead of a traceback
        if wants_traceback():
            traceback.print_exc()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one line, without its place in the sources."""
    _warn_once(str(message))


@cache
def _warn_once(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m offload_runtimes", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run", help="run a bundle on inputs from an .npz file")
    run.add_argument("bundle", type=Path)
    run.add_argument("--input", type=Path, required=True, help=".npz or .json file with the inputs")
    run.add_argument(
        "--output",
        type=Path,
        help=".npz file for the outputs; sequences and maps go into a .json file beside it",
    )
    run.add_argument(
        "--server",
        action="append",
        default=[],
        help="HOST:PORT; default: a server in this process; repeat it for several servers: when one"
        " is lost, the next one is used",
    )
    run.add_argument(
        "--repeat",
        type=int,
        default=1,
        help="number of measured runs, after one to warm up; the median is printed",
    )
    run.add_argument("--plan", type=int, help="plan index, for bundles with several plans")
    run.add_argument(
        "--ca", type=Path, help="use TLS; file of the authority of the server's certificate"
    )
    run.set_defaults(command=_run)
    serve = verbs.add_parser("serve", help="serve the server's part of bundles")
    serve.add_argument("bundles", type=Path, nargs="+")
    serve.add_argument("--listen", default="127.0.0.1:50051")
    serve.add_argument(
        "--insecure", action="store_true", help="allow plaintext beyond this machine"
    )
    serve.add_argument(
        "--client-ca", type=Path, help="admit only devices with a certificate of this authority"
    )
    serve.add_argument(
        "--max-memory", help="memory for models and tensors, like '2 GB'; default: no limit"
    )
    serve.add_argument(
        "--releases",
        type=int,
        help="of ROOT/current, serve N releases, including the current one; default: all kept",
        metavar="N",
    )
    serve.add_argument("--workers", type=int, default=1, help="segments that run at the same time")
    serve.add_argument(
        "--batch", type=int, default=1, help="most rows of several sessions to run in one call"
    )
    serve.add_argument(
        "--batch-wait", type=float, default=0.0, help="seconds to wait for these rows"
    )
    serve.add_argument(
        "--max-sessions", type=int, default=64, help="most sessions at the same time"
    )
    serve.add_argument("--metrics", help="HOST:PORT where Prometheus reads /metrics")
    serve.add_argument("--log", action="store_true", help="write JSON lines to stderr")
    serve.set_defaults(command=_serve)
    prove = verbs.add_parser("prove", help="run a bundle's proof on this machine")
    prove.add_argument("bundle", type=Path)
    prove.add_argument("--proof", type=Path, required=True)
    prove.set_defaults(command=_prove)
    measure = verbs.add_parser("measure", help="time models for a planning machine (stdin, stdout)")
    measure.set_defaults(command=_measure)
    preflight = verbs.add_parser("preflight", help="check that onnxruntime works on this machine")
    preflight.set_defaults(command=_preflight)
    version = verbs.add_parser("version", help="print the versions of this runtime")
    version.set_defaults(command=_version)
    for verb in (run, serve):
        verb.add_argument("--cert", type=Path, help="certificate of this side (.pem)")
        verb.add_argument("--key", type=Path, help="private key of --cert")
        verb.add_argument(
            "--token-file",
            type=Path,
            help="file with the bearer token; for a server, one token a line",
        )
    for verb in (run, serve, prove):
        verb.add_argument("--threads", type=int)
    for verb in (run, serve, prove, preflight):
        verb.add_argument("--provider", action="append", default=[])
        verb.add_argument(
            "--allow-cpu",
            action="store_true",
            help="run on the CPU, with a warning, where a provider is missing",
        )
    return parser


def _run(options: argparse.Namespace) -> None:
    import statistics

    from offload_runtimes.local import open_session
    from offload_runtimes.security.credentials import ClientSecurity, read_tokens
    from offload_runtimes.value_files import read_values, typed, write_values

    if options.repeat < 1:
        raise InputError(f"--repeat {options.repeat} is not understood: give 1 or more")
    feeds = read_values(options.input)
    token = read_tokens(options.token_file)[0] if options.token_file else None
    security = ClientSecurity(options.ca, options.cert, options.key, token)
    session_options = {
        "providers": tuple(options.provider),
        "threads": options.threads,
        "allow_cpu": options.allow_cpu,
        "plan": options.plan,
    }
    servers = options.server[0] if len(options.server) == 1 else options.server or None
    with open_session(options.bundle, servers, security=security, **session_options) as session:
        feeds = typed(feeds, (*session.get_inputs(), *session.get_overridable_initializers()))
        session.run(None, feeds)  # the first run of all is slower: it allocates
        runs = [session.run_timed(None, feeds) for _ in range(options.repeat)]
        outputs = runs[-1][0]
        names = [value.name for value in session.get_outputs()]
    if options.output:
        write_values(options.output, dict(zip(names, outputs, strict=True)))
    seconds = [timeline.makespan_s for _, timeline in runs]
    report = {"outputs": names, "latency_s": statistics.median(seconds), "latencies_s": seconds}
    print(json.dumps(report))


def _serve(options: argparse.Namespace) -> None:
    from offload.units import parse_bytes

    from offload_runtimes.serving.handshakes import report_handshakes

    report_handshakes()
    from offload_runtimes.daemon import serve_until_asked
    from offload_runtimes.engine import EngineOptions
    from offload_runtimes.security.credentials import ServerSecurity
    from offload_runtimes.server import Server
    from offload_runtimes.serving.metrics import log_to_stderr
    from offload_runtimes.serving.serve_options import ServeOptions

    security = ServerSecurity(
        options.cert,
        options.key,
        options.client_ca,
        insecure=options.insecure,
        token_file=options.token_file,
    )
    if options.log:
        log_to_stderr()
    serve_options = ServeOptions(
        EngineOptions(tuple(options.provider), options.threads, allow_cpu=options.allow_cpu),
        workers=options.workers,
        max_sessions=options.max_sessions,
        max_memory_bytes=int(parse_bytes(options.max_memory)) if options.max_memory else None,
        max_releases=options.releases,
        batch_rows=options.batch,
        batch_wait_s=options.batch_wait,
        metrics=options.metrics,
        security=security,
    )
    server = Server(options.bundles, options.listen, serve_options)

    def ready(address: str) -> None:
        report = {
            "listening": address,
            "bundles": list(server.bundles),
            "providers": list(server.providers),
        }
        print(json.dumps(report), flush=True)

    serve_until_asked(server, ready)


def _prove(options: argparse.Namespace) -> None:
    from offload.bundle.bundle import open_bundle

    from offload_runtimes.engine import EngineOptions
    from offload_runtimes.measure.proof_replay import read_proof, repeat_proof

    engine = EngineOptions(tuple(options.provider), options.threads, allow_cpu=options.allow_cpu)
    proofs = read_proof(options.proof)
    result = repeat_proof(open_bundle(options.bundle), proofs, engine)
    print(json.dumps(result.to_json()))
    if not result.ok:
        raise BundleError(
            f"{options.bundle} gives other numbers on this machine: {result.tensor!r} is off by"
            f" {result.worst:.2g} of its largest value, {result.allowed:g} is allowed"
        )


def _measure(_: argparse.Namespace) -> None:
    from offload_runtimes.measure.worker import main as serve_measurements

    serve_measurements()


def _preflight(options: argparse.Namespace) -> None:
    from offload_runtimes.installation import preflight

    print(json.dumps(preflight(options.provider, allow_cpu=options.allow_cpu)))


def _version(_: argparse.Namespace) -> None:
    from offload_runtimes.installation import source_digest, versions
    from offload_runtimes.protocol.codecs import has_pictures

    about = {"source": source_digest(), "pictures": has_pictures()}
    print(json.dumps({**versions().to_json(), **about}))


if __name__ == "__main__":
    sys.exit(main())
