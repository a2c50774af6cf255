"""A bound on what onnxruntime allocates: one arena for several models, never beyond its limit.

What onnxruntime's own limit does and does not do, found by trying version 1.32:

- A run that asks for more ends with an error and gives back what it took; so do terabytes.
- Weights inside a model's file, and those a kernel repacks, are taken without asking. Once they
  exceed the limit the bytes left wrap around, and nothing is limited any more: `Arena.check`
  finds that out, after a model was loaded. Weight files that are mapped are not counted.
- Growing by powers of two wastes up to half of the limit. Growing as requested leaves pieces that
  never join: a large run fails after small ones until free pieces are returned (`Arena.sweep`).
- It stands for the CPU's memory; other providers have limits of their own. What a kernel takes
  from the C++ heap (strings, mostly) is not counted.
"""

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from offload.errors import InputError
from offload.units import format_bytes

# ConstantOfShape: "shape" -> "y", as many zeros as asked for; a test shows that it is.
PROBE = (
    "CAo6RwobCgVzaGFwZRIBeSIPQ29uc3RhbnRPZlNoYXBlEgFnWhMKBX"
    "NoYXBlEgoKCAgHEgQKAggBYhAKAXkSCwoJCAESBQoDEgFuQgQKABAV"
)
_AS_REQUESTED = 1
_TOO_MANY = 1 << 58  # floats: nobody has so many, and the bytes still fit 64 bits
_NO_LIMIT_BYTES = 1 << 50
_LEFT = re.compile(r"Available memory of (\d+) is smaller than requested bytes of \d+")
_REFUSED = re.compile(r"Failed to allocate memory for requested buffer of size (\d+)|bad_alloc")
_one_at_a_time = threading.Lock()


class Arena:
    """The memory of all models that are loaded with it; made by `arena_of`.

    Attributes:
        limit_bytes: what all of them may take at one time, weights included.
        rule: what set the limit, for messages: `--max-memory 300 MB`.
    """

    def __init__(self, limit_bytes: int, rule: str) -> None:
        self.limit_bytes = limit_bytes
        self.rule = rule
        self.is_open = True
        _register(limit_bytes)
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = 1
        self.lend(settings)
        self._probe = ort.InferenceSession(
            base64.b64decode(PROBE), settings, providers=["CPUExecutionProvider"]
        )
        self._returning = _quiet()
        self._returning.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def lend(self, settings: ort.SessionOptions) -> None:
        """Let a session that is made with these settings take its memory from here."""
        assert self.is_open, "another arena may be onnxruntime's by now"
        settings.add_session_config_entry("session.use_env_allocators", "1")

    def left_bytes(self) -> int | None:
        """What more may be taken from the system; None when nothing is limited any more.

        Asked by asking for too much: the refusal tells.
        """
        try:
            self._probe.run(None, {"shape": np.array([_TOO_MANY], np.int64)}, _quiet())
        except Exception as error:  # noqa: BLE001  which one it is tells
            found = _LEFT.search(str(error))
            return int(found[1]) if found else None
        return None

    def check(self, name: str) -> None:
        """InputError when the models loaded so far take more than there is."""
        if self.left_bytes() is None:
            raise InputError(
                f"{name} cannot be loaded: its weights take more than {self.rule} leaves for"
                f" models ({format_bytes(self.limit_bytes)}), allow more"
            )

    def sweep(self) -> None:
        """Give free pieces back, so that a large one fits."""
        self._probe.run(None, {"shape": np.zeros(1, np.int64)}, self._returning)


@contextmanager
def arena_of(limit_bytes: int, rule: str) -> Iterator[Arena]:
    """A new arena, from which models can be loaded inside this block, and not later.

    onnxruntime keeps one arena for the whole process, and sessions keep the one that they were
    made with: so each server of a process may have its own.

    Raises:
        InputError: this version of onnxruntime cannot limit memory.
    """
    with _one_at_a_time:
        try:
            arena = Arena(limit_bytes, rule)
        except Exception as error:
            raise _cannot(rule) from error
        if arena.left_bytes() is None:
            raise _cannot(rule)
        try:
            yield arena
        finally:
            arena.is_open = False


@contextmanager
def shared_arena() -> Iterator[Arena | None]:
    """An arena without a limit, for models of which only one runs at a time.

    None where this version of onnxruntime has none, or another thread uses it: then each model
    takes memory of its own.
    """
    if not _one_at_a_time.acquire(blocking=False):
        yield None
        return
    try:
        arena = Arena(_NO_LIMIT_BYTES, "this machine")
    except Exception:  # noqa: BLE001  an older onnxruntime
        arena = None
    try:
        yield arena
    finally:
        if arena is not None:
            arena.sweep()
            arena.is_open = False
        _one_at_a_time.release()


def _cannot(rule: str) -> InputError:
    return InputError(f"onnxruntime {ort.__version__} cannot keep {rule}: install a newer one")


def _register(limit_bytes: int) -> None:
    """Make a new arena onnxruntime's, in place of the one before."""
    kinds = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    place = ort.OrtMemoryInfo("Cpu", kinds[0], 0, kinds[1])
    config = {"max_mem": limit_bytes, "arena_extend_strategy": _AS_REQUESTED}
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(config))


def lack_of_memory(error: Exception) -> str | None:
    """What ORT's error says about memory, as the end of a sentence; None: it is about others."""
    if _LEFT.search(str(error)):
        return "needs more memory than the server allows"
    found = _REFUSED.search(str(error))
    if not found and not isinstance(error, MemoryError):
        return None
    size = f" ({format_bytes(int(found[1]))} at once)" if found and found[1] else ""
    return f"needs more memory than this machine has{size}"


def _quiet() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options
