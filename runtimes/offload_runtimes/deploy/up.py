"""From a model to a split inference on the user's own two machines.

The steps keep their results in a folder, each with a digest of all that it depends on, so that a
second call repeats only what has changed, and a call after a failure goes on where it stopped.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from offload.bundle.engine_input import whole_input
from offload.bundle.sample_inputs import draw
from offload.costs.encodings import EncodingPolicy
from offload.costs.link_fit import ProbedLink
from offload.errors import InputError, OffloadError
from offload.files import temporary_folder, write_text
from offload.graph.load import Model, load_model
from offload.graph.onnx_file import OWN_FILE
from offload.planning.plan import Side
from offload.planning.problem import Constraints, Objective
from offload.records import from_json, to_json

from offload_runtimes.address import parse_address
from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.deployment import deploy_to, send_whole
from offload_runtimes.deploy.measuring import (
    MeetingPoint,
    certificate_files,
    explained,
    meeting_point,
    target_machine,
)
from offload_runtimes.deploy.provision import Installed, init_devices, objections
from offload_runtimes.deploy.releases import rollback
from offload_runtimes.deploy.scheme_bundles import (
    SCHEMES,
    SchemeBundle,
    load_schemes,
    save_schemes,
    write_schemes,
)
from offload_runtimes.deploy.service import (
    SERVER_LOG,
    Unit,
    installed_unit,
    start_server,
    stop_processes,
    uninstall,
)
from offload_runtimes.deploy.stages import (
    DeploymentProgress,
    ending,
    find_runtime,
    release_id,
    runtime_versions,
)
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.deploy.trial import Pair, SchemeResult, TrialInputs, choose, run_in_turns
from offload_runtimes.engine import EngineOptions, load_once
from offload_runtimes.installation import source_digest
from offload_runtimes.measure import Progress
from offload_runtimes.measure.calibration import Calibration, read_calibration
from offload_runtimes.measure.probe import until_steady
from offload_runtimes.measure.profile import cached_profile, optimized_model
from offload_runtimes.measure.split import SplitRequest, prepare
from offload_runtimes.measure.target_machine import TargetMachine
from offload_runtimes.value_files import write_values

_STATE_FORMAT = 1
_SAMPLES = 4  # inputs of the trial
_PROBE_REPEATS = 5
_RENEW_S = 300 * 86400.0  # age of certificates that last 365 days
_CERTS = "certs"  # in a target's root
_SAMPLE = "sample.npz"  # in a target's root
_CHECK_S = 120.0
_LEAST_DISK_BYTES = 50_000_000  # where the runtime is there already


@dataclass(frozen=True)
class UpRequest:
    """A model, two machines, and how to measure them and set them up.

    Attributes:
        model: the .onnx file.
        device: the device.
        server: the server.
        folder: keeps profiles, bundles, certificates and results.
        shapes: sizes of inputs with dynamic dimensions.
        float_input: the picture's float tensor, if the model was given an input of bytes; empty:
            it was not.
        constraints: the objective and the limits.
        policy: the encodings and the calibration inputs.
        repeats: runs of each scheme.
        budget_s: seconds for each scheme, and at most a minute for all, after which no round is
            begun; at least five are.
        insecure: plaintext instead of mutual TLS.
        only_try: measure, and leave nothing running.
        again: measure again what is known.
        every_scheme: also measure the planner's schemes apart, with all tensors raw.
        wheelhouse: a folder of wheels for targets without internet; None: their package index.
    """

    model: Path
    device: TargetConfig
    server: TargetConfig
    folder: Path
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    float_input: str = ""
    constraints: Constraints = field(default_factory=Constraints)
    policy: EncodingPolicy = field(default_factory=EncodingPolicy)
    repeats: int = 20
    budget_s: float = 20.0
    insecure: bool = False
    only_try: bool = False
    again: bool = False
    every_scheme: bool = False
    wheelhouse: Path | None = None

    @property
    def targets(self) -> tuple[TargetConfig, TargetConfig]:
        """Device and server."""
        return self.device, self.server

    @property
    def takes_pictures(self) -> bool:
        """Whether the model's input is a picture in bytes."""
        return bool(self.float_input)


