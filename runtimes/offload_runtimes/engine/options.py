"""How a model is run: execution providers, threads, cores, optimisation."""

import contextlib
import ctypes
import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime as ort
from offload.errors import InputError

from offload_runtimes.device_requirements import ORT_WHEELS, wheel_of

_TOPOLOGY = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def allowed_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use, limited by its quota of CPU time.

    `taskset`, cpusets and containers limit the cores, `cpu.max` of a control group the time.
    """
    cores = {_read(root / _TOPOLOGY.format(cpu)) or str(cpu) for cpu in os.sched_getaffinity(0)}
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([len(cores), *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in CPUs, of this process's control group and of its parents."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / controllers
        folder = mounted / group.lstrip("/")
        for each in (folder, *folder.parents):
            if controllers:  # version 1
                words = [_read(each / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                words = _read(each / "cpu.max").split()
            if len(words) == 2 and all(word.isdecimal() for word in words):
                yield int(words[0]) / int(words[1])
            if each == mounted:
                break


def _read(path: Path) -> str:
    """A file's text; empty when this kernel has no such file, or it is not readable."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


CPU = "CPUExecutionProvider"
SHORT_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# They compute on an NVIDIA GPU, start kernels without waiting for them, and take `device_id`.
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_FATAL = 4  # of ORT's log severities


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How onnxruntime runs a model.

    Attributes:
        providers: execution providers in order of preference, by ORT's name or `cpu`, `cuda`,
            `tensorrt`, `openvino`; the CPU runs the operators that they do not support. `cuda:1`
            is the second GPU.
        threads: threads of one kernel; None: one per physical core that the process may use.
        optimize: let ORT fuse and fold; without it, a split model and the whole are bit-equal.
        allow_cpu: run on the CPU, with a warning, where a provider is missing; else an error.
    """

    providers: tuple[str, ...] = ()
    threads: int | None = None
    optimize: bool = True
    allow_cpu: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")

    @property
    def on_cpu(self) -> bool:
        """Whether they name no provider but the CPU."""
        return all(SHORT_NAMES.get(name.lower(), name) == CPU for name in self.providers)


def resolve_providers(names: Sequence[str], allow_cpu: bool = False) -> list[str]:
    """ORT's names of providers, in order, the CPU last: it runs what the others do not support.

    The numbers of GPUs are left out (`gpu_number`). With `allow_cpu`, a known provider that is not
    installed is left out with a RuntimeWarning.

    Raises:
        InputError: a name that onnxruntime does not know, or a provider that is not installed.
    """
    known, available = set(ort.get_all_providers()), set(ort.get_available_providers())
    chosen: list[str] = []
    for name in names:
        stem = name.partition(":")[0]
        full = SHORT_NAMES.get(stem.lower(), stem)
        if full not in known:
            raise InputError(
                f"execution provider {name!r} is unknown: use cpu, cuda, tensorrt, openvino or"
                " one of onnxruntime's full names"
            )
        if full not in available:
            _miss(f"{full} is not in this onnxruntime", _wheel_advice(name), allow_cpu)
        elif full not in chosen:
            chosen.append(full)
    return [*(name for name in chosen if name != CPU), CPU]


def gpu_number(names: Sequence[str]) -> int | None:
    """The number of the GPU that providers name, as in `cuda:1`; None: they name none.

    onnxruntime counts the GPUs that CUDA_VISIBLE_DEVICES leaves visible, and takes the first by
    default.

    Raises:
        InputError: not a number, not a provider of GPUs, or different numbers.
    """
    numbers: dict[int, str] = {}
    for name in names:
        stem, colon, number = name.partition(":")
        if not colon:
            continue
        if SHORT_NAMES.get(stem.lower(), stem) not in GPU_PROVIDERS:
            raise InputError(
                f"execution provider {name!r} has no number: only cuda and tensorrt do"
            )
        if not number.isascii() or not number.isdecimal():
            raise InputError(
                f"execution provider {name!r}: give the number of a GPU, like {stem}:1"
            )
        numbers.setdefault(int(number), name)
    if len(numbers) > 1:
        raise InputError(
            f"{' and '.join(numbers.values())} are different GPUs: give one, and start a server for"
            " each"
        )
    return next(iter(numbers), None)


def kernel_options(options: EngineOptions) -> EngineOptions:
    """The options under which kernels are timed: only providers that run them one by one.

    TensorRT and OpenVINO compile many layers into one kernel, which onnxruntime times as one.
    CUDA, on the same GPU, stands for TensorRT, and the CPU for OpenVINO.
    """
    names = []
    for name in options.providers:
        stem, colon, number = name.partition(":")
        full = SHORT_NAMES.get(stem.lower(), stem)
        if full == SHORT_NAMES["tensorrt"]:
            names.append(f"cuda{colon}{number}")
        elif full != SHORT_NAMES["openvino"]:
            names.append(name)
    return replace(options, providers=tuple(dict.fromkeys(names)))


def short_name(provider: str) -> str:
    """The name that a user gives a provider: `cuda` of `CUDAExecutionProvider`."""
    return next((short for short, full in SHORT_NAMES.items() if full == provider), provider)


def available_providers() -> tuple[str, ...]:
    """Short names of the providers that the installed onnxruntime was built with."""
    return tuple(short_name(name) for name in ort.get_available_providers())


def require(providers: Sequence[str], used: Sequence[str], allow_cpu: bool) -> None:
    """Check that a session has the providers that it was made with.

    onnxruntime leaves out, without an error, a provider whose libraries or driver are missing.

    Raises:
        InputError: a provider is missing, and the CPU is not allowed instead.
    """
    for name in providers:
        if name not in used:
            why = missing_library(name) or "it finds no device that it supports"
            _miss(f"{name} does not start here ({why})", _LIBRARIES, allow_cpu)


def preload(providers: Sequence[str]) -> None:
    """Load CUDA's libraries from NVIDIA's wheels, if a provider needs them."""
    if set(GPU_PROVIDERS) & set(providers):
        ort.set_default_logger_severity(_FATAL)  # `require` reports what fails
        with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries
            ort.preload_dlls()


_LIBRARIES = "install its libraries and driver (docs/deploy.md)"


def _miss(what: str, advice: str, allow_cpu: bool) -> None:
    if not allow_cpu:
        raise InputError(f"{what}: {advice}, or allow the CPU in its place (--allow-cpu)")
    warnings.warn(f"{what}: running on the CPU instead", RuntimeWarning, stacklevel=2)


def _wheel_advice(provider: str) -> str:
    wheel = wheel_of((provider,))
    others = [name for name in ORT_WHEELS if name != wheel and _is_installed(name)]
    if _is_installed(wheel) and others:
        return (
            f"{' and '.join([wheel, *others])} overwrite each other, uninstall them and install"
            f" {wheel} alone"
        )
    return f"install {wheel} in place of {' and '.join(others) or 'onnxruntime'}"


def _is_installed(wheel: str) -> bool:
    from importlib import metadata  # takes 20 ms, so only for an error

    return bool(list(metadata.distributions(name=wheel)))


def missing_library(provider: str) -> str:
    """The file that a provider's library misses, by the system's loader; empty: none."""
    stem = provider.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / f"capi/libonnxruntime_providers_{stem}.so"
    if not library.is_file():
        return ""  # part of onnxruntime itself, like the CPU's
    try:
        ctypes.CDLL(os.fspath(library))
    except OSError as error:
        message = str(error)
        if "libcuda.so" in message:
            return "NVIDIA's driver is not installed: libcuda.so.1 is missing"
        if "cannot open shared object file" in message:
            return f"{message.split(':')[0]} is missing"
    return ""


def session_options(options: EngineOptions) -> ort.SessionOptions:
    """ORT's own options object for these options."""
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL
    # Without a number, ORT counts the machine's cores and pins a thread to each, which the
    # operating system may refuse; with a number it does not pin.
    settings.intra_op_num_threads = options.threads or allowed_cores()
    level = ort.GraphOptimizationLevel
    settings.graph_optimization_level = (
        level.ORT_ENABLE_ALL if options.optimize else level.ORT_DISABLE_ALL
    )
    # Each session has a thread pool of its own, and a pool continues to spin after its run: a
    # chain of six segments took 5x as long. Spinning only within a run costs nothing.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings
