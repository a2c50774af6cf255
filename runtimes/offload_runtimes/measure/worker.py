"""The measuring worker: run and time models and bundles on this machine for a planning machine.

`python -m offload_runtimes measure` reads requests on standard input and answers on standard
output. A message is one line of JSON, `{"call": NAME, ..., "sizes": [bytes]}` or `{"ok": ...,
"sizes": [...]}` or `{"error": SENTENCE}`, followed by blobs of these sizes. It needs what a device
has: onnxruntime and numpy, not onnx.

Files and values that requests name stay here until the process ends: a model is sent once, and
the tensors between two of its parts never leave the machine. Nothing remains afterwards.
"""

import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, BinaryIO

from offload.bundle.compare import difference, same_class
from offload.errors import ServerError, sentence
from offload.files import temporary_folder
from offload.records import from_json, to_json

from offload_runtimes.engine import (
    Arena,
    Engine,
    EngineOptions,
    load,
    load_once,
    shared_arena,
    short_name,
)
from offload_runtimes.engine.profiling import optimize_to, profile_nodes
from offload_runtimes.installation import versions
from offload_runtimes.measure.footprint import client_bytes
from offload_runtimes.measure.timing import machine_name, time_in_turns
from offload_runtimes.protocol import structured_values
from offload_runtimes.protocol.codecs import reference_s
from offload_runtimes.security.credentials import ClientSecurity, ServerSecurity

if TYPE_CHECKING:
    from offload_runtimes.client import OffloadSession
    from offload_runtimes.server import Server

_PIECE_BYTES = 1 << 18
_WORST = 1e308  # JSON has no infinity
# Heartbeats would disturb what is measured; the connection of a dead server breaks without them.
_HEARTBEAT_S = 3600.0
_CONNECT_S = 30.0