@dataclass(frozen=True)
class UpResult:
    """The result of `up`: the measurements, the choice, and how to run it.

    Attributes:
        schemes: all that were measured, the simplest first.
        chosen: label of the one that is set up.
        link: between device and server.
        device: name of the device's machine and seconds of the whole model there.
        server: the same of the server.
        bundle: folder of the bundle that is set up.
        address: of the server, as the device reaches it; empty: none is needed.
        secure: whether the two use mutual TLS.
        running: whether it is set up; False after a trial only.
        root: the directory of releases on the device.
        command: runs the release on the device, on a sample input.
        remarks: what the user should know, one sentence each.
        repeated: the steps that were carried out, not known already.
    """

    schemes: tuple[SchemeResult, ...]
    chosen: str
    link: ProbedLink
    device: tuple[str, float]
    server: tuple[str, float]
    bundle: Path
    address: str
    secure: bool
    running: bool
    root: str
    command: tuple[str, ...]
    remarks: tuple[str, ...]
    repeated: tuple[str, ...]

    def scheme(self, label: str) -> SchemeResult:
        """The result of that label."""
        return next(scheme for scheme in self.schemes if scheme.label == label)


class _Record:
    """The steps that are done, each with a digest of its inputs: `state.json`; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.json"
        self._keys: dict[str, str] = {}
        self._lock = threading.Lock()
        self.repeated: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if state.get("format") == _STATE_FORMAT:
                self._keys = state["steps"]

    def knows(self, step: str, key: str) -> bool:
        """Whether the step is done for this key."""
        return self._keys.get(step) == key

    def forget(self, step: str) -> None:
        """Mark a step as not done, before it runs."""
        with self._lock:
            if self._keys.pop(step, None) is not None:
                self._save()
            self.repeated.append(step)

    def done(self, step: str, key: str) -> None:
        """Mark a step as done for this key."""
        with self._lock:
            self._keys[step] = key
            self._save()

    def _save(self) -> None:
        text = json.dumps({"format": _STATE_FORMAT, "steps": self._keys}, indent=1)
        write_text(self._path, text)


def _digest(*parts: Any) -> str:
    text = json.dumps(to_json(parts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(path: Path) -> Any:
    """The digest of a file, or the names, sizes and times of a folder's files."""
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class _TargetState:
    """The state of a target: boot id, root, Python, versions, current release, running servers."""

    boot: str
    root: str
    python: str
    versions: Mapping[str, Any]
    release: str | None
    servers: Sequence[Mapping[str, Any]]

    def is_usable(self, *, pictures: bool) -> bool:
        """Whether the runtime is this one, and can encode pictures if it must."""
        if self.versions.get("source") != source_digest():
            return False
        return bool(self.versions.get("pictures")) or not pictures


