"""A target as the machine that models are timed on, through the worker that runs there."""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from offload.bundle.bundle import MANIFEST, Bundle
from offload.bundle.engine_input import EngineInput, with_weights_at
from offload.costs.link_fit import Sample
from offload.errors import InputError, ServerError
from offload.planning.plan import Side
from offload.records import from_json, to_json
from offload.scheduling.timeline import Timeline

from offload_runtimes.engine import Arena, EngineOptions
from offload_runtimes.measure.machine import Feeds, LoadedModel, TimedRun
from offload_runtimes.protocol import structured_values

_PIECE_BYTES = 1 << 18


class WorkerConnection(Protocol):
    """The worker's standard input and output."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def readline(self) -> bytes:
        """The next line; empty when the worker has ended."""

    def read(self, size: int) -> bytes:
        """The next bytes; fewer when the worker has ended."""


class _Stored:
    """A value that lies on the target until this is collected."""

    def __init__(self, key: str, unused: list[str]) -> None:
        self.key = key
        self._unused = unused

    def __del__(self) -> None:
        self._unused.append(self.key)


class _TargetModel:
    """An engine of the worker."""

    def __init__(self, machine: "TargetMachine", engine: str, about: Mapping[str, Any]) -> None:
        self._machine = machine
        self.engine = engine
        self.providers = tuple(about["providers"])
        self.inputs = tuple(about["inputs"])
        self.outputs = tuple(about["outputs"])

    def run(self, feeds: Feeds) -> list[Any]:
        """Compute all outputs there and fetch them."""
        blobs = self._machine.run(self.engine, None, feeds, None)
        return [structured_values.decode(blob) for blob in blobs]

    def keep(self, outputs: Sequence[str], feeds: Feeds) -> list[Any]:
        """Compute outputs, which stay on the target."""
        keys = [self._machine.fresh_name("value") for _ in outputs]
        self._machine.run(self.engine, outputs, feeds, keys)
        return [_Stored(key, self._machine.unused) for key in keys]

    def __del__(self) -> None:
        self._machine.unused.append(self.engine)


@dataclass(frozen=True)
class MeasuredInference:
    """One inference on a target.

    Attributes:
        latency_s: from the call to its result.
        difference: largest difference from the expected outputs, relative to the largest value of
            each; finite, as JSON has no infinity (1e308 if the shapes differ).
        same_class: whether all outputs that are class scores have the largest class expected;
            None: no output is.
        timeline: measured.
        plan: index of the plan that it followed.
    """

    latency_s: float
    difference: float
    same_class: bool | None
    timeline: Timeline
    plan: int


class TargetSession:
    """A session that runs on a target.

    Attributes:
        outputs: names of the model's outputs.
    """

    def __init__(self, machine: "TargetMachine", name: str, outputs: tuple[str, ...]) -> None:
        self._machine = machine
        self._name = name
        self.outputs = outputs

    def run(self, feeds: Feeds) -> tuple[list[Any], MeasuredInference]:
        """Run once; the outputs and the measurement."""
        run, blobs = self._machine.infer(self._name, feeds, {}, fetch=True)
        values = [structured_values.decode(blob) for blob in blobs]
        return values, from_json(MeasuredInference, run)

    def time(self, feeds: Feeds, expected: Mapping[str, Any]) -> MeasuredInference:
        """Run once and compare the outputs there with expected values that were stored there."""
        run, _ = self._machine.infer(self._name, feeds, expected, fetch=False)
        return from_json(MeasuredInference, run)

    def period_s(self, feeds: Feeds, frames: int) -> float:
        """Seconds per frame of a stream of equal frames."""
        return self._machine.stream(self._name, feeds, frames)


class TargetMachine:
    """A machine on which `python -m offload_runtimes measure` answers.

    Attributes:
        name: of the machine, as its profile names it.
        about: its versions, execution providers and platform.
        unused: names of engines and values there that are not referred to any more.
    """

    def __init__(self, target: str, connection: WorkerConnection) -> None:
        """`target`: what the user calls it, for messages.

        Raises:
            ServerError: the worker does not answer.
        """
        self._target = target
        self._connection = connection
        self._names = count()
        self._sent: dict[Hashable, str] = {}  # names there, by version of a file or digest of bytes
        self.unused: list[str] = []  # engines and values there; the next request forgets them
        self.about: dict[str, Any] = self._call("about")[0]
        self.name: str = self.about["machine"]

    def load(
        self,
        source: EngineInput,
        options: EngineOptions,
        *,
        once: bool = False,
        arena: Arena | None = None,
    ) -> LoadedModel:
        """Send a model and load it there; an arena of this machine has no say there."""
        del arena
        engine = self.fresh_name("engine")
        file, is_path = self._file(source)
        about, _ = self._call(
            "load",
            engine=engine,
            file=file,
            is_path=is_path,
            options=to_json(options),
            once=once,
        )
        return _TargetModel(self, engine, about)

    def time_in_turns(
        self, work: Mapping[str, TimedRun], repeats: int, budget_s: float
    ) -> dict[str, list[float]]:
        """Seconds of each work, there."""
        self.start_timing(work, repeats, budget_s)
        seconds: dict[str, list[float]]
        seconds, _ = self._answer()
        return seconds

    def start_timing(self, work: Mapping[str, TimedRun], repeats: int, budget_s: float) -> None:
        """Send the request of `time_in_turns` without waiting for the answer."""
        blobs: list[bytes] = []
        engines = {}
        for name, item in work.items():
            assert isinstance(item.model, _TargetModel)
            engines[name] = (item.model.engine, _packed(item.feeds, blobs))
        sizes = [len(blob) for blob in blobs]
        message = {"work": engines, "repeats": repeats, "budget_s": budget_s, "sizes": sizes}
        self._write({"call": "time", **message}, blobs)

    def shared_memory(self) -> AbstractContextManager[None]:
        """Nothing here: the worker keeps one arena for all models that it loads."""
        return nullcontext()

    def profile_nodes(
        self, source: EngineInput, feeds: Feeds, options: EngineOptions, runs: int, warm_runs: int
    ) -> dict[str, float]:
        """Seconds of every kernel, there."""
        blobs: list[bytes] = []
        file, is_path = self._file(source)
        seconds: dict[str, float]
        seconds, _ = self._call(
            "profile",
            blobs,
            file=file,
            is_path=is_path,
            feeds=_packed(feeds, blobs),
            options=to_json(options),
            runs=runs,
            warm_runs=warm_runs,
        )
        return seconds

    def optimize_to(
        self, source: EngineInput, target: Path, options: EngineOptions, *, fold_large: bool
    ) -> None:
        """Fetch the optimised graph of the target's onnxruntime; its weights stay there."""
        file, is_path = self._file(source)
        optimized = self.fresh_name("optimized") + ".onnx"
        self._call(
            "optimize",
            file=file,
            is_path=is_path,
            target=optimized,
            options=to_json(options),
            fold_large=fold_large,
        )
        _, blobs = self._call("send", file=optimized)
        target.write_bytes(blobs[0])

    def codec_s(self) -> float:
        """Seconds of the codecs' reference work, there."""
        seconds: float = self.about["codec_s"]
        return seconds

    def client_bytes(self, model: bytes, threads: int | None) -> int | None:
        """Memory of a client with a tiny model, there."""
        size_bytes: int | None
        size_bytes, _ = self._call("client_bytes", [model], threads=threads)
        return size_bytes

    def probe(self, server: str, repeats: int, security: Sequence[Path] = ()) -> list[Sample]:
        """Time messages from there to a server, as `measure.probe.probe` does.

        Args:
            server: its address.
            repeats: messages of each size in each direction.
            security: PEM files of the authority, a certificate and its key; none: plaintext.

        Raises:
            ServerError: the server cannot be reached from there; the text says why.
        """
        files = [self._send_file(path) for path in security]
        samples, _ = self._call("probe", server=server, repeats=repeats, files=files)
        return [from_json(Sample, sample) for sample in samples]

    def serve(
        self,
        listen: str,
        security: Sequence[Path] = (),
        bundles: Sequence[str] = (),
        options: EngineOptions | None = None,
    ) -> str:
        """Serve bundles there, and answer probes, until `close`; the address.

        Args:
            listen: where to listen.
            security: PEM files of the devices' authority, a certificate and its key; none:
                plaintext.
            bundles: names of bundles that were sent.
            options: how onnxruntime runs them.

        Raises:
            InputError: a bundle is refused, or the port is in use.
        """
        address: str
        address, _ = self._call(
            "serve",
            listen=listen,
            files=[self._send_file(path) for path in security],
            bundles=list(bundles),
            options=to_json(options or EngineOptions()),
        )
        return address

    def send_bundle(self, bundle: Bundle, *sides: Side) -> str:
        """Send the files of a bundle that these sides need; the bundle's name there.

        A file that is there already, in another bundle, is copied there.
        """
        folder = self.fresh_name("bundle")
        needed = [file for file in bundle.files if set(sides) & set(file.sides)]
        digests = {MANIFEST: "", **{file.name: file.sha256 for file in needed}}
        for name, digest in digests.items():
            path, target = bundle.path / name, f"{folder}/{name}"
            if digest and digest in self._sent:
                self._call("copy", source=self._sent[digest], file=target)
                continue
            with path.open("rb") as stream:
                pieces = iter(partial(stream.read, _PIECE_BYTES), b"")
                self._transfer(target, path.stat().st_size, pieces)
            if digest:
                self._sent[digest] = target
        return folder

    def store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Send values, which stay there to be feeds or expected outputs of many runs."""
        keys = [self.fresh_name("value") for _ in values]
        self._call("store", [structured_values.encode(v) for v in values.values()], keys=keys)
        return {name: _Stored(key, self.unused) for name, key in zip(values, keys, strict=True)}

    def open_session(
        self,
        bundle: str,
        server: str | None,
        security: Sequence[Path] = (),
        options: EngineOptions | None = None,
        plan: int | None = None,
    ) -> "TargetSession":
        """Open a session there on a bundle that was sent.

        Args:
            bundle: its name there.
            server: address of the server; None: both sides run there.
            security: PEM files of the server's authority, a certificate and its key; none:
                plaintext.
            options: how onnxruntime runs the device's side.
            plan: index of the plan to follow; None: the best for the link as measured.

        Raises:
            InputError: the bundle is refused.
            ServerError: the server cannot be reached from there.
        """
        name = self.fresh_name("session")
        files = [self._send_file(path) for path in security]
        settings = to_json(options or EngineOptions())
        about, _ = self._call(
            "open_session",
            session=name,
            bundle=bundle,
            server=server,
            files=files,
            options=settings,
            plan=plan,
        )
        return TargetSession(self, name, tuple(about["outputs"]))

    def infer(
        self, session: str, feeds: Feeds, expected: Mapping[str, Any], *, fetch: bool
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Run a session there; what `TargetSession.run` returns."""
        blobs: list[bytes] = []
        packed = _packed(feeds, blobs)
        keys = {name: value.key for name, value in expected.items()}
        return self._call("infer", blobs, session=session, feeds=packed, expected=keys, fetch=fetch)

    def stream(self, session: str, feeds: Feeds, frames: int) -> float:
        """What `TargetSession.period_s` returns."""
        blobs: list[bytes] = []
        packed = _packed(feeds, blobs)
        seconds: float
        seconds, _ = self._call("stream", blobs, session=session, feeds=packed, frames=frames)
        return seconds

    def close(self) -> None:
        """Close the sessions and the server there."""
        self._call("close")

    def fresh_name(self, kind: str) -> str:
        """A name that nothing there has yet."""
        return f"{kind}-{next(self._names)}"

    def run(
        self, engine: str, outputs: Sequence[str] | None, feeds: Feeds, keys: Sequence[str] | None
    ) -> list[bytes]:
        """Run an engine there: outputs as blobs, or kept there by the keys."""
        blobs: list[bytes] = []
        packed = _packed(feeds, blobs)
        _, results = self._call(
            "run", blobs, engine=engine, outputs=outputs, feeds=packed, keys=keys
        )
        return results

    def _file(self, source: EngineInput) -> tuple[str, bool]:
        """The name of a model's file there, sent unless it is there, and whether it is a path.

        Weights outside the bytes are sent once for all models that refer to them.
        """
        if isinstance(source, Path):
            return self._send_file(source), True
        folder = Path(self.about["folder"])

        def place(path: Path) -> Path:
            # What the target itself has optimised refers to files that are there.
            return path if path.is_relative_to(folder) else folder / self._send_file(path)

        data = with_weights_at(source, place)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._sent:
            name = self.fresh_name("model")
            self._transfer(name, len(data), [data])
            self._sent[digest] = name
        return self._sent[digest], False

    def _send_file(self, path: Path) -> str:
        """The name of a file there, sent unless this content of it is there."""
        stat = path.stat()
        version = path, stat.st_ino, stat.st_mtime_ns, stat.st_size
        if version not in self._sent:
            name = f"{self.fresh_name('file')}-{path.name}"
            with path.open("rb") as stream:
                pieces = iter(partial(stream.read, _PIECE_BYTES), b"")
                self._transfer(name, stat.st_size, pieces)
            self._sent[version] = name
        return self._sent[version]

    def _transfer(self, file: str, size_bytes: int, pieces: Iterable[bytes]) -> None:
        self._write({"call": "receive", "file": file, "sizes": [size_bytes]}, pieces)
        self._answer()

    def _call(
        self, call: str, blobs: Sequence[bytes] = (), **arguments: Any
    ) -> tuple[Any, list[bytes]]:
        self._write({"call": call, **arguments, "sizes": [len(blob) for blob in blobs]}, blobs)
        return self._answer()

    def _write(self, message: Mapping[str, Any], pieces: Iterable[bytes]) -> None:
        unused, self.unused[:] = [*self.unused], []
        try:
            self._connection.write(json.dumps({**message, "forget": unused}).encode() + b"\n")
            for piece in pieces:
                self._connection.write(piece)
        except OSError as error:
            raise self._gone() from error

    def _answer(self) -> tuple[Any, list[bytes]]:
        line = self._connection.readline()
        if not line.endswith(b"\n"):
            raise self._gone()
        answer = json.loads(line)
        if "error" in answer:
            kind = ServerError if answer.get("is_network") else InputError
            raise kind(f"{self._target}: {answer['error']}")
        blobs = [self._connection.read(size) for size in answer["sizes"]]
        return answer["ok"], blobs

    def _gone(self) -> ServerError:
        return ServerError(
            f"the measuring worker on {self._target} ended early: is the machine still reachable,"
            " and has it memory enough for the model?"
        )


def _packed(feeds: Feeds, blobs: list[bytes]) -> dict[str, str | int]:
    """Feeds as the worker reads them; values that are here are added to the blobs."""
    packed: dict[str, str | int] = {}
    for name, value in feeds.items():
        if isinstance(value, _Stored):
            packed[name] = value.key
        else:
            packed[name] = len(blobs)
            blobs.append(structured_values.encode(value))
    return packed
