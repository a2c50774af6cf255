"""The light runtime's own commands, for machines without the `offload` command.

python -m offload_runtimes run | serve | prove | preflight | version
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
    """Run one command; its exit code.

    0: success; 1: failure, one sentence on stderr; 2: wrong usage; 70: a bug, one sentence too.
    """
    asked = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    try:
        asked.command(asked)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  the last resort: a sentence, not a traceback
        if wants_traceback():
            traceback.print_exc()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as one line for people, without the place in our sources."""
    _warn_once(str(message))


@cache
def _warn_once(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m offload_runtimes", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run", help="run a bundle on inputs from an .npz")
    run.add_argument("bundle", type=Path)
    run.add_argument("--input", type=Path, required=True, help=".npz (or .json) with the inputs")
    run.add_argument(
        "--output",
        type=Path,
        help=".npz to write the outputs to; sequences and maps: .json beside it",
    )
    run.add_argument("--server", help="HOST:PORT; default: a server within this process")
    run.add_argument(
        "--repeat", type=int, default=1, help="measured runs, after one to warm up; their median"
    )
    run.add_argument("--plan", type=int, help="of a bundle of several: this one, by its number")
    run.add_argument("--ca", type=Path, help="authority of the server's certificate: use TLS")
    run.set_defaults(command=_run)
    serve = verbs.add_parser("serve", help="serve the server's part of bundles")
    serve.add_argument("bundles", type=Path, nargs="+")
    serve.add_argument("--listen", default="127.0.0.1:50051")
    serve.add_argument("--insecure", action="store_true", help="allow plaintext beyond loopback")
    serve.add_argument("--client-ca", type=Path, help="admit only this authority's devices")
    serve.add_argument("--max-memory", help="for models and tensors, like '2 GB'; default: any")
    serve.add_argument(
        "--releases",
        type=int,
        help="of ROOT/current, serve so many releases, the current one included; default: all kept",
    )
    serve.add_argument("--batch", type=int, default=1, help="rows of several sessions at once")
    serve.add_argument("--batch-wait", type=float, default=0.0, help="seconds to wait for them")
    serve.add_argument("--max-sessions", type=int, default=64, help="sessions at the same time")
    serve.add_argument("--metrics", help="HOST:PORT where Prometheus reads /metrics")
    serve.add_argument("--log", action="store_true", help="write JSON lines to stderr")
    serve.set_defaults(command=_serve)
    prove = verbs.add_parser("prove", help="repeat a bundle's proof on this machine")
    prove.add_argument("bundle", type=Path)
    prove.add_argument("--proof", type=Path, required=True)
    prove.set_defaults(command=_prove)
    preflight = verbs.add_parser("preflight", help="find out whether onnxruntime works here")
    preflight.set_defaults(command=_preflight)
    version = verbs.add_parser("version", help="print the versions of what runs models here")
    version.set_defaults(command=_version)
    for verb in (run, serve):
        verb.add_argument("--cert", type=Path, help="own certificate (.pem)")
        verb.add_argument("--key", type=Path, help="private key of --cert")
        verb.add_argument(
            "--token-file", type=Path, help="file with the bearer token; a server takes one a line"
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


def _run(asked: argparse.Namespace) -> None:
    import statistics

    from offload_runtimes.local import open_session
    from offload_runtimes.security.credentials import ClientSecurity, read_tokens
    from offload_runtimes.value_files import read_values, typed, write_values

    if asked.repeat < 1:
        raise InputError(f"--repeat {asked.repeat} is not understood: give 1 or more")
    feeds = read_values(asked.input)
    token = read_tokens(asked.token_file)[0] if asked.token_file else None
    security = ClientSecurity(asked.ca, asked.cert, asked.key, token)
    options = {
        "providers": tuple(asked.provider),
        "threads": asked.threads,
        "allow_cpu": asked.allow_cpu,
        "plan": asked.plan,
    }
    with open_session(asked.bundle, asked.server, security=security, **options) as session:
        feeds = typed(feeds, (*session.get_inputs(), *session.get_overridable_initializers()))
        session.run(None, feeds)  # the first run of all is slower: it allocates
        runs = [session.run_timed(None, feeds) for _ in range(asked.repeat)]
        answers = runs[-1][0]
        names = [value.name for value in session.get_outputs()]
    if asked.output:
        write_values(asked.output, dict(zip(names, answers, strict=True)))
    seconds = [timeline.makespan_s for _, timeline in runs]
    told = {"outputs": names, "latency_s": statistics.median(seconds), "latencies_s": seconds}
    print(json.dumps(told))


def _serve(asked: argparse.Namespace) -> None:
    from offload.units import parse_bytes

    from offload_runtimes.serving.handshakes import report_handshakes

    report_handshakes()
    from offload_runtimes.daemon import serve_until_asked
    from offload_runtimes.engine import EngineOptions
    from offload_runtimes.security.credentials import ServerSecurity
    from offload_runtimes.server import Server
    from offload_runtimes.serving.batching import Batching
    from offload_runtimes.serving.metrics import log_to_stderr
    from offload_runtimes.serving.serve_options import ServeOptions

    security = ServerSecurity(
        asked.cert,
        asked.key,
        asked.client_ca,
        insecure=asked.insecure,
        token_file=asked.token_file,
    )
    if asked.log:
        log_to_stderr()
    options = ServeOptions(
        EngineOptions(tuple(asked.provider), asked.threads, allow_cpu=asked.allow_cpu),
        max_sessions=asked.max_sessions,
        max_memory_bytes=int(parse_bytes(asked.max_memory)) if asked.max_memory else None,
        max_releases=asked.releases,
        batching=Batching(asked.batch, asked.batch_wait),
        metrics=asked.metrics,
        security=security,
    )
    server = Server(asked.bundles, asked.listen, options)

    def ready(address: str) -> None:
        told = {
            "listening": address,
            "bundles": list(server.bundles),
            "providers": list(server.providers),
        }
        print(json.dumps(told), flush=True)

    serve_until_asked(server, ready)


def _prove(asked: argparse.Namespace) -> None:
    from offload.bundle.bundle import open_bundle

    from offload_runtimes.engine import EngineOptions
    from offload_runtimes.measure.proof_replay import read_proof, repeat_proof

    options = EngineOptions(tuple(asked.provider), asked.threads, allow_cpu=asked.allow_cpu)
    proofs = read_proof(asked.proof)
    found = repeat_proof(open_bundle(asked.bundle), proofs, options)
    print(json.dumps(found.to_json()))
    if not found.ok:
        raise BundleError(
            f"{asked.bundle} gives other numbers here: {found.tensor!r} is off by {found.worst:.2g}"
            f" of its largest value, {found.allowed:g} is allowed"
        )


def _preflight(asked: argparse.Namespace) -> None:
    from offload_runtimes.preflight import preflight

    print(json.dumps(preflight(asked.provider, allow_cpu=asked.allow_cpu)))


def _version(_: argparse.Namespace) -> None:
    from offload_runtimes.versions import versions

    print(json.dumps(versions().to_json()))


if __name__ == "__main__":
    sys.exit(main())