class _Up:
    """One call of `up`."""

    def __init__(self, request: UpRequest, progress: Progress, stack: ExitStack) -> None:
        self.request = request
        self.record = _Record(request.folder)
        self.remarks: list[str] = []
        self._progress = progress
        self._stack = stack
        self.meeting: MeetingPoint = meeting_point(request.device, request.server)
        self.targets: list[_TargetState] = []
        model = load_model(request.model)
        names = {extent.location for extent in model.weights.extents} - {OWN_FILE}
        stats = [(request.model.parent / name).stat() for name in sorted(names)]
        self.model: Model = model
        self.model_key = _digest(
            _content(request.model), [(s.st_size, s.st_mtime_ns) for s in stats], request.shapes
        )
        source = request.policy.calibration
        self.calibration_key = _content(source) if source else ""

    @contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        """Name a step in the progress and in errors."""
        self._progress(name)
        try:
            yield lambda phrase: self._progress(f"{name}: {phrase}")
        except OffloadError as error:
            raise type(error)(f"{name}: {error}") from error

    @cached_property
    def device(self) -> TargetMachine:
        """The measuring worker on the device, started when it is first needed."""
        return self._stack.enter_context(target_machine(self.request.device))

    @cached_property
    def server(self) -> TargetMachine:
        """The measuring worker on the server, started when it is first needed."""
        return self._stack.enter_context(target_machine(self.request.server))

    def runtimes(self) -> None:
        """Install the runtime where it is missing or of another version."""
        request = self.request
        with self.step("preparing the runtimes") as progress:
            self.targets = asyncio.run(_all(self._look, request.targets))
            missing = [
                target
                for target, state in zip(request.targets, self.targets, strict=True)
                if not state.is_usable(pictures=request.takes_pictures)
            ]
            if missing:
                installed = init_devices(
                    missing,
                    request.wheelhouse,
                    None,
                    lambda target, text: progress(f"{target.name}: {text}"),
                    False,
                    pictures=request.takes_pictures,
                )
                for result in installed:
                    if not isinstance(result, Installed):
                        raise result
                self.targets = asyncio.run(_all(self._look, request.targets))
                self.record.repeated.append("runtimes")

    async def _look(self, target: TargetConfig) -> _TargetState:
        """Read the state of a target.

        Raises:
            InputError: it cannot run models, cannot be written to, or another deployment changes
                it.
        """
        async with connect(target) as agent:
            facts = await agent.call("facts")
            reasons = objections(facts, time.time(), _LEAST_DISK_BYTES)
            if reasons:
                raise InputError(f"{target.name} cannot run models: {'; '.join(reasons)}")
            if not self.request.only_try:
                await agent.call("lock")  # fails early; released with the connection
            python = await find_runtime(agent, facts["root"])
            versions = await runtime_versions(agent, python) if python else None
            release = (await agent.call("state"))["current"]
            servers = (await agent.call("servers"))["servers"]
            return _TargetState(
                facts["boot"], facts["root"], python or "", versions or {}, release, servers
            )

    def certificates(self) -> None:
        """Make an authority and a certificate for each side, unless there are young ones."""
        if self.request.insecure:
            self.remarks.append(
                "Device and server talk in plaintext (--insecure): anybody on the network can read"
                " the tensors and use the server."
            )
            return
        try:
            from offload_runtimes.security.certs import make_certificates, renew_certificates
        except ModuleNotFoundError as error:
            raise InputError(
                "certificates need the cryptography library: pip install 'onnx-offload[tls]', or"
                " give --insecure on a network you trust"
            ) from error
        folder = self.request.folder / _CERTS
        for side, name in ((Side.SERVER, self.meeting.host), (Side.DEVICE, "device")):
            path = folder / f"{name}.pem"
            if not path.exists() and side is Side.SERVER:
                make_certificates(folder, servers=[name])
            elif not path.exists():
                make_certificates(folder, devices=[name])
            elif time.time() - path.stat().st_mtime > _RENEW_S:
                renew_certificates(folder, [name])

    @property
    def device_files(self) -> tuple[Path, ...]:
        """Authority, certificate and key of the device; none in plaintext."""
        folder = self.request.folder / _CERTS
        return () if self.request.insecure else certificate_files(folder, "device")

    @property
    def server_files(self) -> tuple[Path, ...]:
        """The same of the server."""
        folder = self.request.folder / _CERTS
        return () if self.request.insecure else certificate_files(folder, self.meeting.host)

    @property
    def listen(self) -> MeetingPoint:
        """The meeting point for measurements: on a free port if a release is being served."""
        ports = {parse_address(status["listening"]).port for status in self.targets[1].servers}
        if self.meeting.listen.port in ports:
            return replace(self.meeting, listen=replace(self.meeting.listen, port=0))
        return self.meeting

    def profiles(self) -> list[Path]:
        """Profile the model on both sides, at the same time if they are different machines."""
        missing = [side for side in Side if not self._has_profile(side)]
        device, server = self.targets
        if len(missing) == 2 and device.boot and server.boot and device.boot != server.boot:
            self._profile_both()
        else:
            for side in missing:
                self._profile(side)
        return [self._profile_path(side) for side in Side]

    def _profile_both(self) -> None:
        """Profile both sides on threads; an error or an interruption ends both."""
        workers = self.device, self.server  # connected before the threads start
        with ThreadPoolExecutor(len(workers)) as pool:
            try:
                running = [pool.submit(self._profile, side) for side in Side]
                for each in as_completed(running):
                    each.result()
            except BaseException:
                self._stack.close()
                raise

    def _profile_path(self, side: Side) -> Path:
        return self.request.folder / f"{side.value}.json"

    def _profile_key(self, side: Side) -> str:
        index = tuple(Side).index(side)
        target = self.request.targets[index]
        machine = [target.ssh, target.root, target.python, options_of(target)]
        return _digest(self.model_key, self.calibration_key, machine, self._engine_of(index))

    def _has_profile(self, side: Side) -> bool:
        is_known = self.record.knows(f"profile {side.value}", self._profile_key(side))
        return is_known and self._profile_path(side).exists() and not self.request.again

    def _profile(self, side: Side) -> None:
        """Profile the model on one side."""
        target = self.request.targets[tuple(Side).index(side)]
        self.record.forget(f"profile {side.value}")
        with self.step(f"profiling on {target.name}") as progress, temporary_folder() as folder:
            worker = self.device if side is Side.DEVICE else self.server
            subject = optimized_model(self.model, folder, self.request.shapes, machine=worker)
            source = self.request.policy.calibration
            samples = read_calibration(source, subject.inputs.values).feeds if source else ()
            profile = cached_profile(
                subject,
                options_of(target),
                again=self.request.again,
                samples=samples,
                progress=progress,
                machine=worker,
            )
            write_text(self._profile_path(side), json.dumps(profile.to_json(), indent=1))
        self.record.done(f"profile {side.value}", self._profile_key(side))

    def _engine_of(self, index: int) -> Any:
        versions = self.targets[index].versions
        return [versions.get(name) for name in ("onnxruntime", "platform", "source")]

    def link(self) -> ProbedLink:
        """Probe the link from the device to the server."""
        request, meeting = self.request, self.listen
        path = request.folder / "probe.json"
        key = _digest(*request.targets, self.meeting, request.insecure)
        if path.exists() and self.record.knows("link", key) and not request.again:
            return from_json(ProbedLink, json.loads(path.read_text()))
        self.record.forget("link")
        names = f"from {request.device.name} to {request.server.name}"
        with self.step(f"probing the link {names}"):
            address = self.server.serve(str(meeting.listen), self.server_files)
            port = parse_address(address).port
            try:
                with explained(request.device, request.server, meeting.host, port):
                    samples = until_steady(
                        lambda: self.device.probe(
                            meeting.reached_at(port), _PROBE_REPEATS, self.device_files
                        )
                    )
            finally:
                self.server.close()
            probed = ProbedLink.of(samples)
        write_text(path, json.dumps(to_json(probed), indent=1))
        write_text(request.folder / "link.json", json.dumps(probed.link.to_json(), indent=1))
        self.record.done("link", key)
        return probed

    def plan(self, profiles: Sequence[Path], probed: ProbedLink) -> list[SchemeBundle]:
        """Plan for links around the probed one, and write a bundle for each scheme."""
        request = self.request
        folder = request.folder / "bundles"
        key = _digest(
            [path.read_text() for path in profiles],
            probed,
            request.constraints,
            request.policy,
            self.model_key,
            self.calibration_key,
            request.float_input,
            request.every_scheme,
            source_digest(),
        )
        path = request.folder / "schemes.json"
        if path.exists() and self.record.knows("plan", key):
            with contextlib.suppress(OffloadError, OSError):
                return load_schemes(path, folder)
        self.record.forget("plan")
        with self.step("planning") as progress:
            split = SplitRequest(
                request.model,
                probed.link,
                device=profiles[0],
                server=profiles[1],
                shapes=request.shapes,
                constraints=request.constraints,
                allowance=request.policy,
                share=False,  # the trial compares single plans
            )
            if request.constraints.objective is not Objective.ENERGY:
                split = replace(split, links=probed.range())
            prepared = prepare(split, progress)
            if prepared.open_sizes:
                raise InputError(prepared.open_sizes)
            schemes, remarks = write_schemes(
                prepared,
                probed.link,
                folder,
                request.float_input,
                tuple(SCHEMES) if request.every_scheme else (),
                progress,
            )
        self.remarks += remarks
        save_schemes(path, schemes)
        self.record.done("plan", key)
        return schemes

    def inputs(self) -> TrialInputs:
        """Inputs of the trial, and the whole model's outputs on them, computed here."""
        request = self.request
        with temporary_folder() as folder:
            inputs = optimized_model(self.model, folder, request.shapes).inputs
        if request.policy.calibration:
            calibration = read_calibration(request.policy.calibration, inputs.values)
        else:
            calibration = Calibration((draw(inputs, 0),), is_random=True)
        feeds = calibration.feeds[:_SAMPLES]
        engine = load_once(whole_input(self.model), EngineOptions())
        names = [value.name for value in engine.outputs]
        expected = [dict(zip(names, engine.run(None, each), strict=True)) for each in feeds]
        return TrialInputs(feeds, expected, calibration.is_random)

    def measure(
        self, schemes: Sequence[SchemeBundle], probed: ProbedLink
    ) -> tuple[SchemeResult, ...]:
        """Run all schemes on the real machines."""
        request = self.request
        path = request.folder / "measured.json"
        key = _digest(
            [scheme.bundle.digest for scheme in schemes],
            [self._engine_of(index) for index in range(2)],
            *(request.repeats, request.budget_s, *request.targets, request.insecure),
        )
        if path.exists() and self.record.knows("measure", key) and not request.again:
            rows = json.loads(path.read_text())
            return tuple(from_json(SchemeResult, row) for row in rows)
        self.record.forget("measure")
        with self.step("measuring on both machines") as progress:
            inputs = self.inputs()
            if inputs.are_random:
                self.remarks.append(
                    "Inputs were random: give real ones with --calibration, compressed sizes and"
                    " answers depend on them."
                )
            write_values(request.folder / _SAMPLE, inputs.feeds[0])
            pair = Pair(
                self.device,
                self.server,
                self.listen,
                options_of(request.device),
                options_of(request.server),
                self.device_files,
                self.server_files,
            )
            results = run_in_turns(
                pair,
                schemes,
                probed.link,
                inputs,
                repeats=request.repeats,
                budget_s=request.budget_s,
                streams=request.constraints.objective is Objective.THROUGHPUT,
                progress=progress,
            )
        write_text(path, json.dumps(to_json(results), indent=1))
        self.record.done("measure", key)
        return results

    def deploy(self, chosen: SchemeBundle) -> None:
        """Deploy the chosen bundle, start or stop the server, and run once from the device."""
        request, bundle = self.request, chosen.bundle
        needs_server = not chosen.is_local
        release = release_id(bundle.digest)
        key = _digest(release, needs_server, self._serving_key())
        sides = [(request.device, tuple(Side))]
        if needs_server:
            sides.append((request.server, (Side.SERVER,)))
        current = all(state.release == release for state in self.targets[: len(sides)])
        serves = bool(self.targets[1].servers) == needs_server
        if current and serves and self.record.knows("deploy", key):
            return
        self.record.forget("deploy")
        with self.step("deploying") as progress:
            shown: list[tuple[str, str]] = []

            def report(stage: DeploymentProgress) -> None:
                line = (stage.target, str(stage.stage))
                if line not in shown:
                    shown.append(line)
                    progress(": ".join(line))

            # The server first: its device may have a session already.
            for target in reversed(sides):
                (outcome,) = deploy_to(bundle, [target], report)
                if outcome.why is not None:
                    raise outcome.why
        try:
            self._start(needs_server)
        except OffloadError:
            self._put_back(release)
            raise
        self.record.done("deploy", key)

    def _serving_key(self) -> str:
        """Digest of all that the server's process depends on, other than its release."""
        files = [_content(path) for path in (*self.server_files, *self.device_files)]
        engines = [self._engine_of(index) for index in range(2)]
        return _digest(self.meeting, files, engines, self.request.insecure, *self.request.targets)

    def _start(self, needs_server: bool) -> None:
        """Start or stop the server, and run the release once from the device."""
        request = self.request
        if not needs_server:
            asyncio.run(_stop(request.server))
        # A server that runs already follows the new release by itself, without an outage.
        elif not (self.targets[1].servers and self.record.knows("serve", self._serving_key())):
            with self.step(f"starting the server on {request.server.name}"):
                self.record.forget("serve")
                why = asyncio.run(self._serve())
                if why:
                    self.remarks.append(
                        f"{request.server.name} {why}. The server runs as a process that does not"
                        " start again with the machine: then run the same command again."
                    )
                self.record.done("serve", self._serving_key())
        with self.step(f"running the release from {request.device.name}"):
            asyncio.run(self._check(needs_server))

    def _put_back(self, release: str) -> None:
        """Make the former release current again on the machines that had one."""
        for target, state in zip(self.request.targets, self.targets, strict=True):
            if state.release not in (None, release):
                try:
                    why = rollback(target, state.release).why
                except OffloadError as error:
                    why = error  # the first error is the one to report
                ended = f"is not put back: {why}" if why else "is current again"
                self._progress(f"{target.name}: {state.release} {ended}")

    async def _serve(self) -> str:
        target = self.request.server
        async with connect(target) as agent:
            root, python = self.targets[1].root, self.targets[1].python
            options = [*target.options, *target.serving]
            if self.request.insecure:
                options += [] if "--insecure" in options else ["--insecure"]
            else:
                await _send_certificates(agent, self.server_files)
                options += ["--cert", f"{root}/{_CERTS}/own.pem"]
                options += ["--key", f"{root}/{_CERTS}/own.key"]
                options += ["--client-ca", f"{root}/{_CERTS}/ca.pem"]
            unit = Unit(root, python, str(self.meeting.listen), tuple(options))
            return await start_server(agent, unit)

    async def _check(self, needs_server: bool) -> None:
        """Run the release once on the device, as the user would."""
        target = self.request.device
        async with connect(target) as agent:
            if needs_server and self.device_files:
                await _send_certificates(agent, self.device_files)
            await send_whole(agent, _SAMPLE, self.request.folder / _SAMPLE)
            words = self.command(needs_server)
            done = await agent.call("run", command=list(words), timeout_s=_CHECK_S)
            if done["code"]:
                raise InputError(f"the release on {target.name} {ending(done)}")

    def address(self, needs_server: bool) -> str:
        """Address of the service, as the device reaches it."""
        return self.meeting.reached_at(self.meeting.listen.port) if needs_server else ""

    def command(self, needs_server: bool) -> tuple[str, ...]:
        """The command that runs the current release on the device, on the sample input."""
        root, python = self.targets[0].root, self.targets[0].python
        words = [python, "-m", "offload_runtimes", "run", f"{root}/current"]
        words += ["--input", f"{root}/{_SAMPLE}", *self.request.device.options]
        if needs_server:
            words += ["--server", self.address(needs_server)]
            if self.device_files:
                words += ["--ca", f"{root}/{_CERTS}/ca.pem", "--cert", f"{root}/{_CERTS}/own.pem"]
                words += ["--key", f"{root}/{_CERTS}/own.key"]
        return tuple(words)