class Worker:
    """Engines, files and values of one planning machine's requests."""

    def __init__(
        self, folder: Path, requests: BinaryIO, answers: BinaryIO, arena: Arena | None
    ) -> None:
        self._folder = folder
        self._arena = arena  # of all models that are loaded, only one runs at a time
        self._requests = requests
        self._answers = answers
        self._engines: dict[str, Engine] = {}
        self._values: dict[str, Any] = {}
        self._sessions: dict[str, OffloadSession] = {}
        self._server: Server | None = None
        self._calls: dict[str, Callable[..., tuple[Any, Sequence[bytes]]]] = {
            "about": self._about,
            "receive": self._receive,
            "copy": self._copy,
            "send": self._send,
            "store": self._store,
            "load": self._load,
            "run": self._run,
            "time": self._time,
            "profile": self._profile,
            "optimize": self._optimize,
            "client_bytes": self._client_bytes,
            "probe": self._probe,
            "serve": self._serve,
            "open_session": self._open_session,
            "infer": self._infer,
            "stream": self._stream,
            "close": self._close,
        }

    def serve(self) -> None:
        """Answer requests until they end."""
        try:
            self._answer_all()
        finally:
            self._close(())

    def _answer_all(self) -> None:
        for request in self._read():
            call = self._calls[request.pop("call")]
            for name in request.pop("forget"):
                self._engines.pop(name, None)
                self._values.pop(name, None)
            sizes = request.pop("sizes", [])
            try:
                value, blobs = call(sizes, **request)
            except Exception as error:  # noqa: BLE001  the planning machine reports it
                is_network = isinstance(error, ServerError)
                self._reply({"error": sentence(error), "is_network": is_network})
            else:
                self._reply({"ok": value, "sizes": [len(blob) for blob in blobs]}, blobs)

    def _read(self) -> Iterator[dict[str, Any]]:
        while line := self._requests.readline():
            yield json.loads(line)

    def _reply(self, message: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        self._answers.write(json.dumps(message).encode() + b"\n")
        for blob in blobs:
            self._answers.write(blob)
        self._answers.flush()

    def _blobs(self, sizes: Sequence[int]) -> list[bytes]:
        return [self._requests.read(size) for size in sizes]

    def _feeds(self, feeds: Mapping[str, str | int], blobs: Sequence[bytes]) -> dict[str, Any]:
        """Values by input: a number is a blob of this request, a name a value that is here."""
        return {
            name: structured_values.decode(blobs[key])
            if isinstance(key, int)
            else self._values[key]
            for name, key in feeds.items()
        }

    def _source(self, file: str, is_path: bool) -> Path | bytes:
        path = self._folder / file
        return path if is_path else path.read_bytes()

    def _about(self, _: Sequence[int]) -> Any:
        about = {**to_json(versions()), "machine": machine_name(), "folder": str(self._folder)}
        return {**about, "codec_s": reference_s()}, ()

    def _receive(self, sizes: Sequence[int], file: str) -> Any:
        remaining = sizes[0]
        path = self._folder / file
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            while remaining and (piece := self._requests.read(min(remaining, _PIECE_BYTES))):
                stream.write(piece)
                remaining -= len(piece)
        return {}, ()

    def _copy(self, _: Sequence[int], source: str, file: str) -> Any:
        path = self._folder / file
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(self._folder / source, path)
        return {}, ()

    def _store(self, sizes: Sequence[int], keys: Sequence[str]) -> Any:
        values = map(structured_values.decode, self._blobs(sizes))
        self._values.update(zip(keys, values, strict=True))
        return {}, ()

    def _send(self, _: Sequence[int], file: str) -> Any:
        return {}, ((self._folder / file).read_bytes(),)

    def _load(
        self, _: Sequence[int], engine: str, file: str, is_path: bool, options: Any, once: bool
    ) -> Any:
        source, settings = self._source(file, is_path), from_json(EngineOptions, options)
        loaded = load_once(source, settings) if once else load(source, settings, self._arena)
        self._engines[engine] = loaded
        names = {
            "inputs": [value.name for value in (*loaded.inputs, *loaded.defaults)],
            "outputs": [value.name for value in loaded.outputs],
        }
        return {**names, "providers": [short_name(name) for name in loaded.providers]}, ()

    def _run(
        self,
        sizes: Sequence[int],
        engine: str,
        outputs: Sequence[str] | None,
        feeds: Mapping[str, str | int],
        keys: Sequence[str] | None,
    ) -> Any:
        """Outputs as blobs, or kept here by the keys."""
        blobs = self._blobs(sizes)
        results = self._engines[engine].run(outputs, self._feeds(feeds, blobs))
        if keys is None:
            return {}, tuple(map(structured_values.encode, results))
        self._values.update(zip(keys, results, strict=True))
        return {}, ()

    def _time(
        self, sizes: Sequence[int], work: Mapping[str, Any], repeats: int, budget_s: float
    ) -> Any:
        blobs = self._blobs(sizes)
        runs = {}
        for name, (engine, feeds) in work.items():
            values = self._feeds(feeds, blobs)
            loaded = self._engines[engine]
            runs[name] = lambda loaded=loaded, values=values: loaded.run(None, values)
        return time_in_turns(runs, repeats, budget_s), ()

    def _profile(
        self,
        sizes: Sequence[int],
        file: str,
        is_path: bool,
        feeds: Mapping[str, str | int],
        options: Any,
        runs: int,
        warm_runs: int,
    ) -> Any:
        values = self._feeds(feeds, self._blobs(sizes))
        nodes = profile_nodes(
            self._source(file, is_path),
            values,
            from_json(EngineOptions, options),
            runs=runs,
            warm_runs=warm_runs,
        )
        return nodes, ()

    def _optimize(
        self,
        _: Sequence[int],
        file: str,
        is_path: bool,
        target: str,
        options: Any,
        fold_large: bool,
    ) -> Any:
        source, settings = self._source(file, is_path), from_json(EngineOptions, options)
        optimize_to(source, self._folder / target, settings, fold_large=fold_large)
        return {}, ()

    def _client_bytes(self, sizes: Sequence[int], threads: int | None) -> Any:
        (model,) = self._blobs(sizes)
        return client_bytes(model, threads), ()

    def _probe(self, _: Sequence[int], server: str, repeats: int, files: Sequence[str]) -> Any:
        """Samples of the link to a server; files: authority, certificate and key, or none."""
        from offload_runtimes.measure.probe import probe

        return to_json(probe(server, repeats=repeats, security=self._client_security(files))), ()

    def _client_security(self, files: Sequence[str]) -> ClientSecurity:
        if not files:
            return ClientSecurity()
        ca, certificate, key = (self._folder / file for file in files)
        return ClientSecurity(ca, certificate, key)

    def _serve(
        self,
        _: Sequence[int],
        listen: str,
        files: Sequence[str],
        bundles: Sequence[str],
        options: Any,
    ) -> Any:
        """Serve bundles and answer probes until `close`; the address.

        Files: authority of the devices, certificate and key, or none.
        """
        from offload_runtimes.server import Server
        from offload_runtimes.serving.serve_options import ServeOptions

        if files:
            client_ca, certificate, key = (self._folder / file for file in files)
            security = ServerSecurity(certificate, key, client_ca)
        else:
            security = ServerSecurity(insecure=True)
        engine = from_json(EngineOptions, options)
        server = Server(
            [self._folder / name for name in bundles],
            listen,
            ServeOptions(engine, security=security),
        )
        self._server = server.start()
        return server.address, ()

    def _open_session(
        self,
        _: Sequence[int],
        session: str,
        bundle: str,
        server: str | None,
        files: Sequence[str],
        options: Any,
        plan: int | None,
    ) -> Any:
        """Open a session on a bundle; without a server, both sides run here."""
        from offload_runtimes.client import OffloadSession
        from offload_runtimes.local import open_session

        engine = from_json(EngineOptions, options)
        settings: dict[str, Any] = {
            "providers": engine.providers,
            "threads": engine.threads,
            "allow_cpu": engine.allow_cpu,
            "plan": plan,
            "on_server_loss": "raise",  # a run finished locally would measure something else
            "heartbeat_s": _HEARTBEAT_S,
            "patience_s": _HEARTBEAT_S,
            "connect_timeout_s": _CONNECT_S,
        }
        path = self._folder / bundle
        if server is None:
            opened = open_session(path, **settings)
        else:
            security = self._client_security(files)
            opened = OffloadSession(path, server, security=security, **settings)
        self._sessions[session] = opened
        return {"outputs": [value.name for value in opened.get_outputs()]}, ()

    def _infer(
        self,
        sizes: Sequence[int],
        session: str,
        feeds: Mapping[str, str | int],
        expected: Mapping[str, str],
        fetch: bool,
    ) -> Any:
        """Run a session once: seconds, comparison with the expected values, timeline, outputs."""
        values = self._feeds(feeds, self._blobs(sizes))
        opened = self._sessions[session]
        start_s = time.monotonic()
        outputs, timeline = opened.run_timed(None, values)
        latency_s = time.monotonic() - start_s
        by_name = dict(zip((v.name for v in opened.get_outputs()), outputs, strict=True))
        pairs = [(self._values[key], by_name[name]) for name, key in expected.items()]
        worst = max((difference(want, got) for want, got in pairs), default=0.0)
        same = [is_same for is_same in (same_class(*pair) for pair in pairs) if is_same is not None]
        run = {
            "latency_s": latency_s,
            "difference": min(worst, _WORST),
            "same_class": all(same) if same else None,
            "timeline": to_json(timeline),
            "plan": opened.plan,
        }
        return run, tuple(map(structured_values.encode, outputs)) if fetch else ()

    def _stream(
        self, sizes: Sequence[int], session: str, feeds: Mapping[str, str | int], frames: int
    ) -> Any:
        """Seconds per frame of a stream."""
        values = self._feeds(feeds, self._blobs(sizes))
        ends_s = [
            time.monotonic()
            for _ in self._sessions[session].stream((values for _ in range(frames + 1)), copy=False)
        ]
        return (ends_s[-1] - ends_s[0]) / frames, ()

    def _close(self, _: Sequence[int]) -> Any:
        """Close all sessions and the server."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        if self._server is not None:
            self._server.stop()
            self._server = None
        return {}, ()


def main() -> None:
    """Serve standard input and output; what libraries print goes to standard error.

    When the planning machine goes away, the process ends, in the middle of a run too.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with temporary_folder() as folder, shared_arena() as arena:
        Thread(target=_end_with_input, args=(folder,), daemon=True).start()
        Worker(folder, sys.stdin.buffer, answers, arena).serve()


def _end_with_input(folder: Path) -> None:
    """End the process when its standard input hangs up."""
    hangup = select.poll()
    hangup.register(0, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
    hangup.poll()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # a run of onnxruntime cannot be interrupted otherwise
