"""How a model is run: execution providers, threads, optimisation."""

import warnings
from dataclasses import dataclass

import onnxruntime as ort
from offload.errors import InputError

from offload_runtimes.engine.cpus import allowed_cores

CPU = "CPUExecutionProvider"
SHORT_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_QUIET, _TALKATIVE = 4, 2  # ORT's severities: fatal only, and warnings


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How onnxruntime shall run a model.

    Attributes:
        providers: execution providers in order of preference, by ORT's name or `cpu`, `cuda`,
            `tensorrt`, `openvino`; the CPU always stands behind them as the fallback.
        threads: threads of one kernel; None: one per physical core that the process may use.
        optimize: let ORT fuse and fold; without it, parts and whole are bit-equal.
        verbose: let ORT print its warnings on stderr.
    """

    providers: tuple[str, ...] = ()
    threads: int | None = None
    optimize: bool = True
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")


def resolve_providers(names: tuple[str, ...]) -> list[str]:
    """Names of the providers this machine's onnxruntime has, in order, the CPU last.

    A known provider that is not installed is left out with a RuntimeWarning.

    Raises:
        InputError: a name onnxruntime has never heard of.
    """
    known, here = set(ort.get_all_providers()), set(ort.get_available_providers())
    chosen: list[str] = []
    for name in names:
        full = SHORT_NAMES.get(name.lower(), name)
        if full not in known:
            raise InputError(
                f"execution provider {name!r} is unknown: use cpu, cuda, tensorrt, openvino or"
                " one of onnxruntime's full names"
            )
        if full not in here:
            warn_missing(full)
        elif full not in chosen:
            chosen.append(full)
    return [*(name for name in chosen if name != CPU), CPU]


def warn_missing(provider: str) -> None:
    """Say that a provider is not available and that the CPU does the work."""
    warnings.warn(
        f"{provider} is not available in this onnxruntime: running on the CPU instead",
        RuntimeWarning,
        stacklevel=4,
    )


def session_options(options: EngineOptions) -> ort.SessionOptions:
    """ORT's own options object for these options."""
    made = ort.SessionOptions()
    made.log_severity_level = _TALKATIVE if options.verbose else _QUIET
    # Left to itself, ORT would count the machine's cores and pin a thread to each, which the
    # kernel may refuse; a number of ours it takes without pinning.
    made.intra_op_num_threads = options.threads or allowed_cores()
    level = ort.GraphOptimizationLevel
    made.graph_optimization_level = (
        level.ORT_ENABLE_ALL if options.optimize else level.ORT_DISABLE_ALL
    )
    # Each session has a thread pool of its own, and a pool goes on spinning after its run: on a
    # chain of six segments that cost 5x in time. Spinning only within a run costs nothing.
    made.add_session_config_entry("session.force_spinning_stop", "1")
    return made