def up(request: UpRequest, progress: Progress = lambda _: None) -> UpResult:
    """Measure every way to run a model on two machines, and set up the best.

    Installs the runtime where it is missing, profiles both sides, probes the link, plans for a
    range of links around the probed one, measures every scheme on the real machines, and deploys
    the best, with mutual TLS. The release in use is not touched before that.

    Raises:
        OffloadError: a step failed; the text begins with its name. What was done is kept in the
            request's folder.
    """
    _check_request(request)
    request.folder.mkdir(parents=True, exist_ok=True)
    with _locked(request.folder), ExitStack() as stack:
        this = _Up(request, progress, stack)
        this.certificates()
        this.runtimes()
        profiles = this.profiles()
        probed = this.link()
        schemes = this.plan(profiles, probed)
        results = this.measure(schemes, probed)
        number, remark = choose(results, request.constraints, request.policy)
        chosen = schemes[number]
        this.remarks += filter(None, (remark,))
        machines = [json.loads(path.read_text()) for path in profiles]
        if not request.only_try:
            this.deploy(chosen)
        device, server = ((each["machine"], each["whole_s"]) for each in machines)
        return UpResult(
            results,
            chosen.label,
            probed,
            device,
            server,
            chosen.bundle.path,
            this.address(not chosen.is_local),
            not request.insecure,
            not request.only_try,
            this.targets[0].root,
            this.command(not chosen.is_local),
            tuple(this.remarks),
            tuple(this.record.repeated),
        )


def down(device: TargetConfig, server: TargetConfig, *, purge: bool = False) -> list[str]:
    """Stop the server, and remove its unit and the certificates from both machines.

    Args:
        device: the device.
        server: the server.
        purge: also remove the runtime and all releases.

    Returns:
        What was done, one sentence a target.

    Raises:
        OffloadError: a target cannot be reached, or a process does not end.
    """

    async def end(target: TargetConfig) -> str:
        stopped = await _stop(target)
        async with connect(target) as agent:
            for name in ("own.pem", "own.key", "ca.pem"):
                await agent.call("remove", name=f"{_CERTS}/{name}")
            for name in (_SAMPLE, SERVER_LOG):
                await agent.call("remove", name=name)
            if purge:
                await agent.call("purge")
            root = (await agent.call("facts"))["root"]
        ended = "the server is stopped" if stopped else "no server was running"
        return f"{target.name}: {ended}" + (f", {root} is removed" if purge else "")

    return [asyncio.run(end(target)) for target in (device, server)]


async def _stop(target: TargetConfig) -> bool:
    """Stop the servers of a target's root; whether there were any."""
    async with connect(target) as agent:
        unit = await installed_unit(agent)
        if unit:
            await uninstall(agent, unit)
        return bool(await stop_processes(agent)) or unit is not None


async def _all(work: Callable[[TargetConfig], Any], targets: Sequence[TargetConfig]) -> list[Any]:
    # Wait for every target: a connection that is cancelled while it opens prints a traceback.
    results = await asyncio.gather(*map(work, targets), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _send_certificates(agent: AgentClient, files: Sequence[Path]) -> None:
    authority, certificate, key = files
    await send_whole(agent, f"{_CERTS}/ca.pem", authority)
    await send_whole(agent, f"{_CERTS}/own.pem", certificate)
    await send_whole(agent, f"{_CERTS}/own.key", key, private=True)


def options_of(target: TargetConfig) -> EngineOptions:
    """How onnxruntime runs on a target."""
    return EngineOptions(target.providers, target.threads, allow_cpu=target.allow_cpu)


def _check_request(request: UpRequest) -> None:
    device, server = request.targets
    if (device.ssh, device.root) == (server.ssh, server.root):
        raise InputError(
            f"{device.name} and {server.name} are the same folder of the same account: give two"
            " targets, or another `root` to one of them"
        )
    if parse_address(server.listen).port == 0 and not request.only_try:
        raise InputError(f"{server.name} has no fixed port for the server: set `listen` to one")
    own = {"--cert", "--key", "--client-ca", "--token-file"} & set(server.serving)
    if own:
        raise InputError(
            f"{server.name} has certificates or tokens of its own in devices.toml, and `up` makes"
            " others: remove these keys, or take the single steps of docs/deploy.md"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Refuse two calls at once in the same folder."""
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another `offload up` works in {folder}: wait for it, or give another --output"
            ) from None
        yield
